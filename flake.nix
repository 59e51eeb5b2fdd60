{
  description = "SystemManager: a control plane gateway between AI assistants and real infrastructure, as an appliance";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      each = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      machine =
        modules:
        lib.nixosSystem {
          system = "x86_64-linux";
          modules = [
            self.nixosModules.default
            ./nix/appliance.nix
            ./lxc/image.nix
          ]
          ++ modules;
        };
    in
    {
      packages = lib.recursiveUpdate (each (pkgs: rec {
        default = systemmanager;
        systemmanager = pkgs.callPackage ./nix/package.nix { };
      })) { x86_64-linux.lxc-template = self.nixosConfigurations.gateway.config.system.build.lxcTemplate; };

      overlays.default = final: _: { systemmanager = final.callPackage ./nix/package.nix { }; };

      nixosModules.default =
        { lib, pkgs, ... }:
        {
          imports = [ ./nix/module ];
          services.systemmanager.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      nixosConfigurations = {
        gateway = machine [ ];
        segment-a-gateway = machine [ (import ./nix/examples/fleet.nix "segment-a-gateway") ];
        segment-b-gateway = machine [ (import ./nix/examples/fleet.nix "segment-b-gateway") ];
      };

      apps = each (pkgs: {
        default = {
          type = "app";
          program = lib.getExe (
            pkgs.writeShellScriptBin "systemmanager-run" ''
              exec ${lib.getExe self.packages.${pkgs.stdenv.hostPlatform.system}.default} serve --announce
            ''
          );
          meta.description = "Start the gateway on this machine, with nothing to configure";
        };
      });

      devShells = each (pkgs: {
        default = pkgs.callPackage ./nix/devshell.nix { };
      });

      formatter = each (pkgs: pkgs.nixfmt-tree);

      checks = each (pkgs: import ./nix/checks { inherit self nixpkgs pkgs; });
    };
}
