# The machine around the gateway: small, no passwords, changed by nixos-rebuild alone.
{
  config,
  lib,
  modulesPath,
  ...
}:
{
  imports = [
    "${modulesPath}/profiles/minimal.nix"
    "${modulesPath}/virtualisation/proxmox-lxc.nix"
  ];

  services.systemmanager = {
    enable = true;
    tailscale = {
      enable = lib.mkDefault true;
      serve = lib.mkDefault true;
    };
    auth.tailscale = lib.mkDefault true;
    targets.local = lib.mkDefault {
      executor = "local";
      capabilities = [
        "system:read"
        "network:read"
      ];
    };
  };

  # Nobody has a password; `pct enter` is the first way in, keys over the tailnet the next.
  users.mutableUsers = false;
  users.allowNoPasswordLogin = true;
  services.openssh = {
    enable = true;
    startWhenNeeded = false;
    openFirewall = false;
    settings = {
      PasswordAuthentication = false;
      KbdInteractiveAuthentication = false;
      PermitRootLogin = "prohibit-password";
    };
  };
  networking.firewall.interfaces.${config.services.tailscale.interfaceName}.allowedTCPPorts = [ 22 ];
  networking.nftables.enable = true;
  systemd.tmpfiles.rules = [
    "d /etc/credstore 0700 root root -"
    "d /etc/credstore.encrypted 0700 root root -"
  ];

  nix = {
    settings = {
      experimental-features = [
        "nix-command"
        "flakes"
      ];
      auto-optimise-store = true;
    };
    gc = {
      automatic = true;
      dates = "weekly";
      options = "--delete-older-than 30d";
    };
  };
  boot.loader.initScript.enable = true;
  services.journald.extraConfig = "SystemMaxUse=512M";
  time.timeZone = lib.mkDefault "UTC";
  system.stateVersion = lib.mkDefault "26.05";
}
