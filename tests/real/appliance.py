"""A Debian 13 that systemd 257 has booted, with a network of its own, and the gateway that `make install` put there.

Outside are four addresses on one cable: `CLIENT` and `MACHINE`, `ALLOWED`, which is in the gateway's list, and
`FORBIDDEN`, which is not. The wheels come from the lock; they are fetched once and kept in the cache.
"""

import asyncio
import fcntl
import hashlib
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from tests.conftest import need
from tests.real.machine import Machine, missing, root_folder
from tests.real.openssh import SshServers, openssh

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "git",
    "docker-compose",
    "procps",
    "iproute2",
    "nftables",
    "make",
    "python3",
    "python3-venv",
)
PROJECT = Path(__file__).parents[2]
SET_UP = Path(__file__).with_name("appliance_setup.sh")
PYTHON = "3.13"
SOURCE = "/root/systemmanager"
"""The project's source inside, which is installed."""
PREFIX = "/opt/gateway-x"
SECRET = secrets.token_hex(32)
OFFLINE = "env PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels"
NETWORK = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
CLIENT, MACHINE, ALLOWED, FORBIDDEN = (f"{NETWORK}.{number}" for number in (1, 2, 3, 4))


def wheels() -> Path:
    """The folder with every wheel that the lock names for Debian 13."""
    lock = PROJECT / "requirements.lock"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "systemmanager-machine")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    with (cache / "wheels-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.is_dir():
            building = folder.with_suffix(".building")
            tags = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in range(39, 4, -1)]
            subprocess.run(
                [
                    sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
                    "--only-binary=:all:", f"--python-version={PYTHON}", *tags,
                    f"--platform=manylinux2014_{platform.machine()}", f"--requirement={lock}", f"--dest={building}",
                ],
                check=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            building.rename(folder)
    return folder


def _done(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def cable() -> str:
    """The name of the cable's end outside, and of the network at the other one."""
    return f"sm-{os.getpid()}"


@contextmanager
def network() -> Iterator[str]:
    """A network namespace at the other end of a cable, by its name."""
    name = cable()
    with ExitStack() as stack:
        _done("ip", "netns", "add", name)
        stack.callback(_done, "ip", "netns", "del", name)
        _done("ip", "link", "add", name, "type", "veth", "peer", "name", "host0", "netns", name)
        for address in (CLIENT, ALLOWED, FORBIDDEN):
            _done("ip", "address", "add", f"{address}/24", "dev", name)
        _done("ip", "link", "set", name, "up")
        inside = ("ip", "-n", name)
        _done(*inside, "address", "add", f"{MACHINE}/24", "dev", "host0")
        for link in ("host0", "lo"):
            _done(*inside, "link", "set", link, "up")
        yield name


def _boot(servers: SshServers, stack: ExitStack) -> Machine:
    folder, _, _ = servers.place()
    machine = Machine(MACHINE, 22, folder, servers.client_key)
    (folder / "sshd_config").write_text(
        f"ListenAddress {MACHINE}\nHostKey /srv/test/host_key\nAuthorizedKeysFile /srv/test/authorized_keys\n"
        "StrictModes no\nUsePAM yes\nPermitRootLogin prohibit-password\n"
    )
    (folder / "opt").mkdir()
    machine.options = (
        f"--network-namespace-path=/run/netns/{stack.enter_context(network())}",
        # systemd's own list of networks is a program in the kernel, which a container may load only when told so.
        "--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON", "--system-call-filter=bpf",
        f"--bind-ro={PROJECT}:/srv/project", f"--bind-ro={wheels()}:/srv/wheels",
        f"--bind-ro={Path(__file__).parent}:/srv/tests", f"--bind={folder / 'opt'}:/opt",
    )  # fmt: skip
    stack.callback(machine.stop)
    machine.boot(root_folder("trixie", PACKAGES, SET_UP))
    return machine


@contextmanager
def appliance() -> Iterator[Machine]:
    """The machine, with the project's files in `SOURCE` and nothing installed."""
    with openssh() as servers, ExitStack() as stack:
        machine = _boot(servers, stack)
        names = ("Makefile", "install.sh", "requirements.lock", "pyproject.toml", "README.md", "LICENSE", "src", "nix")
        machine.ssh(f"mkdir {SOURCE}; cp -r {' '.join(f'/srv/project/{name}' for name in names)} {SOURCE}")
        yield machine


def done(machine: Machine, command: str, status: int = 0) -> str:
    """What a command prints there, errors too; it must end with that exit status."""
    said, _, found = (
        machine.ssh(f"sh -c {shlex.quote(command)} 2>&1; code=$?; echo; echo $code").rstrip("\n").rpartition("\n")
    )
    assert found == str(status), f"{command}: {found}\n{said}"
    return said


@pytest.fixture(scope="module")
def debian() -> Iterator[Machine]:
    need("systemd", missing())
    with appliance() as machine:
        yield machine


def put(machine: Machine, path: str, text: str) -> None:
    done(machine, f"umask 022; mkdir -p $(dirname {path}); cat > {path} <<'END'\n{text}\nEND")


def token(machine: Machine) -> str:
    state = "SYSTEMMANAGER_STATE_DIR=/var/lib/systemmanager"
    mint = f"{PREFIX}/bin/systemmanager token mint --agent test --scopes admin"
    return done(machine, f"runuser -u systemmanager -- env {state} SYSTEMMANAGER_SHARED_SECRET={SECRET} {mint}").strip()


async def calls(machine: Machine, name: str, arguments: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {token(machine)}"}
    async with Client(StreamableHttpTransport(f"http://{MACHINE}:8080/mcp", headers=headers)) as client:
        answer = await client.call_tool(name, arguments, raise_on_error=False)
        return answer.structured_content


def asked(machine: Machine, name: str, **arguments: Any) -> Any:
    """What a client on the other end of the cable is answered."""
    return asyncio.run(asyncio.wait_for(calls(machine, name, arguments), 60))


def operator_says(machine: Machine, words: str) -> str:
    state = "SYSTEMMANAGER_STATE_DIR=/var/lib/systemmanager"
    return done(machine, f"env {state} {PREFIX}/bin/systemmanager {words}")
