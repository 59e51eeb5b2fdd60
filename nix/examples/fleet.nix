# Two gateways for two segments, with targets that both manage, behind one Tailscale Service.
gateway:
{ lib, ... }:
let
  machine = host: {
    executor = "ssh";
    connection = {
      inherit host;
      username = "gateway";
      key_path = "\${SSH_KEY_FLEET}";
    };
    capabilities = [
      "system:read"
      "container:read"
    ];
  };
in
{
  services.systemmanager = {
    fleet = {
      inherit gateway;
      targets = {
        web-a-01 = machine "10.1.0.11";
        db-a-01 = machine "10.1.0.12";
        web-b-01 = machine "10.2.0.11";
        db-b-01 = machine "10.2.0.12";
        monitoring-01 = machine "10.3.0.11";
        logging-01 = machine "10.3.0.12";
      };
      gateways = {
        segment-a-gateway = {
          network_segment = "production-a";
          targets = [
            "web-a-01"
            "db-a-01"
          ];
        };
        segment-b-gateway = {
          network_segment = "production-b";
          targets = [
            "web-b-01"
            "db-b-01"
          ];
        };
      };
      shared-targets = [
        "monitoring-01"
        "logging-01"
      ];
      policy.grants = [
        {
          subjects = [ "*@example.com" ];
          scopes = [ "readonly" ];
        }
      ];
    };
    allowedNetworks = [
      (if gateway == "segment-a-gateway" then "10.1.0.0/16" else "10.2.0.0/16")
      "10.3.0.0/16"
    ];
    tailscale = {
      serve = false;
      service = true;
    };
    settings.SYSTEMMANAGER_BASE_URL = "https://systemmanager-mcp.tail12345.ts.net";
    secrets = {
      SYSTEMMANAGER_SHARED_SECRET = { };
      SSH_KEY_FLEET = { };
    };
  };
}
