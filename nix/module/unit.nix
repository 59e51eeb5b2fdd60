# systemmanager-mcp.service.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.systemmanager;
  tailnet = lib.optionals config.services.tailscale.enable [
    "100.64.0.0/10"
    "fd7a:115c:a1e0::/48"
  ];
  credentials =
    encrypted:
    lib.mapAttrsToList (name: secret: "${name}:${secret.file}") (
      lib.filterAttrs (_: secret: secret.encrypted == encrypted) cfg.secrets
    );
  state = [
    "/var/lib/systemmanager"
    "/run/systemmanager"
  ];
  folders = cfg.rendered.auditFolders;
in
{
  config = lib.mkIf cfg.enable {
    systemd.services.systemmanager-mcp = {
      description = "SystemManager control plane gateway";
      documentation = [ "file:///etc/systemmanager/targets.yaml" ];
      wantedBy = [ "multi-user.target" ];
      path = [
        pkgs.traceroute
      ]
      ++ lib.optionals (cfg.stacks.hosts != [ ]) [
        pkgs.git
        pkgs.openssh
        pkgs.docker-compose
      ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ] ++ lib.optional config.services.tailscale.enable "tailscaled.service";
      # A secret may arrive after the first boot: it is tried again until then.
      unitConfig = {
        StartLimitIntervalSec = 0;
        RequiresMountsFor = folders;
      };
      reloadTriggers = [ cfg.rendered.checked ];

      environment = cfg.rendered.environment // {
        SYSTEMMANAGER_TARGETS_CONFIG = "/etc/systemmanager/targets.yaml";
        SYSTEMMANAGER_POLICY_CONFIG = "/etc/systemmanager/policy.yaml";
        SYSTEMMANAGER_HARDENING = lib.concatStringsSep "," (import ./promises.nix);
      };

      serviceConfig = {
        Type = "notify-reload";
        NotifyAccess = "main";
        ExecStart = "${lib.getExe cfg.package} serve";
        User = "systemmanager";
        Group = "systemmanager";
        Restart = "on-failure";
        RestartSec = "1s";
        RestartSteps = 5;
        RestartMaxDelaySec = "1min";
        WatchdogSec = "30s";
        TimeoutStartSec = "60s";
        TimeoutStopSec = "20s";
        StateDirectory = "systemmanager";
        StateDirectoryMode = "0700";
        RuntimeDirectory = "systemmanager";
        RuntimeDirectoryMode = "0700";
        LoadCredential = credentials false;
        LoadCredentialEncrypted = credentials true;
        ReadWritePaths = folders;
      }
      // import ./sandbox.nix {
        writable =
          state
          ++ folders
          ++ [
            "/dev/shm"
            "/tmp"
            "/var/tmp"
          ];
        allowedNetworks = [ "localhost" ] ++ tailnet ++ cfg.allowedNetworks;
      }
      // lib.optionalAttrs (lib.versionAtLeast config.systemd.package.version "260") {
        RefreshOnReload = "credentials";
      };
    };
  };
}
