# One archive for `pct restore` and `pct create`: the root file system, with the container's configuration inside.
#
# pve-container looks for a member named exactly ./etc/vzdump/pct.conf, and takes the size of the disk from it; zstd is
# what its storage expects of the name. A restored container gets a new MAC by `--unique 1`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  arch = if pkgs.stdenv.hostPlatform.isAarch64 then "arm64" else "amd64";
  pct = pkgs.writeText "pct.conf" ''
    arch: ${arch}
    cores: 2
    memory: 2048
    swap: 512
    hostname: gateway
    ostype: nixos
    unprivileged: 1
    features: nesting=1
    dev0: /dev/net/tun
    net0: name=eth0,bridge=vmbr0,firewall=1,ip=dhcp,type=veth
    rootfs: local-lvm:vm-0-disk-0,size=8G
    onboot: 1
  '';
in
{
  image.baseName = lib.mkForce "systemmanager-gateway-${config.services.systemmanager.package.version}-${arch}";
  image.extension = lib.mkOverride 40 "tar.zst";

  system.build.lxcTemplate = config.system.build.tarball.override {
    fileName = config.image.baseName;
    compressCommand = "zstd -T0 -10";
    compressionExtension = ".zst";
    extraInputs = [ pkgs.zstd ];
    extraArgs = "--transform=flags=rh;s,^,./,";
    contents = [
      {
        source = config.system.build.toplevel + "/init";
        target = "/sbin/init";
      }
      {
        source = pct;
        target = "/etc/vzdump/pct.conf";
      }
    ];
  };
}
