"""A machine that systemd has booted: Debian in systemd-nspawn, with an sshd on loopback and the gateway's own code.

Its root is made once by mmdebstrap, from where this machine's own packages come, and kept in the cache under a name
that says what went in. It has dnf, too, with a repository of its own. Each boot writes to memory only. The network is
this machine's.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import need
from tests.real.openssh import SshServer, SshServers, openssh, until

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "procps",
    "iproute2",
    "sudo",
    "python3",
    "dnf",
    "dnf-plugins-core",
    "rpm",
    "createrepo-c",
)
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
USER = "gateway"
SET_UP = Path(__file__).with_name("machine_setup.sh")
GATEWAY = "/opt/gateway"
"""Where the gateway's code (src) and Python (python, venv) are seen, too: for units without /tmp and /root."""
UNITS = {
    "steady": "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
    "broken": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo the disk is gone; echo >&2 giving up; exit 7'\n",
    "full": "[Service]\nType=oneshot\nExecStart=/bin/sh -c "
    "'echo >&2 ERROR: could not write block 7: No space left on device; exit 7'\n",
    "short": "[Service]\nExecStart=/bin/sh -c 'sleep 0.7; echo no database; exit 9'\n",
    "looping": "[Service]\nExecStart=/bin/sh -c 'sleep 0.3; exit 9'\nRestart=always\nRestartSec=100ms\n"
    "StartLimitBurst=100\n",
    "killed": "[Service]\nExecStart=/bin/sh -c 'kill -9 $$$$'\n",
    "stubborn": "[Service]\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\nTimeoutStopSec=600\n",
}


def missing() -> str | None:
    """Why no machine can be booted here, or None."""
    if lacking := [name for name in ("mmdebstrap", "systemd-nspawn", "sshd") if not shutil.which(name)]:
        return f"{', '.join(lacking)} not installed"
    if not SOURCES.is_file():
        return "this machine's packages do not come from Debian"
    return None if os.geteuid() == 0 else "only root boots a machine"


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def root_folder(suite: str = "", packages: tuple[str, ...] = PACKAGES, set_up: Path = SET_UP) -> Path:
    """The folder of a machine's root, made when it is not there. `suite` is a release of Debian, else this one's."""
    made_of = "\n".join((suite or _codename(), *packages, set_up.read_text()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "systemmanager-machine")
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            _make(root, suite, packages, set_up)
    return root


def _make(root: Path, suite: str, packages: tuple[str, ...], set_up: Path) -> None:
    building = root.with_suffix(".building")
    if building.exists():
        shutil.rmtree(building)
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}",
            f"--customize-hook=sh {shlex.quote(str(set_up))} \"$1\"", suite or _codename(), str(building),
            _mirror() if suite else str(SOURCES),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    building.rename(root)


def _mirror() -> str:
    """Where this machine's own packages come from: other releases are there, too."""
    lines = SOURCES.read_text().splitlines()
    return next(line.partition(":")[2].split()[0] for line in lines if line.startswith("URIs:"))


class Machine(SshServer):
    """A booted machine. As an SSH server it is reached as root, or as `USER`, who may sudo systemctl and journalctl."""

    @property
    def os_release(self) -> Path:
        """The file that says which distribution the machine is."""
        return self.folder / "os-release"

    options: tuple[str, ...] = ()
    """More of systemd-nspawn's."""

    def boot(self, root: Path) -> None:
        units = self.folder / "units"
        units.mkdir()
        for name, text in UNITS.items():
            (units / f"sm-{name}.service").write_text(f"[Unit]\nDescription=A {name} one\n{text}")
        source = Path(__file__).parents[2] / "src"
        seen = {str(source): str(source), sys.prefix: sys.prefix, str(self.folder): "/srv/test"}
        seen |= {str(units): "/usr/local/lib/systemd/system", str(self.os_release): "/usr/lib/os-release"}
        self.os_release.write_text((root / "usr/lib/os-release").read_text())
        if sys.base_prefix != "/usr":
            seen[sys.base_prefix] = sys.base_prefix
        command = [
            "systemd-nspawn", "--quiet", f"--directory={root}", "--volatile=overlay", "--boot", "--keep-unit",
            "--register=no", "--link-journal=no", "--resolv-conf=off", f"--machine={self.folder.name}",
            *(f"--bind-ro={here}:{there}" for here, there in seen.items()),
            f"--bind-ro={source}:{GATEWAY}/src", f"--bind-ro={sys.prefix}:{GATEWAY}/venv",
            f"--bind-ro={sys.base_prefix}:{GATEWAY}/python", *self.options,
        ]  # fmt: skip
        log = (self.folder / "console").open("wb")
        with log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        until(lambda: b"Reached target" in self._console() and self._answers(), f"it boots: {self._console()!r}", 60)

    def _console(self) -> bytes:
        assert self.process is not None and self.process.poll() is None, (self.folder / "console").read_text()
        return (self.folder / "console").read_bytes()

    def _answers(self) -> bool:
        return self.ssh("systemctl is-system-running --wait; systemctl is-active dbus").endswith("\nactive\n")

    def ssh(self, command: str) -> str:
        """What a shell command of root's prints there."""
        options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]
        where = ["-i", str(self.client_key), "-p", str(self.port), f"root@{self.host}"]
        done = subprocess.run(["ssh", *options, *where, command], capture_output=True, text=True, check=False)
        return done.stdout

    def stop(self) -> None:
        """End it at once: its first process takes all others along."""
        if self.process is None:
            return
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                child.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None


def boot(servers: SshServers, host: str | None = None, *options: str) -> Machine:
    """Boot one; `options` are more of systemd-nspawn's, such as a network of its own, where `host` is its address."""
    folder, usual, port = servers.place()
    machine = Machine(host or usual, 22 if host else port, folder, servers.client_key)
    machine.options = options
    (folder / "sshd_config").write_text(
        f"Port {machine.port}\nListenAddress {machine.host}\nHostKey /srv/test/host_key\n"
        "AuthorizedKeysFile /srv/test/authorized_keys\n"
        "StrictModes no\nUsePAM yes\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    machine.boot(root_folder())
    return machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """One booted machine for all tests of a worker: leave its units as they were."""
    need("systemd", missing())
    with openssh() as servers:
        booted = boot(servers)
        try:
            yield booted
        finally:
            booted.stop()
