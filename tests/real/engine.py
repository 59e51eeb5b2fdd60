"""A real Docker Engine for tests: the one that runs, else one started here and shared by all test processes.

Its images are made by `docker import` of busybox, so that nothing is pulled. Fixtures: `engine`, `image`, `containers`.
"""

import fcntl
import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from tests.conftest import need

RUNNING = Path("/var/run/docker.sock")
OWN = Path(tempfile.gettempdir()) / f"systemmanager-test-engine-{os.getuid()}"
APPLETS = ("sh", "cat", "date", "echo", "env", "false", "hostname", "id", "ip", "ls", "seq", "sleep", "true", "yes")
LABEL = "systemmanager.test"
START = 60.0


@dataclass(frozen=True)
class Engine:
    """A running engine: its socket, and the tests' own client to look behind the gateway's back."""

    socket: str
    client: Any
    registries: list[str] = field(default_factory=list)

    def forget_images(self) -> None:
        """Remove what came from the registries of this test process; its containers are gone by then."""
        for image in self.client.images():
            names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
            if any(name.startswith(tuple(f"{address}/" for address in self.registries)) for name in names):
                with suppress(APIError):
                    self.client.remove_image(image["Id"], force=True)


def until(condition: Callable[[], Any], seconds: float = 20.0, every: float = 0.05) -> Any:
    """Poll until `condition()` is true and answer what it gave; fails when it never is."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {condition}"
        time.sleep(every)


def listens(path: Path) -> bool:
    """Whether a connection is taken there; asked first, for docker's client leaves the socket of a refused one open."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def answers(path: Path) -> bool:
    if not listens(path):
        return False
    client = None
    try:
        client = APIClient(f"unix://{path}", version="1.41", timeout=5)
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        if client is not None:
            client.close()


def missing() -> str | None:
    """Why no engine can be had here; None when one can."""
    if answers(RUNNING):
        return None
    if shutil.which("dockerd") is None:
        return "no Docker Engine answers at /var/run/docker.sock and dockerd is not installed"
    if os.getuid() != 0:
        return "no Docker Engine answers at /var/run/docker.sock and only root can start one"
    return None


@contextmanager
def locked(path: Path, mode: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, mode)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def shared_engine() -> Iterator[Path]:
    """The socket of a running engine. One that is started here ends with its last user, in whatever process."""
    if answers(RUNNING):
        yield RUNNING
        return
    OWN.mkdir(mode=0o700, exist_ok=True)
    gate, socket = OWN / "gate", OWN / "docker.sock"
    with locked(OWN / "users", fcntl.LOCK_SH) as users:
        with locked(gate, fcntl.LOCK_EX):
            if not answers(socket):
                start()
        try:
            yield socket
        finally:
            with locked(gate, fcntl.LOCK_EX):
                with suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    stop()


def start(folder: Path = OWN, *before: str) -> None:
    """Start `dockerd` with socket, state and process id file in a folder, detached from this process. `before` is a
    command that starts it, in a namespace of its own perhaps."""
    stop(folder)
    socket = folder / "docker.sock"
    with (folder / "log").open("wb") as log:
        subprocess.run(
            [
                "setsid", "--fork", *before, "dockerd",
                f"--host=unix://{socket}",
                f"--data-root={folder / 'data'}",
                f"--exec-root={folder / 'exec'}",
                f"--pidfile={folder / 'pid'}",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
        )  # fmt: skip
    try:
        until(lambda: answers(socket), START)
    except AssertionError:
        stop(folder)
        said = (folder / "log").read_text(errors="replace")[-1500:]
        need("docker", f"dockerd did not come up: {said}")


def stop(folder: Path = OWN) -> None:
    pid = folder / "pid"
    if not pid.exists():
        return
    number = int(pid.read_text())
    with suppress(ProcessLookupError, FileNotFoundError):
        if b"dockerd" in Path(f"/proc/{number}/cmdline").read_bytes():
            os.kill(number, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{number}").exists() or not pid.exists(), 30)
    pid.unlink(missing_ok=True)


def root_filesystem(
    files: Mapping[str, str] | None = None, links: Mapping[str, str] | None = None, folders: Sequence[str] = ()
) -> bytes:
    """A tar of a small root filesystem: busybox, and files, links and folders by their paths."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for path, to in {**{f"bin/{applet}": "busybox" for applet in APPLETS}, **(links or {})}.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, to
            tar.addfile(link)
        for name, text in (files or {}).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    need("docker", missing())
    with shared_engine() as socket:
        client = APIClient(f"unix://{socket}", version="auto", timeout=60)
        made = Engine(str(socket), client)
        try:
            yield made
        finally:
            made.forget_images()
            client.close()


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """An image of busybox, with /bin/sh and the usual small programs; its command sleeps."""
    need("docker", None if Path("/bin/busybox").exists() else "busybox-static is not installed")
    with locked(Path(tempfile.gettempdir()) / f"systemmanager-test-image-{os.getuid()}", fcntl.LOCK_EX):
        try:
            engine.client.inspect_image("systemmanager-test:1")
        except NotFound:
            import_busybox(engine.client)
    return "systemmanager-test:1"


def import_busybox(client: Any) -> None:
    client.import_image_from_data(root_filesystem(), "systemmanager-test", "1", changes=['CMD ["/bin/sleep", "600"]'])


@dataclass
class Containers:
    """Makes throwaway containers with names of their own; everything made is removed at the end."""

    client: Any
    image: str
    names: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)

    def __call__(
        self, command: str | list[str] | None = None, *, start: bool = True, image: str = "", **options: Any
    ) -> str:
        """A container's name. `command` as a text runs in its shell; `host` takes HostConfig options of the SDK."""
        name = options.pop("name", None) or self.fresh()
        self.names.append(name)
        host = self.client.create_host_config(**options.pop("host", {}))
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        labels = {LABEL: "1", **options.pop("labels", {})}
        self.client.create_container(image or self.image, argv, name=name, host_config=host, labels=labels, **options)
        if start:
            self.client.start(name)
        return name

    def fresh(self) -> str:
        """A name nobody else has; what is called so, or begins so, is removed at the end."""
        name = f"sm-{secrets.token_hex(4)}"
        self.names.append(name)
        return name

    def network(self, **options: Any) -> str:
        name = self.fresh()
        self.client.create_network(name, labels={LABEL: "1"}, **options)
        self.networks.append(name)
        return name

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.inspect_container(name)
        return found

    def clean(self) -> None:
        volumes: set[str] = set()
        for row in self.client.containers(all=True):
            if any(name.lstrip("/").startswith(tuple(self.names)) for name in row["Names"] or ["?"]):
                volumes |= {mount["Name"] for mount in row["Mounts"] if mount["Type"] == "volume"}
                with suppress(APIError):
                    self.client.remove_container(row["Id"], v=True, force=True)
        for volume in volumes:
            with suppress(APIError):
                self.client.remove_volume(volume)
        for network in self.networks:
            with suppress(APIError):
                self.client.remove_network(network)


@pytest.fixture
def containers(engine: Engine, image: str) -> Iterator[Containers]:
    made = Containers(engine.client, image)
    try:
        yield made
    finally:
        if made.names:
            made.clean()
