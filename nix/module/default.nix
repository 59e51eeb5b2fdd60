# `services.systemmanager`: what is rendered, and who runs it. The unit, the network and the fleet have their own files.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.systemmanager;
  written = lib.filterAttrsRecursive (_: value: value != null);
  yaml = pkgs.formats.yaml { };

  # Parts of a target without a value are not written at all.
  target =
    value:
    lib.filterAttrs (_: part: part != { }) (
      written value
      // {
        connection = lib.filterAttrs (_: part: part != { }) (written value.connection);
      }
    );
  targets = {
    version = "1.0";
    targets = lib.mapAttrs (_: target) cfg.targets;
  };
  policy = {
    version = "1.0";
  }
  // cfg.policy
  // {
    grants = map (grant: lib.filterAttrs (_: part: part != null && part != [ ]) grant) cfg.policy.grants;
  }
  // lib.optionalAttrs (stacks != { }) { inherit stacks; };
  stacks = lib.filterAttrs (_: part: part != [ ]) cfg.stacks;

  word =
    value:
    if lib.isList value then
      lib.concatStringsSep "," value
    else if lib.isBool value then
      lib.boolToString value
    else
      toString value;
  modes =
    lib.optional cfg.auth.token "token"
    ++ lib.optional cfg.auth.oidc.enable "oidc"
    ++ lib.optional cfg.auth.tailscale "tailscale";
  environment = lib.mapAttrs (_: word) (
    written {
      SYSTEMMANAGER_AUTH_MODE = modes;
      SYSTEMMANAGER_OIDC_ISSUER = cfg.auth.oidc.issuer;
      SYSTEMMANAGER_OIDC_CLIENT_ID = cfg.auth.oidc.clientId;
      SYSTEMMANAGER_AUDIT_LOG = cfg.audit.log;
      SYSTEMMANAGER_AUDIT_WITNESS = cfg.audit.witness;
      SYSTEMMANAGER_AUDIT_SEGMENT_BYTES = cfg.audit.segmentBytes;
      SYSTEMMANAGER_AUDIT_SEGMENT_HOURS = cfg.audit.segmentHours;
      SYSTEMMANAGER_REQUIRE_HARDENING = cfg.requireHardening;
      MCP_SOCKET = if cfg.tailscale.serve then "/run/systemmanager/http.sock" else null;
    }
    // cfg.settings
  );

  # Folders that hold the audit log and its witness, where they are not in the state folder.
  auditFolders = lib.unique (
    map dirOf (
      lib.filter (path: path != null && !lib.hasPrefix "/var/lib/systemmanager/" path) [
        cfg.audit.log
        cfg.audit.witness
      ]
    )
  );

  # The program itself reads both files and the settings before they are installed, with a stand-in for each secret.
  checked =
    pkgs.runCommand "systemmanager-configuration"
      {
        targets = yaml.generate "targets.yaml" targets;
        policy = yaml.generate "policy.yaml" policy;
      }
      (
        ''
          mkdir -p $out credentials
          cp $targets $out/targets.yaml
          cp $policy $out/policy.yaml
        ''
        + lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
          ${lib.concatStrings (
            lib.mapAttrsToList (name: _: ''
              printf %s ${builtins.hashString "sha256" name} > credentials/${name}
            '') cfg.secrets
          )}
          env -i HOME=$TMPDIR CREDENTIALS_DIRECTORY=$PWD/credentials \
            ${lib.concatStringsSep " " (lib.mapAttrsToList (name: value: lib.escapeShellArg "${name}=${value}") environment)} \
            SYSTEMMANAGER_TARGETS_CONFIG=$out/targets.yaml SYSTEMMANAGER_POLICY_CONFIG=$out/policy.yaml \
            ${lib.getExe cfg.package} check
        ''
      );
in
{
  imports = [
    ./options.nix
    ./targets.nix
    ./policy.nix
    ./secrets.nix
    ./unit.nix
    ./network.nix
    ./assertions.nix
    ./fleet.nix
  ];

  config = lib.mkIf cfg.enable {
    services.systemmanager.rendered = {
      inherit
        targets
        policy
        environment
        checked
        auditFolders
        ;
    };

    # One on another machine's disk is there once that is mounted, and is then not ours to make.
    systemd.tmpfiles.settings.systemmanager = lib.genAttrs auditFolders (_: {
      d = {
        mode = "0700";
        user = "systemmanager";
        group = "systemmanager";
      };
    });

    environment.etc = {
      "systemmanager/targets.yaml".source = "${checked}/targets.yaml";
      "systemmanager/policy.yaml".source = "${checked}/policy.yaml";
      "ssh/ssh_known_hosts" = lib.mkIf (cfg.ssh.knownHosts != null) { text = lib.mkForce cfg.ssh.knownHosts; };
    };
    environment.systemPackages = [ cfg.package ];

    users.users.systemmanager = {
      isSystemUser = true;
      inherit (cfg) uid;
      group = "systemmanager";
      extraGroups = lib.optional (cfg.docker.socket != null) "docker";
      home = "/var/lib/systemmanager";
      description = "SystemManager gateway";
    };
    users.groups.systemmanager.gid = cfg.uid;
  };
}
