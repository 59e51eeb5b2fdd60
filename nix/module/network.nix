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
  v6 = lib.hasInfix ":";
  allow =
    family: networks:
    lib.optionalString (networks != [ ]) "${family} daddr { ${lib.concatStringsSep ", " networks} } accept";
in
{
  config = lib.mkIf cfg.enable {
    networking.nftables = {
      enable = lib.mkDefault true;
      tables.systemmanager = {
        family = "inet";
        content = ''
          chain egress {
            type filter hook output priority filter; policy accept;
            meta skuid != ${toString cfg.uid} accept
            ct state established,related accept
            oifname "lo" accept
            ${lib.optionalString config.services.tailscale.enable ''oifname "${iface}" accept''}
            ${allow "ip" (lib.filter (network: !v6 network) cfg.allowedNetworks)}
            ${allow "ip6" (lib.filter v6 cfg.allowedNetworks)}
            counter reject with icmpx admin-prohibited
          }
        '';
      };
    };
    networking.firewall = {
      enable = lib.mkDefault true;
      interfaces.${iface}.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.settings.MCP_PORT ];
    };

    services.tailscale = lib.mkIf cfg.tailscale.enable {
      enable = true;
      openFirewall = false;
      inherit (cfg.tailscale) authKeyFile;
      extraUpFlags = lib.optional (
        cfg.tailscale.tags != [ ]
      ) "--advertise-tags=${lib.concatStringsSep "," cfg.tailscale.tags}";
      serve = lib.mkIf cfg.tailscale.service {
        enable = true;
        services.systemmanager-mcp.endpoints."tcp:443" = "http://127.0.0.1:${port}";
      };
    };

    # nixpkgs' own unit is for Tailscale Services alone; a node's own name needs this one.
    systemd.services.systemmanager-serve = lib.mkIf cfg.tailscale.serve {
      description = "HTTPS for SystemManager on this node's name, by tailscale serve";
      wantedBy = [ "multi-user.target" ];
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
