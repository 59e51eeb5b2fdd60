# All checks of one system. What can be found out by evaluation fails there, with what differed.
{
  self,
  nixpkgs,
  pkgs,
}:
let
  inherit (nixpkgs) lib;
  system = pkgs.stdenv.hostPlatform.system;
  found =
    name: failures:
    if failures == [ ] then
      pkgs.runCommand "systemmanager-${name}" { } "touch $out"
    else
      throw "${name}: ${lib.generators.toPretty { } failures}";
in
{
  lock = found "lock" (import ./lock.nix { inherit lib self; } system);
  module = found "module" (lib.runTests (import ./module.nix { inherit self nixpkgs pkgs; })) // {
    options = import ./options.nix {
      inherit lib;
      inherit (self.nixosConfigurations.gateway) options;
    };
    canary = import ./canary.nix {
      inherit lib self;
      file = "/project/nix/checks/canary-file";
    };
  };
  package = self.packages.${system}.default;
}
// lib.optionalAttrs (system == "x86_64-linux") {
  exposure = pkgs.callPackage ./exposure.nix { inherit (self.nixosConfigurations) gateway; };
  template = self.packages.x86_64-linux.lxc-template;
  vm = import ./vm.nix { inherit self pkgs; };
}
