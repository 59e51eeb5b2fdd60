# `services.systemmanager.secrets`: files outside the store, handed over by systemd as credentials.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.services.systemmanager.secrets = mkOption {
    type = types.attrsOf (
      types.submodule (
        { name, config, ... }:
        {
          options = {
            file = mkOption {
              type = types.externalPath;
              default = "/etc/credstore${lib.optionalString config.encrypted ".encrypted"}/systemmanager.${name}";
              defaultText = lib.literalExpression ''"/etc/credstore/systemmanager.<name>"'';
              description = ''
                Where the secret stands on the gateway. Store paths and path literals are refused: everybody can read the
                store. With sops-nix: config.sops.secrets.<x>.path.
              '';
            };
            encrypted = mkOption {
              type = types.bool;
              default = false;
              description = "The file was made by systemd-creds encrypt.";
            };
          };
        }
      )
    );
    default = { };
    description = ''
      Secrets by name: `''${NAME}` in targets, or a setting such as SYSTEMMANAGER_SHARED_SECRET. A missing file keeps the
      gateway from starting until it is there.
    '';
    example = {
      SSH_KEY_WEB_SERVER_01 = { };
      GRAFANA_TOKEN.file = "/run/secrets/grafana";
    };
  };
}
