# A whole machine whose secrets stand in files that are there at evaluation: tests/test_nix.py looks for their contents in
# every derivation that it is made of.
{ lib, self, file }:
(self.nixosConfigurations.gateway.extendModules {
  modules = [
    {
      services.systemmanager = {
        secrets = {
          SYSTEMMANAGER_SHARED_SECRET = { inherit file; };
          SYSTEMMANAGER_OIDC_CLIENT_SECRET = {
            inherit file;
            encrypted = true;
          };
          SSH_KEY = { inherit file; };
          API_TOKEN = { inherit file; };
          PASSPHRASE = { inherit file; };
        };
        tailscale.authKeyFile = lib.mkForce file;
        auth.oidc = {
          enable = true;
          issuer = "https://tsidp.example.ts.net";
          clientId = "gateway";
        };
        settings.SYSTEMMANAGER_BASE_URL = "https://gateway.example.ts.net";
        audit.witness = file;
        targets.web = {
          executor = "ssh";
          connection = {
            host = "127.0.0.1";
            username = "admin";
            key_path = "\${SSH_KEY}";
            passphrase = "\${PASSPHRASE}";
          };
          capabilities = [ "system:read" ];
        };
        targets.other = {
          executor = "ssh";
          connection = {
            host = "127.0.0.1";
            username = "admin";
            key_path = file;
            known_hosts = file;
          };
          capabilities = [ "system:read" ];
        };
        targets.api = {
          executor = "http";
          connection = {
            base_url = "https://127.0.0.1";
            auth = {
              type = "bearer";
              token = "\${API_TOKEN}";
            };
          };
          capabilities = [ "network:read" ];
        };
      };
    }
  ];
}).config.system.build.toplevel
