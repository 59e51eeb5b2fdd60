# What can't be meant, each with a sentence that says what to do.
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.systemmanager;
  inherit (import ../networks.nix { inherit lib; }) isIPv4 within;
  loopback = [
    "127.0.0.1"
    "localhost"
    "::1"
  ];
  anywhere = lib.elem cfg.settings.MCP_HOST [
    "0.0.0.0"
    "::"
  ];
  secretSettings = [
    "SYSTEMMANAGER_SHARED_SECRET"
    "SYSTEMMANAGER_SHARED_SECRET_PREVIOUS"
    "SYSTEMMANAGER_OIDC_CLIENT_SECRET"
    "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET"
    "SYSTEMMANAGER_AI_KEY"
    "TSIDP_CLIENT_SECRET"
  ];
  inSettings = lib.filter (name: cfg.settings ? ${name}) secretSettings;
  hostOf =
    target:
    let
      url = if target.connection.base_url != null then target.connection.base_url else target.connection.host;
      found = if url == null then null else builtins.match "([a-z]+://)?([^/:]+).*" url;
    in
    if found == null then null else lib.elemAt found 1;
  reachable = cfg.allowedNetworks ++ [
    "127.0.0.0/8"
    "100.64.0.0/10"
  ];
  unreachable = lib.attrNames (
    lib.filterAttrs (
      _: target:
      let
        host = hostOf target;
      in
      target.connection.jump == null && host != null && isIPv4 host && !lib.any (within host) reachable
    ) cfg.targets
  );
  names = lib.concatStringsSep ", ";
  # The gateway gets the folder of its audit log for itself: none that others write to.
  others = lib.intersectLists cfg.rendered.auditFolders [
    "/"
    "/etc"
    "/home"
    "/mnt"
    "/root"
    "/run"
    "/srv"
    "/tmp"
    "/var"
    "/var/lib"
    "/var/log"
    "/var/tmp"
  ];
  references = lib.unique (
    lib.filter lib.isString (
      lib.concatMap (part: if lib.isList part then part else [ ]) (
        builtins.split "\\$\\{([A-Za-z_][A-Za-z0-9_]*)}" (builtins.toJSON cfg.rendered.targets)
      )
    )
  );
  undeclared = lib.filter (name: !cfg.secrets ? ${name}) references;
  # git.HOST.token, .key and .ca are what stacks from git read.
  named = "[A-Za-z_][A-Za-z0-9_]*|git\\.[A-Za-z0-9.-]+\\.(token|key|ca)";
  misnamed = lib.filter (name: builtins.match named name == null) (lib.attrNames cfg.secrets);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.auth.token || cfg.auth.oidc.enable || cfg.auth.tailscale;
        message = "services.systemmanager.auth: nobody can prove who they are; enable token, oidc or tailscale.";
      }
      {
        assertion = cfg.auth.oidc.enable -> cfg.auth.oidc.issuer != null && cfg.settings ? SYSTEMMANAGER_BASE_URL;
        message = "services.systemmanager.auth.oidc: set auth.oidc.issuer, and settings.SYSTEMMANAGER_BASE_URL to the URL that clients use.";
      }
      {
        assertion =
          cfg.auth.oidc.clientId == null || cfg.secrets ? SYSTEMMANAGER_OIDC_CLIENT_SECRET || cfg.secrets ? TSIDP_CLIENT_SECRET;
        message = "services.systemmanager.auth.oidc.clientId: declare its secret, secrets.SYSTEMMANAGER_OIDC_CLIENT_SECRET = { }.";
      }
      {
        assertion = cfg.auth.tailscale -> config.services.tailscale.enable;
        message = "services.systemmanager.auth.tailscale: enable services.systemmanager.tailscale.enable, tailscaled says who calls.";
      }
      {
        assertion = cfg.tailscale.serve || cfg.tailscale.service -> config.services.tailscale.enable;
        message = "services.systemmanager.tailscale: serve and service need services.systemmanager.tailscale.enable.";
      }
      {
        assertion = cfg.tailscale.service -> cfg.settings ? SYSTEMMANAGER_BASE_URL && cfg.secrets ? SYSTEMMANAGER_SHARED_SECRET;
        message = "services.systemmanager.tailscale.service: gateways behind one name need one settings.SYSTEMMANAGER_BASE_URL and one secrets.SYSTEMMANAGER_SHARED_SECRET.";
      }
      {
        assertion = cfg.openFirewall -> config.services.tailscale.enable;
        message = "services.systemmanager.openFirewall opens the tailnet's interface only: enable services.systemmanager.tailscale.enable.";
      }
      {
        assertion = cfg.openFirewall -> !lib.elem cfg.settings.MCP_HOST loopback;
        message = "services.systemmanager.openFirewall: the gateway listens on loopback; set settings.MCP_HOST = \"0.0.0.0\", or use tailscale.serve instead.";
      }
      {
        assertion = cfg.openFirewall && anywhere -> cfg.settings ? SYSTEMMANAGER_BASE_URL || cfg.settings ? SYSTEMMANAGER_ALLOWED_HOSTS;
        message = "services.systemmanager.openFirewall: set settings.SYSTEMMANAGER_BASE_URL to the URL that clients use; requests for another name are refused.";
      }
      {
        assertion = lib.elem cfg.settings.MCP_HOST loopback || config.networking.firewall.enable;
        message = "services.systemmanager: the gateway listens beyond loopback; keep networking.firewall.enable.";
      }
      {
        assertion =
          !lib.elem cfg.settings.MCP_PORT config.networking.firewall.allowedTCPPorts
          || lib.elem cfg.settings.MCP_HOST loopback;
        message = "services.systemmanager: MCP_PORT stands in networking.firewall.allowedTCPPorts, which opens it everywhere; use services.systemmanager.openFirewall.";
      }
      {
        assertion = inSettings == [ ];
        message = "services.systemmanager.settings: ${names inSettings} would be readable in the Nix store; declare secrets.<name> instead.";
      }
      {
        assertion = misnamed == [ ];
        message = "services.systemmanager.secrets: ${names misnamed}: use letters, digits and _, as in \${NAME}, or git.HOST.token, .key, .ca.";
      }
      {
        assertion = undeclared == [ ];
        message = "services.systemmanager.targets: declare ${names (map (name: "secrets.${name} = { }") undeclared)}, which targets refer to.";
      }
      {
        assertion = unreachable == [ ];
        message = "services.systemmanager.allowedNetworks: the addresses of ${names unreachable} are not in it; add their networks.";
      }
      {
        assertion = lib.all (id: cfg.targets.${id}.id == id) (lib.attrNames cfg.targets);
        message = "services.systemmanager.targets: an id differs from its attribute's name; leave id out.";
      }
      {
        assertion = cfg.docker.socket == null || config.users.groups ? docker;
        message = "services.systemmanager.docker.socket: there is no group docker; enable virtualisation.docker.enable, or declare users.groups.docker.";
      }
      {
        assertion = others == [ ];
        message = "services.systemmanager.audit: ${names others} is not the gateway's alone; give log and witness a folder of their own, such as /var/log/systemmanager.";
      }
      {
        assertion = !(cfg.policy ? stacks);
        message = "services.systemmanager.policy.stacks: say it in services.systemmanager.stacks, which also brings the programs.";
      }
      {
        assertion = config.users.users.systemmanager.uid != 0;
        message = "services.systemmanager: the gateway does not run as root; leave users.users.systemmanager.uid alone.";
      }
    ];
  };
}
