"""Several booted machines, each with a network of its own that the gateway reaches over a cable.

def test_it(machines):
    first, second, third = machines(3)
"""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.conftest import need
from tests.real.machine import Machine, boot, missing
from tests.real.openssh import SshServers, openssh

Machines = Callable[[int], list[Machine]]

_numbers = itertools.count()


def _done(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def network(number: int) -> Iterator[tuple[str, str]]:
    """A network namespace at the other end of a cable: its name, and the address there."""
    name = f"sm{os.getpid()}x{number}"
    near, far = (f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}.{4 * number + end}" for end in (1, 2))
    with ExitStack() as stack:
        _done("ip", "netns", "add", name)
        stack.callback(_done, "ip", "netns", "del", name)
        _done("ip", "link", "add", name, "type", "veth", "peer", "name", "host0", "netns", name)
        _done("ip", "address", "add", f"{near}/30", "dev", name)
        _done("ip", "link", "set", name, "up")
        _done("ip", "-n", name, "address", "add", f"{far}/30", "dev", "host0")
        for link in ("host0", "lo"):
            _done("ip", "-n", name, "link", "set", link, "up")
        yield name, far


def _boot(servers: SshServers, stack: ExitStack) -> Machine:
    name, host = stack.enter_context(network(next(_numbers) % 60))
    machine = boot(servers, host, f"--network-namespace-path=/run/netns/{name}")
    stack.callback(machine.stop)
    return machine


@contextmanager
def booted() -> Iterator[Machines]:
    with openssh() as servers, ExitStack() as stack:

        def more(count: int) -> list[Machine]:
            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(lambda _: _boot(servers, stack), range(count)))

        yield more


@pytest.fixture
def machines() -> Iterator[Machines]:
    """So many machines as a test asks for, gone after it."""
    need("systemd", missing())
    with booted() as more:
        yield more
