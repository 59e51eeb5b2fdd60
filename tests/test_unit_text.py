"""install.sh's unit is the flake's, but for paths; nix/checks/module.nix holds the flake's against the same file."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import need

PROJECT = Path(__file__).parent.parent


CONFINED = """
AmbientCapabilities=|CapabilityBoundingSet=|DevicePolicy=closed|IPAddressDeny=any|KeyringMode=private|LockPersonality=true
MemoryDenyWriteExecute=true|NoExecPaths=/dev/shm|NoExecPaths=/run/systemmanager|NoExecPaths=/tmp
NoExecPaths=/var/lib/systemmanager|NoExecPaths=/var/tmp|NoNewPrivileges=true|PrivateDevices=true|PrivateIPC=true
PrivateMounts=true|PrivateTmp=true|PrivateUsers=true|ProtectClock=true|ProtectControlGroups=true|ProtectHome=true
ProtectHostname=true|ProtectKernelLogs=true|ProtectKernelModules=true|ProtectKernelTunables=true|ProtectProc=invisible
ProtectSystem=strict|RemoveIPC=true|RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX|RestrictNamespaces=true
RestrictRealtime=true|RestrictSUIDSGID=true|RuntimeDirectoryMode=0700|StateDirectoryMode=0700|UMask=0077
SystemCallArchitectures=native|SystemCallErrorNumber=EPERM|SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources|User=systemmanager|Group=systemmanager|WatchdogSec=30s|Restart=on-failure
NotifyAccess=main
"""
"""What the unit must say, whatever else its file says: a weaker line, a missing one or a second one is found here."""


def test_the_unit_confines_as_it_must() -> None:
    lines = [line for line in unit("/opt/x").splitlines() if "=" in line]
    wanted = [line for row in CONFINED.split("\n") for line in row.split("|") if line]
    assert [line for line in wanted if line not in lines] == []
    names = {line.partition("=")[0] for line in wanted}
    assert [line for line in lines if line.partition("=")[0] in names and line not in wanted] == []


def unit(
    prefix: str,
    secrets: tuple[str, ...] = (),
    systemd: str = "260",
    networks: str = "",
    what: str = "unit",
    settings: str = "",
) -> str:
    """What install.sh would install; secrets as if these stood in /etc/credstore."""
    with TemporaryDirectory() as credstore, TemporaryDirectory() as configuration:
        for name in secrets:
            Path(credstore, f"systemmanager.{name}").touch()
        if networks:
            Path(configuration, "networks").write_text(networks)
        Path(configuration, "settings").write_text(settings)
        own = {"CREDSTORE": credstore, "CONFIGURATION": configuration, "SYSTEMD_VERSION": systemd}
        done = subprocess.run(
            [PROJECT / "install.sh", what, prefix],
            env={"PATH": os.environ["PATH"], **own},
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.replace(f"{credstore}/", "/etc/credstore/").replace(configuration, "/etc/systemmanager")


def test_the_unit_differs_from_the_flakes_in_paths_settings_and_secrets_alone() -> None:
    own = ("ExecStart=", "Environment=", "EnvironmentFile=", "LoadCredential=")
    flake = (PROJECT / "nix/systemmanager-mcp.service").read_text()
    found = unit("/opt/x", ("API_TOKEN", "git.git.example.com.token", "not-a-name", "git.x.pem")).splitlines()
    assert [line for line in found if not line.startswith(own)] == flake.splitlines()
    assert "ExecStart=/opt/x/bin/systemmanager serve" in found
    assert [line for line in found if line.startswith("LoadCredential=")] == [
        "LoadCredential=API_TOKEN:/etc/credstore/systemmanager.API_TOKEN",
        "LoadCredential=git.git.example.com.token:/etc/credstore/systemmanager.git.git.example.com.token",
    ]


def test_an_older_systemd_is_told_how_to_reload() -> None:
    lines = {version: set(unit("/opt/x", systemd=version).splitlines()) for version in ("252", "253", "254", "260")}
    assert lines["252"] - lines["253"] == {"Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"}
    assert lines["253"] - lines["252"] == {"Type=notify-reload"}
    assert lines["254"] - lines["253"] == {"RestartSteps=5", "RestartMaxDelaySec=1min"}
    assert lines["260"] - lines["254"] == {"RefreshOnReload=credentials"}
    assert not lines["254"] - lines["260"] and not lines["253"] - lines["254"]


def test_networks_are_let_through_by_systemd_and_by_the_firewall() -> None:
    networks = "10.1.0.0/16 # targets\n\nfd00::/8\n192.168.1.1"
    lines = unit("/opt/x", networks=networks).splitlines()
    allowed = [line.partition("=")[2] for line in lines if line.startswith("IPAddressAllow=")]
    assert allowed == ["localhost", "10.1.0.0/16", "fd00::/8", "192.168.1.1"] and "IPAddressDeny=any" in lines
    firewall = unit("/opt/x", networks=networks, what="firewall")
    for line in ("ip daddr 10.1.0.0/16", "ip6 daddr fd00::/8", "ip daddr 192.168.1.1"):
        assert f"  {line} accept\n" in firewall
    assert "meta skuid systemmanager jump" in firewall and 'oifname { "lo" } accept' in firewall
    assert "@" not in firewall and firewall.rstrip("}\n").endswith("reject with icmpx admin-prohibited")
    assert " daddr " not in unit("/opt/x", what="firewall")


@pytest.mark.parametrize("line", ["everywhere", "10.0.0.0/8; flush ruleset", "10.0.0.1 10.0.0.2/x", "$(reboot)"])
def test_a_line_that_is_no_network_is_refused(line: str) -> None:
    for what in ("unit", "firewall"):
        with pytest.raises(subprocess.CalledProcessError):
            unit("/opt/x", networks=line, what=what)


def test_an_audit_log_elsewhere_may_be_written_there() -> None:
    settings = (
        'SYSTEMMANAGER_AUDIT_LOG="/srv/audit/log.jsonl"\nSYSTEMMANAGER_AUDIT_WITNESS=/mnt/w/witness.jsonl\n'
        "#SYSTEMMANAGER_AUDIT_LOG=/etc/x\nLOG_LEVEL=INFO\n"
    )
    more = set(unit("/opt/x", settings=settings).splitlines()) - set(unit("/opt/x").splitlines())
    assert more == {f"{name}={path}" for name in ("ReadWritePaths", "NoExecPaths") for path in ("/srv/audit", "/mnt/w")}
    inside = "SYSTEMMANAGER_AUDIT_LOG=/var/lib/systemmanager/a.jsonl\n"
    assert unit("/opt/x", settings=inside) == unit("/opt/x")
    for wrong in ("relative", "/log.jsonl", "/a b/log"):
        with pytest.raises(subprocess.CalledProcessError):
            unit("/opt/x", settings=f"SYSTEMMANAGER_AUDIT_LOG={wrong}\n")


def test_the_scripts_are_clean() -> None:
    need("shellcheck", None if shutil.which("shellcheck") else "shellcheck is not installed")
    done = subprocess.run(["shellcheck", PROJECT / "install.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("prefix", ["relative", "/with blank", '/with"quote', "/with%specifier"])
def test_a_prefix_that_systemd_would_read_otherwise_is_refused(prefix: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        unit(prefix)
