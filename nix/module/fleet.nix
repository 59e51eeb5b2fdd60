# `services.systemmanager.fleet`: several gateways from one declaration; each takes its part of the targets.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.systemmanager;
  fleet = cfg.fleet;
  names = lib.concatStringsSep ", ";
  own = fleet.gateways.${fleet.gateway} or { targets = [ ]; };
  of = gateway: lib.unique (gateway.targets ++ fleet.shared-targets);
  ids = lib.filter (id: fleet.targets ? ${id}) (of own);

  declared = lib.attrNames fleet.targets;
  held = lib.concatMap of (lib.attrValues fleet.gateways);
  unknown = lib.unique (lib.filter (id: !lib.elem id declared) (held ++ fleet.shared-targets));
  orphans = lib.filter (id: !lib.elem id held) declared;
  # Targets of more than one gateway: what one may do there must not depend on which of them is asked.
  shared = lib.filter (id: lib.length (lib.filter (gateway: lib.elem id (of gateway)) (lib.attrValues fleet.gateways)) > 1) ids;
  rights = target: {
    capabilities = lib.sort lib.lessThan (target.capabilities or [ ]);
    constraints = target.constraints or { };
  };
  differing = lib.filter (
    id: rights fleet.targets.${id} != rights (cfg.rendered.targets.targets.${id} or { })
  ) shared;
  # Jump hosts that a gateway would need but does not hold.
  jumps = lib.filter (id: !lib.elem (fleet.targets.${id}.connection.jump or id) ids) ids;
in
{
  options.services.systemmanager.fleet = {
    gateway = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Which of fleet.gateways this one is; null: no fleet.";
    };
    targets = mkOption {
      type = types.attrsOf (types.attrsOf types.anything);
      default = { };
      description = "All targets of the fleet, as in services.systemmanager.targets.";
    };
    gateways = mkOption {
      type = types.attrsOf (
        types.submodule (
          { config, ... }:
          {
            options = {
              segment = mkOption {
                type = types.nullOr types.str;
                default = config.network_segment;
                defaultText = lib.literalExpression "network_segment";
                description = "The part of the network that it stands in.";
              };
              network_segment = mkOption {
                type = types.nullOr types.str;
                default = null;
                description = "The same as segment.";
              };
              targets = mkOption {
                type = types.listOf types.str;
                description = "Ids of the targets that it manages; several gateways may manage one.";
              };
            };
          }
        )
      );
      default = { };
      description = "Gateways by name.";
    };
    shared-targets = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Ids of targets that every gateway manages.";
    };
    policy = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "The policy of every gateway, as in services.systemmanager.policy.";
    };
  };

  config = lib.mkIf (cfg.enable && fleet.gateway != null) {
    services.systemmanager = {
      targets = lib.mkIf (fleet.gateways ? ${fleet.gateway}) (lib.genAttrs ids (id: fleet.targets.${id}));
      inherit (fleet) policy;
    };
    assertions = [
      {
        assertion = fleet.gateways ? ${fleet.gateway};
        message = "services.systemmanager.fleet.gateway: ${fleet.gateway} is none of fleet.gateways (${names (lib.attrNames fleet.gateways)}).";
      }
      {
        assertion = unknown == [ ];
        message = "services.systemmanager.fleet: ${names unknown} stand in no fleet.targets; declare them or take them off the lists.";
      }
      {
        assertion = orphans == [ ];
        message = "services.systemmanager.fleet: no gateway manages ${names orphans}; add them to a gateway's targets or to shared-targets.";
      }
      {
        assertion = fleet.gateways ? ${fleet.gateway} -> differing == [ ];
        message = "services.systemmanager.fleet: ${names differing} are shared, but this gateway gives them other capabilities or constraints; change fleet.targets instead.";
      }
      {
        assertion = shared == [ ] || lib.length (cfg.policy.grants or [ ]) == lib.length (fleet.policy.grants or [ ]);
        message = "services.systemmanager.fleet: this gateway adds grants of its own, which would hold on shared targets through it alone; put them in fleet.policy.";
      }
      {
        assertion = fleet.gateways ? ${fleet.gateway} -> jumps == [ ];
        message = "services.systemmanager.fleet: ${names jumps} are reached through targets that this gateway does not manage; add those.";
      }
    ];
  };
}
