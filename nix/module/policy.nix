# `services.systemmanager.policy`: policy.yaml. Grants are typed; every other part is taken as it is and checked at build.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  strings =
    description:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      inherit description;
    };
  grant = types.submodule {
    options = {
      subjects = strings "Whole names, or *@example.com.";
      groups = strings "Groups of the identity provider or of Tailscale.";
      tags = strings "Tags of Tailscale nodes: tag:ci.";
      scopes = mkOption {
        type = types.nonEmptyListOf types.str;
        description = "What they hold: system:read, readonly ...";
      };
      targets = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Selector; without it the grant holds on all targets.";
      };
    };
  };
in
{
  options.services.systemmanager.policy = mkOption {
    type = types.submodule {
      freeformType = types.attrsOf types.anything;
      options.grants = mkOption {
        type = types.listOf grant;
        default = [ ];
        description = "Who is granted what, and where.";
      };
    };
    default = { };
    description = ''
      Rights, approvals and the rest of policy.yaml, in its own names; rendered to /etc/systemmanager/policy.yaml.
      A change is a reload.
    '';
    example = {
      grants = [
        {
          subjects = [ "ann@example.com" ];
          scopes = [ "readonly" ];
        }
      ];
      approvals.channels = [ "operator" ];
    };
  };
}
