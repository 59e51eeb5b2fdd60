"""The template's archive: packed as nixpkgs packs it, read and unpacked as Proxmox VE does, started by Debian's lxc.

The root inside is a small one; what is tried is the archive's layout and configuration, by lxc/image.nix's own words.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import need

IMAGE = (Path(__file__).parents[2] / "lxc" / "image.nix").read_text()
CONFIGURATION = re.compile(r"(\./etc/vzdump/(pct.conf|vps.conf))$")
"""What pve-storage 9.1 looks for in the list of an archive's members."""
UNPACK = (
    "tar", "xpf", "-", "--zstd", "--totals", "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls",
    "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "--warning=no-file-ignored",
    "--warning=no-xattr-write",
)  # fmt: skip
"""What pve-container 6.1 unpacks with, in the container's own user namespace."""
SHIFT = 100000
MAP = (shutil.which("lxc-usernsexec") or "", "-m", f"u:0:{SHIFT}:65536", "-m", f"g:0:{SHIFT}:65536", "--")
INIT = """#!/bin/busybox sh
/bin/busybox id -u >/ran
/bin/busybox cat /proc/self/uid_map >>/ran
/bin/busybox mknod /forbidden b 8 0 2>/dev/null && echo made a device >>/ran
"""


def declared(name: str) -> str:
    """A text of lxc/image.nix."""
    found = re.search(rf'{name} = (?:"([^"]*)"|pkgs\.writeText "[^"]*" \'\'\n(.*?)\n  \'\');', IMAGE, re.DOTALL)
    assert found, name
    return found[1] or re.sub(r"^    ", "", found[2], flags=re.M).replace("${arch}", "amd64") + "\n"


def done(*command: str, cwd: Path | None = None, stdin: Path | None = None, path: Path | None = None) -> str:
    environment = {"PATH": str(path)} if path else None
    with (stdin or Path(os.devnull)).open("rb") as source:
        ended = subprocess.run(
            command, cwd=cwd, env=environment, stdin=source, capture_output=True, timeout=60, check=False
        )
    assert ended.returncode == 0, (command, ended.stderr)
    return ended.stdout.decode()


@pytest.fixture(scope="module")
def archive() -> Iterator[Path]:
    """A root with what could go wrong on the way of NixOS' own: links with absolute targets, hard links, odd modes."""
    busybox = shutil.which("busybox")
    need("busybox", None if busybox and shutil.which("zstd") else "busybox or zstd is not installed")
    assert busybox
    # Not below pytest's folder: the mapped root must reach it.
    with TemporaryDirectory(prefix="sm-template-") as folder:
        Path(folder).chmod(0o755)
        root = Path(folder, "made")
        for name in ("sbin", "bin", "etc/vzdump", "proc", "sys", "dev", "nix/store/abc-system", "nix/var", "root"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        (root / "sbin/init").write_text(INIT)
        (root / "sbin/init").chmod(0o755)
        (root / "etc/vzdump/pct.conf").write_text(declared("pct"))
        (root / "nix/store/abc-system/init").write_text("x")
        (root / "nix/store/abc-system/init").chmod(0o555)
        (root / "nix/var/system").symlink_to("/nix/store/abc-system")
        os.link(root / "nix/store/abc-system/init", root / "nix/store/linked")
        pack = f"tar --sort=name --mtime=@1 --owner=0 --group=0 --numeric-owner -c * '{declared('extraArgs')}'"
        done("bash", "-euo", "pipefail", "-c", f"{pack} | zstd -q -T0 -10 >../made.tar.zst", cwd=root)
        yield Path(folder, "made.tar.zst")


def test_pct_finds_its_configuration_and_the_size_of_the_disk(archive: Path) -> None:
    members = done("tar", "tf", str(archive)).splitlines()
    found = next(match[1] for member in members if (match := CONFIGURATION.search(member)))
    text = done("tar", "-xpOf", str(archive), found)
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert re.fullmatch(r"[\w-]+:vm-0-disk-0,size=\d+G", lines["rootfs"])
    assert (lines["ostype"], lines["unprivileged"], lines["features"]) == ("nixos", "1", "nesting=1")
    assert lines["dev0"] == "/dev/net/tun" and not set(lines) & {"lock", "snapname", "parent"}
    assert all(member.startswith("./") for member in members)


def test_the_archives_name_is_one_that_pve_storage_takes() -> None:
    assert re.search(r'image\.baseName = lib\.mkForce "systemmanager-gateway-', IMAGE)
    assert 'compressCommand = "zstd' in IMAGE and 'compressionExtension = ".zst"' in IMAGE
    assert re.fullmatch(r"[^/]+\.tar\.(gz|xz|zst|bz2)", "systemmanager-gateway-1.0-amd64.tar.zst")


@pytest.fixture(scope="module")
def programs(archive: Path) -> Path:
    """All that lxc's programs find: not newuidmap, without which they need no range of users in /etc/subuid."""
    folder = archive.parent / "bin"
    folder.mkdir()
    for name in ("tar", "zstd"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


@pytest.fixture(scope="module")
def restored(archive: Path, programs: Path) -> Path:
    """Unpacked by the container's own root, which is nobody outside."""
    need(
        "lxc",
        None if shutil.which("lxc-start") and MAP[0] and os.geteuid() == 0 else "lxc is not installed, or no root",
    )
    root = archive.parent / "root"
    root.mkdir()
    os.chown(root, SHIFT, SHIFT)
    own = ("-C", str(root), "--skip-old-files", "--anchored", "--exclude", "./dev/*")
    done(*MAP, *UNPACK, *own, stdin=archive, path=programs)
    return root


def test_it_is_unpacked_in_a_user_namespace_with_its_links_and_owners(restored: Path) -> None:
    assert str((restored / "nix/var/system").readlink()) == "/nix/store/abc-system"
    linked, init = restored / "nix/store/linked", restored / "nix/store/abc-system/init"
    assert linked.stat().st_ino == init.stat().st_ino and init.stat().st_mode & 0o777 == 0o555
    assert {path.lstat().st_uid for path in restored.rglob("*")} == {SHIFT}


def test_lxc_starts_it_as_an_unprivileged_container(restored: Path, programs: Path) -> None:
    folder = restored.parent
    (folder / "config").write_text(
        f"lxc.uts.name = gateway\nlxc.rootfs.path = dir:{restored}\nlxc.net.0.type = empty\n"
        f"lxc.idmap = u 0 {SHIFT} 65536\nlxc.idmap = g 0 {SHIFT} 65536\n"
        "lxc.mount.auto = proc:mixed sys:ro\nlxc.autodev = 1\nlxc.apparmor.profile = unconfined\n"
    )
    where = ("-n", f"sm-template-{os.getpid()}", "-f", str(folder / "config"), "-P", str(folder))
    command = [str(shutil.which("lxc-start")), "-F", *where, "-o", str(folder / "log"), "-l", "INFO"]
    subprocess.run(
        command, env={"PATH": str(programs)}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    ran = restored / "ran"
    assert ran.exists(), (folder / "log").read_text()[-3000:]
    assert ran.read_text().split() == ["0", "0", str(SHIFT), "65536"]
