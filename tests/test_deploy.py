"""lxc/deploy.sh against a stand-in `pct` that refuses what Proxmox VE's would."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import need

SCRIPT = Path(__file__).parent.parent / "lxc" / "deploy.sh"
GOOD = "/nix/store/" + "a" * 32 + "-nixos-system-gateway-26.05"
BROKEN = "/nix/store/" + "b" * 32 + "-nixos-system-broken"
LIMPING = BROKEN.replace("broken", "limping")
ABSENT = BROKEN.replace("broken", "absent")


@dataclass
class Host:
    """A Proxmox VE host, as far as the script sees it."""

    folder: Path

    @property
    def template(self) -> str:
        return str(self.folder / "gateway.tar.zst")

    @property
    def secrets(self) -> str:
        return str(self.folder / "secrets")

    def deploy(self, *words: str, fails: bool = False) -> str:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "PCT_STATE": str(self.folder / "state")}
        done = subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def done(self) -> list[list[str]]:
        """What was done by `pct`, probes left out."""
        log = self.folder / "state" / "log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if not str(line[-1]).endswith("/bin/true") and "/readlink" not in str(line)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name in ("bin", "state", "secrets"):
        (tmp_path / name).mkdir()
    pct = tmp_path / "bin" / "pct"
    pct.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("pct.py")} "$@"\n')
    pct.chmod(0o755)
    (tmp_path / "gateway.tar.zst").write_bytes(b"template")
    (tmp_path / "secrets" / "SYSTEMMANAGER_SHARED_SECRET").write_text("canary")
    (tmp_path / "secrets" / "tailscale-auth-key").write_text("canary")
    return Host(tmp_path)


def create(host: Host, *more: str) -> str:
    return host.deploy("create", "--containers", "101,102", "--template", host.template, *more)


def test_containers_are_created_one_after_the_other_with_their_secrets(host: Host) -> None:
    said = create(host, "--secrets", host.secrets)
    assert [(line[0], line[1]) for line in host.done()] == [
        (command, id) for id in ("101", "102") for command in ("restore", "set", "start", "exec", "push", "push")
    ]
    restored = host.done()[0]
    assert restored[2:] == [host.template, "--storage", "local-lvm", "--unprivileged", "1", "--unique", "1"]
    pushed = next(line for line in host.done() if line[0] == "push")
    assert pushed[3:] == [
        "/etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET", "--perms", "0600", "--user", "0", "--group", "0"
    ]  # fmt: skip
    assert "+ 'pct' 'restore' '101'" in said and "canary" not in said


def test_what_is_done_already_is_left_alone(host: Host) -> None:
    create(host)
    before = host.done()
    said = create(host)
    assert host.done() == before and "101 exists already" in said and "102 runs already" in said


def test_a_creation_that_was_cut_in_the_middle_is_finished(host: Host) -> None:
    create(host)
    before = len(host.done())
    (host.folder / "state/102/config").unlink()
    (host.folder / "state/102/status").write_text("stopped")
    create(host)
    assert [line[:2] for line in host.done()[before:]] == [["set", "102"], ["start", "102"]]


def test_a_dry_run_prints_each_step_and_does_none(host: Host) -> None:
    said = create(host, "--secrets", host.secrets, "--dry-run")
    assert said.count("'pct' 'restore'") == 2 and said.count("'pct' 'push'") == 4 and host.done() == []
    said = host.deploy("upgrade", "--containers", "101", "--system", GOOD, "--dry-run")
    assert "switch-to-configuration' 'switch'" in said and host.done() == []


def test_an_upgrade_is_done_once(host: Host) -> None:
    create(host)
    host.deploy("upgrade", "--containers", "101,102", "--system", GOOD)
    before = host.done()
    assert [line[3:] for line in before if line[1] == "102"][-3:] == [
        ["/run/current-system/sw/bin/nix-env", "-p", "/nix/var/nix/profiles/system", "--set", GOOD],
        [f"{GOOD}/bin/switch-to-configuration", "switch"],
        ["/run/current-system/sw/bin/systemctl", "is-active", "--quiet", "systemmanager-mcp.service"],
    ]
    assert "already" in host.deploy("upgrade", "--containers", "101,102", "--system", GOOD)
    assert host.done() == before


@pytest.mark.parametrize("system", [BROKEN, LIMPING], ids=["the switch fails", "the gateway is not up after it"])
def test_a_broken_upgrade_is_rolled_back_and_reaches_no_other_gateway(host: Host, system: str) -> None:
    create(host)
    host.deploy("upgrade", "--containers", "101,102", "--system", GOOD)
    before = len(host.done())
    said = host.deploy("upgrade", "--containers", "101,102", "--system", system, fails=True)
    assert "101 is not healthy" in said and "the others were not touched" in said
    assert all(line[1] == "101" for line in host.done()[before:])
    assert (host.folder / "state/101/system").read_text() == GOOD == (host.folder / "state/102/system").read_text()


def test_a_system_that_was_not_copied_changes_nothing(host: Host) -> None:
    create(host)
    host.deploy("upgrade", "--containers", "101", "--system", GOOD)
    before = len(host.done())
    said = host.deploy("upgrade", "--containers", "101", "--system", ABSENT, fails=True)
    assert "nix copy it there first" in said and len(host.done()) == before + 1
    assert (host.folder / "state/101/system").read_text() == GOOD


def test_a_roll_back_goes_to_the_generation_before(host: Host) -> None:
    create(host)
    other = GOOD.replace("26.05", "26.11")
    for system in (GOOD, other):
        host.deploy("upgrade", "--containers", "101", "--system", system)
    host.deploy("rollback", "--containers", "101")
    assert (host.folder / "state/101/system").read_text() == GOOD


WRONG = [
    ([], "create"),
    (["create", "--containers", "101"], "--template must name"),
    (["create", "--containers", "", "--template", "x.tar.zst"], "name the containers"),
    (["create", "--containers", "7", "--template", "x.tar.zst"], "7 is no container id"),
    (["create", "--containers", "101;reboot", "--template", "x.tar.zst"], "is no container id"),
    (["create", "--containers", "101", "--template", "absent.tar.zst"], "can't be read"),
    (["upgrade", "--containers", "101", "--system", "/tmp/x"], "a path of the Nix store"),
    (["upgrade", "--containers"], "--containers needs a value"),
    (["secrets", "--containers", "101"], "--secrets must name a folder"),
    (["secrets", "--containers", "101", "--secrets", "/absent"], "is no folder"),
    (["rollback", "--containers", "101", "--froce", "1"], "unknown option --froce"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_can_not_be_meant_is_refused_before_anything_is_done(host: Host, words: list[str], said: str) -> None:
    assert said in host.deploy(*words, fails=True) and host.done() == []


def test_an_odd_file_among_the_secrets_stops_everything(host: Host) -> None:
    (Path(host.secrets) / "notes~").write_text("x")
    assert "notes~ is no name of a secret" in host.deploy(
        "secrets", "--containers", "101", "--secrets", host.secrets, fails=True
    )


def test_a_secret_for_git_is_named_by_its_host(host: Host) -> None:
    create(host)
    (Path(host.secrets) / "git.git.example.com.token").write_text("x")
    host.deploy("secrets", "--containers", "101", "--secrets", host.secrets)
    assert "/etc/credstore/systemmanager.git.git.example.com.token" in [
        line[3] for line in host.done() if line[0] == "push"
    ]


def test_the_script_is_clean() -> None:
    need("shellcheck", None if shutil.which("shellcheck") else "shellcheck is not installed")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
