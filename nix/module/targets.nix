# `services.systemmanager.targets`: the registry, in its own names. What is null is not written; the program's defaults hold.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  path = types.strMatching "/.*";
  id = types.strMatching "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}";
  strings = types.listOf types.str;
  # A path, or what only the service sees; never a file that would be copied to the store.
  pathOrCredential = types.addCheck (types.strMatching "(/|\\$\\{[A-Za-z_]).*") (text: !lib.hasPrefix builtins.storeDir text) // {
    description = "path outside the Nix store, or \${NAME} of a secret";
  };
  # Text that only ever holds a reference: the value itself would be readable in the store.
  credential = types.strMatching ".*\\$\\{[A-Za-z_][A-Za-z0-9_]*}.*" // {
    description = "\${NAME} of a secret";
  };

  connection = types.submodule {
    options = {
      host = optional types.str "SSH: host name or address. Docker: tcp://host:2376.";
      port = optional types.port "SSH: port; 22.";
      username = optional types.str "SSH: user.";
      key_path = optional pathOrCredential "SSH: private key; a path outside the store, or \${NAME}.";
      passphrase = optional credential "SSH: \${NAME} of the private key's passphrase.";
      certificate_path = optional types.str "SSH: OpenSSH user certificate for the key.";
      agent = optional types.bool "SSH: use the keys of the agent at SSH_AUTH_SOCK.";
      known_hosts = optional types.str "SSH: file of known host keys; without it ssh.knownHosts.";
      host_key = optional types.str "SSH: pinned host key, SHA256:... or 'ssh-ed25519 AAAA...'.";
      jump = optional id "SSH: id of the SSH target to go through.";
      docker_socket = optional path "SSH: the Docker Engine's socket on the target.";
      socket_path = optional path "local, docker: the Docker Engine's socket.";
      tls_verify = optional types.bool "docker, http: verify the server's certificate.";
      cert_path = optional pathOrCredential "docker: folder with ca.pem, cert.pem, key.pem. http: CA certificates to trust.";
      base_url = optional (types.strMatching "https?://[^/@]+(/.*)?") "http: https://host[:port][/path].";
      health_path = optional path "http: what health_check asks for; /.";
      auth = mkOption {
        type = types.nullOr (
          types.submodule {
            options = {
              type = mkOption {
                type = types.enum [
                  "bearer"
                  "basic"
                  "header"
                ];
                description = "How the web API is told who asks.";
              };
              token = optional credential "bearer: \${NAME}.";
              username = optional types.str "basic: user.";
              password = optional credential "basic: \${NAME}.";
              name = optional types.str "header: its name.";
              value = optional credential "header: \${NAME}.";
            };
          }
        );
        default = null;
        description = "http: authentication.";
      };
    };
  };

  constraints = types.submodule {
    options = {
      timeout = optional types.numbers.positive "Longest call, in seconds.";
      concurrency = optional (types.ints.between 1 1000) "Calls at a time.";
      sudo_policy = optional (types.enum [
        "none"
        "limited"
        "full"
      ]) "none: never sudo; limited: systemctl and the package manager; full: wherever root helps.";
      paths = optional (types.listOf path) "Folders that file tools may read.";
      units = optional strings "systemd units that may be changed (globs).";
      hosts = optional strings "What network diagnostics may reach: names, globs, addresses, CIDR.";
      ports = optional (types.listOf (types.either types.port types.str)) "Ports that network diagnostics may reach: 443 or '8000-8999'.";
      images = optional strings "Images that may be pulled or run (globs).";
      dual_approval = optional types.bool "What needs an approval here needs it from two different people.";
      max_output_bytes = optional (types.ints.between 1024 67108864) "Most bytes that are read of one command's or file's output.";
    };
  };

  metadata = types.submodule {
    options = {
      tags = optional (types.listOf id) "For selectors: tag:web.";
      environment = optional id "For selectors: env:prod.";
      role = optional id "For selectors: role:db.";
      description = optional types.str "For people.";
    };
  };

  target = types.submodule (
    { name, config, ... }:
    {
      options = {
        id = mkOption {
          type = id;
          default = name;
          description = "Its name in the registry, the same as the attribute's.";
        };
        type = mkOption {
          type = types.enum [
            "local"
            "remote"
          ];
          default = if config.executor == "local" then "local" else "remote";
          defaultText = lib.literalMD "by the executor";
          description = "local for the gateway's own machine.";
        };
        executor = mkOption {
          type = types.enum [
            "local"
            "ssh"
            "docker"
            "http"
          ];
          description = "How the target is reached.";
        };
        capabilities = mkOption {
          type = strings;
          example = [
            "system:read"
            "container:read"
          ];
          description = "What this target offers; nothing else is done on it.";
        };
        connection = mkOption {
          type = connection;
          default = { };
          description = "Where it is and how the gateway proves itself there.";
        };
        constraints = mkOption {
          type = constraints;
          default = { };
          description = "Its limits. A list that is given is the whole list: an empty one allows nothing.";
        };
        metadata = mkOption {
          type = metadata;
          default = { };
          description = "What selectors go by.";
        };
      };
    }
  );
in
{
  options.services.systemmanager.targets = mkOption {
    type = types.attrsOf target;
    default = { };
    description = "Managed systems, rendered to /etc/systemmanager/targets.yaml. A change is a reload.";
    example = lib.literalExpression ''
      {
        web-server-01 = {
          executor = "ssh";
          connection = {
            host = "192.168.1.100";
            username = "admin";
            key_path = "''${SSH_KEY_WEB_SERVER_01}";
          };
          capabilities = [ "system:read" "container:read" ];
        };
      }
    '';
  };
}
