"""A made Debian package in two versions, and the repository that has the newer one as a security update."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.real.machine import Machine

CONTROL = """\
Package: sm-app
Version: {version}
Architecture: all
Maintainer: test <test@example.com>
Description: A program for tests
"""
RELEASE = "Origin: Debian\nLabel: Debian-Security\nSuite: stable-security\n"
UNIT = "[Service]\nExecStart=/usr/bin/sm-app infinity\n"
SETTING = "/etc/sm-app.conf"


def build(folder: Path, version: str) -> Path:
    """sm-app: a program that sleeps, its unit, and a file of settings."""
    root = folder / f"root-{version}"
    texts = {
        "DEBIAN/control": CONTROL.format(version=version),
        "DEBIAN/conffiles": f"{SETTING}\n",
        SETTING[1:]: f"level = {version}\n",
        "usr/lib/systemd/system/sm-app.service": UNIT,
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "usr/bin").mkdir()
    shutil.copy("/bin/sleep", root / "usr/bin/sm-app")
    made = folder / f"sm-app_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, made], check=True, capture_output=True)
    shutil.rmtree(root)
    return made


def offer(machine: Machine) -> None:
    """sm-app 1.0 is installed and runs, its settings changed by hand; 2.0 waits in the machine's only repository."""
    folder = machine.folder / "repo"
    folder.mkdir(mode=0o755)
    old, new = build(folder, "1.0"), build(folder, "2.0")
    digest = hashlib.sha256(new.read_bytes()).hexdigest()
    entry = f"Filename: ./{new.name}\nSize: {new.stat().st_size}\nSHA256: {digest}\n"
    (folder / "Packages").write_text(CONTROL.format(version="2.0") + entry)
    sums = "".join(f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n"
                   for path in [folder / "Packages"])  # fmt: skip
    (folder / "Release").write_text(f"{RELEASE}SHA256:\n{sums}")
    machine.ssh(
        "rm -f /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] file:/srv/test/repo ./' >/etc/apt/sources.list; "
        f"dpkg -i /srv/test/repo/{old.name} && echo 'level = mine' >{SETTING}; "
        "systemctl daemon-reload; systemctl start sm-app; apt-get update"
    )
