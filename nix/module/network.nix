# The tailnet is the only way in; the way out is a list. systemd's own list does nothing in an unprivileged container
# (it needs BPF there), so that the same list stands in the firewall, by the service's user.
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.systemmanager;
  iface = config.services.tailscale.interfaceName;
  port = toString cfg.settings.MCP_PORT;
  tailscale = lib.getExe config.services.tailscale.package;
  inherit (cfg.tailscale) authKeyFile;
  joins = cfg.tailscale.enable && authKeyFile != null;
  # A line each: nft refuses a set whose networks overlap.
  allow = network: "${if lib.hasInfix ":" network then "ip6" else "ip"} daddr ${network} accept";
in
{
  config = lib.mkIf cfg.enable {
    networking.nftables = {
      enable = lib.mkDefault true;
      tables.systemmanager = {
        family = "inet";
        content =
          lib.replaceStrings
            [ "@user@" "@interfaces@" "@allow@" ]
            [
              (toString cfg.uid)
              (lib.concatMapStringsSep ", " (name: ''"${name}"'') ([ "lo" ] ++ lib.optional config.services.tailscale.enable iface))
              (lib.concatMapStringsSep "\n  " allow cfg.allowedNetworks)
            ]
            (builtins.readFile ../egress.nft);
      };
    };
    networking.firewall = {
      enable = lib.mkDefault true;
      interfaces.${iface}.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.settings.MCP_PORT ];
    };

    services.tailscale = lib.mkIf cfg.tailscale.enable {
      enable = true;
      openFirewall = false;
      inherit authKeyFile;
      extraUpFlags = lib.optional (
        cfg.tailscale.tags != [ ]
      ) "--advertise-tags=${lib.concatStringsSep "," cfg.tailscale.tags}";
      serve = lib.mkIf cfg.tailscale.service {
        enable = true;
        services.systemmanager-mcp.endpoints."tcp:443" = "http://127.0.0.1:${port}";
      };
    };

    # The auth key may arrive after the first boot: nothing asks for it before, and then the node joins.
    systemd.services.tailscaled-autoconnect = lib.mkIf joins { unitConfig.ConditionPathExists = authKeyFile; };
    systemd.paths.tailscaled-autoconnect = lib.mkIf joins {
      description = "The tailnet's auth key arrives";
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = authKeyFile;
    };

    # nixpkgs' own unit is for Tailscale Services alone; a node's own name needs this one.
    systemd.services.systemmanager-serve = lib.mkIf cfg.tailscale.serve {
      description = "HTTPS for SystemManager on this node's name, by tailscale serve";
      # Also with the gateway: one that had to wait for its secrets would else come up without this.
      wantedBy = [
        "multi-user.target"
        "systemmanager-mcp.service"
      ];
      wants = [ "tailscaled.service" ];
      bindsTo = [ "systemmanager-mcp.service" ];
      after = [
        "tailscaled.service"
        "tailscaled-autoconnect.service"
        "systemmanager-mcp.service"
      ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${tailscale} serve --bg --yes --https=443 unix:${cfg.rendered.environment.MCP_SOCKET}";
        ExecStop = "${tailscale} serve --https=443 off";
        Restart = "on-failure";
        RestartSec = "5s";
      };
    };
  };
}
