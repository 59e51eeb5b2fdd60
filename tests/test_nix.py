"""The flake, evaluated: that needs a `nix` with its nixpkgs. And its lock, which needs nothing.

SYSTEMMANAGER_TEST_NIX is a command that takes `ready`, `check` and `eval ARGS` from the project's root.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from systemmanager import target
from systemmanager.settings import Settings
from tests import documentation
from tests.conftest import need

PROJECT = Path(__file__).parent.parent
NIX = shlex.split(os.environ.get("SYSTEMMANAGER_TEST_NIX", ""))
LOCK = (PROJECT / "requirements.lock").read_text()
WHEEL = re.compile(r"^# wheel (\S+) (\S+\.whl) sha256:([0-9a-f]{64})$", re.M)
SYSTEMS = ("aarch64-linux", "x86_64-linux")


def evaluated(*words: str) -> str:
    if not NIX:
        need("nix", "SYSTEMMANAGER_TEST_NIX names no command")
    if subprocess.run([*NIX, "ready"], check=False, cwd=PROJECT, capture_output=True).returncode:
        need("nix", f"{NIX[0]} is not ready")
    done = subprocess.run([*NIX, *words], check=False, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_no_derivation_of_a_machine_holds_what_its_secret_files_hold() -> None:
    machine = evaluated("eval", "--raw", "path:/project#checks.x86_64-linux.module.canary.drvPath")
    derivations = evaluated("nix", "derivation", "show", "--recursive", machine.strip())
    secret = (PROJECT / "nix/checks/canary-file").read_text().split()[0]
    assert (
        derivations.count('"system"') > 500 and "LoadCredential=SSH_KEY:/project/nix/checks/canary-file" in derivations
    )
    assert secret not in derivations
    assert not re.search(r"/nix/store/[a-z0-9]{32}-(canary-file|checks\b)", derivations)


def test_the_module_knows_every_setting_that_is_secret() -> None:
    for path in ("nix/module/assertions.nix", "nix/checks/module.nix"):
        text = (PROJECT / path).read_text().partition("secretSettings = [")[2].partition("]")[0]
        listed = set(re.findall(r'"(\w+)"', text))
        assert listed >= {
            str(field.alias) for field in Settings.model_fields.values() if "Secret" in str(field.annotation)
        }
        assert "TSIDP_CLIENT_SECRET" in listed


def locked() -> dict[str, str]:
    """What the lock says of each package, by name."""
    entries = re.split(r"\n(?=[a-z0-9])", LOCK)
    return {entry.partition("==")[0]: entry for entry in entries}


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_wheel_of_the_image_is_one_that_pip_would_take_from_the_same_lock(system: str) -> None:
    seen = []
    for systems, file, sha256 in WHEEL.findall(LOCK):
        name = re.sub(r"[-_.]+", "-", file.partition("-")[0]).lower()
        entry = locked()[name]
        assert f"--hash=sha256:{sha256}" in entry and file.split("-")[1] in entry.partition("\n")[0]
        if system in systems.split(","):
            seen.append(name)
            tag = file.removesuffix(".whl").rpartition("-")[2]
            assert tag == "any" or system.partition("-")[0] in tag, file
    assert len(seen) == len(set(seen)) > 50


def test_everything_that_the_project_asks_for_is_among_the_wheels_of_both_systems() -> None:
    project = (PROJECT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    asked = set(re.findall(r'^  "([a-z0-9-]+)', project, re.M))
    for system in SYSTEMS:
        found = {
            re.sub(r"[-_.]+", "-", file.partition("-")[0]).lower()
            for systems, file, _ in WHEEL.findall(LOCK)
            if system in systems.split(",")
        }
        assert asked and asked <= found


def test_neither_lock_nor_nix_names_an_address_or_this_machine() -> None:
    for path in (*PROJECT.glob("nix/**/*.nix"), PROJECT / "requirements.lock", *PROJECT.glob("lxc/*")):
        text = path.read_text()
        assert "pythonhosted" not in text and "pypi.o" not in text and "/root/" not in text, path


def test_the_flake_only_wires() -> None:
    assert (PROJECT / "flake.nix").read_text().count("\n") <= 100


def test_the_flake_evaluates_and_all_its_checks() -> None:
    evaluated("check")


def test_what_would_be_installed_on_arm_is_what_the_lock_says() -> None:
    assert evaluated("eval", "--raw", "path:/project#checks.aarch64-linux.lock.drvPath").endswith(".drv")


def test_the_readme_has_the_options_that_the_module_has() -> None:
    found = documentation.as_kept(evaluated("eval", "--json", documentation.EVALUATED))
    assert found == documentation.OPTIONS.read_text(), "run `make docs` with SYSTEMMANAGER_TEST_NIX"


def test_the_module_knows_every_part_of_a_target() -> None:
    known = {option["name"] for option in json.loads(documentation.OPTIONS.read_text())}
    parts: dict[str, set[str]] = {"connection": set(), "constraints": set(target.Constraints.model_fields)}
    parts["metadata"] = set(target.Metadata.model_fields)
    kinds = (target.LocalConnection, target.SshConnection, target.DockerConnection, target.HttpConnection)
    for kind in kinds:
        parts["connection"] |= set(kind.model_fields)
    for auth in (target.BearerAuth, target.BasicAuth, target.HeaderAuth):
        parts["connection"] |= {f"auth.{name}" for name in auth.model_fields}
    wanted = {f"{part}.{name}" for part, names in parts.items() for name in names} | set(target.SshTarget.model_fields)
    assert sorted(name for name in wanted if f"services.systemmanager.targets.<name>.{name}" not in known) == []
