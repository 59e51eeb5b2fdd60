# A whole machine: boot, secrets, answers, reload, confinement, firewall, upgrade, roll-back. It needs a machine with KVM and a cache.
{ self, pkgs }:
pkgs.testers.runNixOSTest {
  name = "systemmanager";
  nodes = {
    gateway =
      { lib, pkgs, ... }:
      {
        imports = [ self.nixosModules.default ];
        services.systemmanager = {
          enable = true;
          targets.local = {
            executor = "local";
            capabilities = [ "system:read" ];
          };
          secrets.SYSTEMMANAGER_SHARED_SECRET = { };
        };
        specialisation.newer.configuration.services.systemmanager.package =
          lib.mkForce (self.packages.${pkgs.stdenv.hostPlatform.system}.default.overrideAttrs {
            postPatch = "sed -i 's/^__version__ = .*/__version__ = \"99.1\"/' src/systemmanager/__init__.py";
          });
        specialisation.more.configuration.services.systemmanager.targets.local.capabilities = [ "network:read" ];
        systemd.tmpfiles.rules = [ "d /etc/credstore 0700 root root -" ];
      };
    stranger = { };
  };
  testScript = ''
    start_all()
    gateway.wait_for_unit("multi-user.target")

    with subtest("without its secret it waits"):
        gateway.wait_until_succeeds("systemctl show -p ExecMainStatus,Result systemmanager-mcp | grep -E '243|exit-code'")

    with subtest("the secret arrives"):
        gateway.succeed("umask 077; head -c 48 /dev/urandom | base64 -w0 > /etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET")
        gateway.wait_for_unit("systemmanager-mcp.service")
        gateway.succeed("curl -fsS http://127.0.0.1:8080/healthz | grep '\"ok\"'")

    with subtest("others read neither secrets nor state"):
        gateway.fail("runuser -u nobody -- cat /etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET")
        gateway.fail("runuser -u nobody -- ls /var/lib/systemmanager")

    with subtest("the way out is a list"):
        stranger.wait_for_unit("multi-user.target")
        gateway.fail("runuser -u systemmanager -- ping -c1 -W2 stranger")
        gateway.succeed("ping -c1 -W5 stranger")

    with subtest("nothing is open"):
        stranger.fail("curl -m 5 http://gateway:8080/healthz")

    with subtest("a change of targets is a reload, and can be rolled back"):
        before = gateway.succeed("systemctl show -P MainPID systemmanager-mcp")
        gateway.succeed("/run/current-system/specialisation/more/bin/switch-to-configuration test")
        gateway.succeed("grep network:read /etc/systemmanager/targets.yaml")
        assert gateway.succeed("systemctl show -P MainPID systemmanager-mcp") == before
        gateway.succeed("/run/booted-system/bin/switch-to-configuration test")
        gateway.fail("grep network:read /etc/systemmanager/targets.yaml")
        assert gateway.succeed("systemctl show -P MainPID systemmanager-mcp") == before

    with subtest("the process is confined as the unit says"):
        status = gateway.succeed(f"cat /proc/{before.strip()}/status")
        for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"):
            assert line in status, status
        said = gateway.succeed("systemd-analyze security --no-pager systemmanager-mcp | tail -n 1")
        assert float(said.split(": ")[1].split()[0]) <= 1.1, said

    def version_and_audit(version):
        gateway.wait_for_unit("systemmanager-mcp.service")
        shown = gateway.succeed("systemctl show -P ExecStart systemmanager-mcp")
        program = next(word for word in shown.split() if word.endswith("/bin/systemmanager"))
        gateway.succeed(f"{program.removeprefix('path=')} --version | grep -F '{version}'")
        state = "env SYSTEMMANAGER_STATE_DIR=/var/lib/systemmanager"
        gateway.succeed(f"runuser -u systemmanager -- {state} systemmanager audit verify | grep '^whole'")

    with subtest("state survives an upgrade and the way back"):
        gateway.succeed("/run/booted-system/specialisation/newer/bin/switch-to-configuration test")
        version_and_audit("99.1")
        gateway.succeed("/run/booted-system/bin/switch-to-configuration test")
        version_and_audit("")
  '';
}
