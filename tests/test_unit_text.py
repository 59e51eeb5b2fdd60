"""install.sh's unit is the flake's, but for paths; nix/checks/module.nix holds the flake's against the same file."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

PROJECT = Path(__file__).parent.parent


def unit(prefix: str, secrets: tuple[str, ...] = (), systemd: str = "257") -> str:
    """What install.sh would install; secrets as if these stood in /etc/credstore."""
    with TemporaryDirectory() as folder:
        for name in secrets:
            Path(folder, f"systemmanager.{name}").touch()
        done = subprocess.run(
            [PROJECT / "install.sh", "unit", prefix],
            env={"PATH": os.environ["PATH"], "CREDSTORE": folder, "SYSTEMD_VERSION": systemd},
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.replace(f"{folder}/", "/etc/credstore/")


def test_the_unit_differs_from_the_flakes_in_paths_settings_and_secrets_alone() -> None:
    own = ("ExecStart=", "Environment=", "LoadCredential=")
    flake = (PROJECT / "nix/systemmanager-mcp.service").read_text()
    found = unit("/opt/x", ("API_TOKEN",)).splitlines()
    assert [line for line in found if not line.startswith(own)] == flake.splitlines()
    assert "ExecStart=/opt/x/bin/systemmanager serve" in found
    assert "LoadCredential=API_TOKEN:/etc/credstore/systemmanager.API_TOKEN" in found


def test_an_older_systemd_is_told_how_to_reload() -> None:
    old, new = unit("/opt/x", systemd="252").splitlines(), unit("/opt/x", systemd="253").splitlines()
    assert set(old) - set(new) == {"Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"}
    assert set(new) - set(old) == {"Type=notify-reload"}


@pytest.mark.parametrize("prefix", ["relative", "/with blank", '/with"quote', "/with%specifier"])
def test_a_prefix_that_systemd_would_read_otherwise_is_refused(prefix: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        unit(prefix)
