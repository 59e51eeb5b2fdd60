"""Real OpenSSH servers on 127.0.0.2 to 127.0.0.20, each with its own keys and configuration in a folder of its own.

def test_it(ssh_server):                     one server for the whole worker
    target = ssh_server.target("web-01")     a Target that reaches it, its host key pinned

def test_them(ssh_servers):                  as many as a test likes, gone after it
    bastion = ssh_servers.start()
    closed = ssh_servers.start("AllowTcpForwarding no", sftp=False)
"""

import base64
import hashlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from systemmanager.target import Target
from tests.conftest import need
from tests.support import target as make_target

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")
_numbers = itertools.count(os.getpid())


def missing() -> str | None:
    """Why there can be no sshd here, or None."""
    if SSHD is None or not shutil.which("ssh-keygen"):
        return "sshd and ssh-keygen are not installed"
    return None if os.geteuid() == 0 else "sshd is only started by root"


def until(true: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """Wait until `true()` is true, and answer it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return found


@dataclass(eq=False)
class SshServer:
    """One sshd: its public `host_key`, the `fingerprint` of it, and `client_key`, a private key that it accepts.

    `before` is a command that starts it, in a namespace of its own perhaps.
    """

    host: str
    port: int
    folder: Path
    client_key: Path
    username: str = "root"
    before: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> str:
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def known_hosts_line(self) -> str:
        return f"[{self.host}]:{self.port} {self.host_key}\n"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def target(self, id: str = "web-01", **fields: Any) -> Target:
        """A target that reaches this server; fields of `connection` replace single ones, None leaves one out."""
        own = {"host": self.host, "port": self.port, "username": self.username}
        own |= {"key_path": str(self.client_key), "host_key": self.fingerprint}
        connection = {key: value for key, value in (own | fields.pop("connection", {})).items() if value is not None}
        return make_target(id, executor="ssh", connection=connection, **fields)

    def processes(self) -> list[psutil.Process]:
        """The listener and everything below it: a session's sshd, its shell and commands."""
        if self.process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            listener = psutil.Process(self.process.pid)
            return [listener, *listener.children(recursive=True)]
        return []

    def run(self) -> None:
        """Start it, or start it again on the same address with the same keys."""
        assert SSHD is not None and self.process is None
        log = self.folder / "log"
        log.write_bytes(b"")
        with log.open("ab") as output:
            command = [*self.before, SSHD, "-D", "-e", "-f", str(self.folder / "config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        process = self.process
        until(lambda: "Server listening on" in self.log or process.poll() is not None, "sshd listens")
        if process.poll() is not None:
            self.process = None
            raise RuntimeError(f"sshd did not start: {self.log}")

    def cut_connections(self) -> None:
        """Kill the sshd of every session, as the network or a crash would end it; what the sessions run is not hit."""
        _kill([one for one in self.processes()[1:] if one.name().startswith("sshd")])

    def stop(self) -> None:
        """Kill the listener and every session."""
        if self.process is not None:
            _kill(self.processes())
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Hang it whole: the address still accepts connections, nothing answers."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def new_host_key(self) -> None:
        """Give it another host key; it must be stopped."""
        assert self.process is None
        _keygen(self.folder / "host_key")


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    own = {child.pid for child in psutil.Process().children()}
    psutil.wait_procs([process for process in processes if process.pid not in own], timeout=5)


def _done(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _keygen(path: Path, *options: str) -> None:
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path), *options]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _version() -> tuple[int, ...]:
    said = subprocess.run([str(SSHD), "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stderr + said.stdout)
    return tuple(map(int, found.groups())) if found else (0, 0)


class SshServers:
    """Starts servers that all accept one client key."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.client_key = folder / "client_key"
        _keygen(self.client_key)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def start(
        self,
        *lines: str,
        username: str = "root",
        sftp: bool = True,
        host: str | None = None,
        before: tuple[str, ...] = (),
    ) -> SshServer:
        """Start one. `lines` are sshd_config lines that win over the usual ones."""
        folder, usual, _ = self.place()
        host = host or usual
        server = SshServer(host, 0, folder, self.client_key, username, before)
        for attempt in range(5):  # another process may take the port before sshd does
            server.port = _free_port(host)
            (folder / "config").write_text(_config(server, lines, sftp))
            try:
                server.run()
                break
            except RuntimeError:
                if attempt == 4 or "Address already in use" not in server.log:
                    raise
        self._stack.callback(server.stop)
        return server

    def place(self) -> tuple[Path, str, int]:
        """A folder with a new host key and the client's public key, and an address and port for a server."""
        number = next(_numbers)
        host, folder = f"127.0.0.{2 + number % 19}", self._folder / f"server-{number}"
        folder.mkdir(mode=0o711)
        _keygen(folder / "host_key")
        (folder / "authorized_keys").write_text(self.client_key.with_suffix(".pub").read_text())
        return folder, host, _free_port(host)

    def account(self, shell: str) -> str:
        """A new account with that login shell; gone with the servers. Skips where there is no such shell."""
        program = shutil.which(shell)
        need("ssh", None if program and shutil.which("useradd") else f"{shell} or useradd is not installed")
        name = f"sm{os.getpid()}-{next(_numbers)}-{Path(shell).name}"[:31]
        home = self._folder / name
        command = ["useradd", "-M", "-N", "-d", str(home), "-s", str(program), "-p", "*", name]
        until(lambda: _done(*command), f"{name} is made", 60)  # another worker may hold the lock of /etc/passwd
        # -f: a process of its may take a moment to end. Again when another worker holds the lock of /etc/passwd.
        self._stack.callback(until, lambda: _done("userdel", "-f", name), f"{name} is gone", 60)
        home.mkdir(mode=0o755)
        shutil.chown(home, name)
        return name

    def keygen(self, name: str, *options: str) -> Path:
        """Another ed25519 private key, which no server knows."""
        path = self._folder / name
        _keygen(path, *options)
        return path


def _config(server: SshServer, lines: tuple[str, ...], sftp: bool) -> str:
    fixed = [
        f"ListenAddress {server.host}:{server.port}",
        f"HostKey {server.folder / 'host_key'}",
        f"AuthorizedKeysFile {server.folder / 'authorized_keys'}",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "UseDNS no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "LogLevel VERBOSE",
        "PrintMotd no",
    ]
    if server.username == "root":
        fixed.append(f"SetEnv HOME={server.folder}")  # root's own start-up files are none of a test's business
    if sftp:
        fixed.append("Subsystem sftp internal-sftp")
    if _version() >= (9, 8):
        fixed.append("PerSourcePenalties no")  # tests fail to log in on purpose
    return "\n".join([*lines, *fixed]) + "\n"


@contextmanager
def openssh() -> Iterator[SshServers]:
    """A place to start servers in; all of them end with it."""
    with ExitStack() as stack:
        # Not below pytest's folder: accounts other than root must reach authorized_keys.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sm-ssh-")))
        folder.chmod(0o711)
        yield SshServers(folder, stack)


@pytest.fixture
def ssh_servers() -> Iterator[SshServers]:
    """Servers of this test's own."""
    need("ssh", missing())
    with openssh() as servers:
        yield servers


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    """One stock server, shared by all tests of a worker: leave it as it is."""
    need("ssh", missing())
    with openssh() as servers:
        yield servers.start()


@contextmanager
def blackhole() -> Iterator[tuple[str, int]]:
    """An address where connecting hangs: a listener whose queue is full, so that the kernel drops what comes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(address)
        yield address
