# The options of `services.systemmanager` that have no file of their own.
{ lib, ... }:
let
  inherit (lib) mkEnableOption mkOption types;
  network = types.strMatching "[0-9a-fA-F.:]+(/[0-9]{1,3})?" // {
    description = "address or CIDR block";
  };
in
{
  options.services.systemmanager = {
    enable = mkEnableOption "SystemManager, a control plane gateway between AI assistants and infrastructure";
    package = mkOption {
      type = types.package;
      description = "The gateway's package.";
    };
    uid = mkOption {
      type = types.ints.between 1 59999;
      default = 3811;
      description = "Number of the gateway's user and group: the firewall goes by it.";
    };
    settings = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf (
          types.oneOf [
            types.bool
            types.int
            types.str
            (types.listOf types.str)
          ]
        );
        options = {
          LOG_LEVEL = mkOption {
            type = types.enum [
              "DEBUG"
              "INFO"
              "WARNING"
              "ERROR"
            ];
            default = "INFO";
            description = "How much is logged.";
          };
          MCP_HOST = mkOption {
            type = types.str;
            default = "127.0.0.1";
            description = "Address to listen on; with openFirewall the tailnet's, or 0.0.0.0.";
          };
          MCP_PORT = mkOption {
            type = types.port;
            default = 8080;
            description = "Port to listen on.";
          };
        };
      };
      default = { };
      description = "The process settings, by their variables' names; lists are joined by commas. A change is a restart.";
      example = {
        SYSTEMMANAGER_BASE_URL = "https://gateway.tail12345.ts.net";
      };
    };
    auth = {
      token = mkOption {
        type = types.bool;
        default = true;
        description = "Accept the gateway's own bearer tokens.";
      };
      oidc = {
        enable = mkEnableOption "access tokens of an OAuth 2.1 issuer such as tsidp";
        issuer = mkOption {
          type = types.nullOr (types.strMatching "https?://.+");
          default = null;
          example = "https://tsidp.tail12345.ts.net";
          description = "The issuer, to the letter as its metadata names it.";
        };
        clientId = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "The gateway's own client there; its secret is secrets.SYSTEMMANAGER_OIDC_CLIENT_SECRET.";
        };
      };
      tailscale = mkEnableOption "identities of the tailnet, by tailscaled's whois";
    };
    tailscale = {
      enable = mkEnableOption "joining the tailnet";
      authKeyFile = mkOption {
        type = types.nullOr types.externalPath;
        default = "/etc/credstore/systemmanager.tailscale-auth-key";
        description = "File with the auth key, outside the store; null: join by hand.";
      };
      tags = mkOption {
        type = types.listOf (types.strMatching "tag:[a-zA-Z][a-zA-Z0-9-]*");
        default = [ "tag:systemmanager-gateway" ];
        description = "Tags of this node; the auth key must be allowed to give them.";
      };
      serve = mkOption {
        type = types.bool;
        default = false;
        description = "Serve HTTPS on the node's own name, by tailscale serve, to the gateway's unix socket.";
      };
      service = mkOption {
        type = types.bool;
        default = false;
        description = "Offer this gateway as the Tailscale Service svc:systemmanager-mcp, beside others that do.";
      };
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open MCP_PORT on the tailnet's interface, and nowhere else.";
    };
    allowedNetworks = mkOption {
      type = types.listOf network;
      default = [ ];
      example = [ "192.168.1.0/24" ];
      description = "Where the gateway may connect to, beside itself and the tailnet.";
    };
    docker.socket = mkOption {
      type = types.nullOr (types.strMatching "/.*");
      default = null;
      example = "/run/docker.sock";
      description = "Docker socket of this machine that the gateway may use, by the group docker. That group is root.";
    };
    ssh.knownHosts = mkOption {
      type = types.nullOr types.lines;
      default = null;
      description = "Host keys of SSH targets without a pin, as in known_hosts.";
    };
    stacks = {
      hosts = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "git.example.com" ];
        description = "Git servers that Compose stacks come from: names, globs, addresses, CIDR. With one, git, ssh and Docker Compose are on the gateway's path.";
      };
      roots = mkOption {
        type = types.listOf (types.strMatching "/.*");
        default = [ ];
        description = "Folders of a target that stacks may mount.";
      };
      exceptions = mkOption {
        type = types.listOf (types.attrsOf types.anything);
        default = [ ];
        description = "What one stack may have although no stack may: stack, repo, allow, services, as in policy.yaml.";
      };
    };
    audit = {
      log = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        description = "Path of the audit log, in a folder of its own that is made; audit.jsonl in the state folder.";
      };
      witness = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        description = "Second file for the signed checkpoints, in a folder of its own, best on another machine's disk.";
      };
      segmentBytes = mkOption {
        type = types.nullOr (types.ints.positive);
        default = null;
        description = "Size at which a segment is closed.";
      };
      segmentHours = mkOption {
        type = types.nullOr (types.ints.positive);
        default = null;
        description = "Age at which a segment is closed.";
      };
    };
    requireHardening = mkOption {
      type = types.bool;
      default = true;
      description = "Refuse to change anything when a part of the sandbox that the unit promises is not there.";
    };
    rendered = mkOption {
      type = types.attrsOf types.anything;
      readOnly = true;
      internal = true;
      description = "What is written to targets.yaml and policy.yaml, and the service's environment.";
    };
  };
}
