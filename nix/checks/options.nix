# The options of `services.systemmanager` for the README: one record each, in order of their names.
{ lib, options }:
let
  shown =
    value:
    if value ? text then
      value.text
    else
      lib.generators.toPretty { multiline = false; } value;
  one = option: {
    inherit (option) name type;
    default = if option ? default then shown option.default else null;
    description = lib.trim (option.description or "");
  };
in
map one (
  lib.filter (option: option.visible && !option.internal && lib.hasPrefix "services.systemmanager." option.name) (
    lib.optionAttrSetToDocList options.services.systemmanager
  )
)
