"""Docker Engines of a test's own, each with a network of its own: one for every host of a fleet.

def test_it(engines):
    first, second = engines(2)
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from docker import APIClient

from tests.conftest import need
from tests.real.engine import Engine, import_busybox, missing, start, stop

Engines = Callable[[int], list[Engine]]


@contextmanager
def private_engine() -> Iterator[Engine]:
    """An engine with the image of busybox, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="sm-engine-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        folder = Path(name)
        stack.callback(_unmount, folder)
        stack.callback(stop, folder)
        start(folder, "unshare", "--net", "--")
        client = stack.enter_context(closing(APIClient(f"unix://{folder / 'docker.sock'}", version="auto", timeout=60)))
        stack.callback(_clear, client)
        import_busybox(client)
        yield Engine(str(folder / "docker.sock"), client)


def _clear(client: APIClient) -> None:
    """What runs does not hold up the engine's end."""
    for row in client.containers(all=True):
        client.remove_container(row["Id"], v=True, force=True)


def _unmount(folder: Path) -> None:
    """What an engine leaves mounted."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((one for one in mounts if one.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


@pytest.fixture
def engines() -> Iterator[Engines]:
    """So many engines as a test asks for, gone after it."""
    need("docker", "dockerd is not installed" if shutil.which("dockerd") is None else missing())
    with ExitStack() as stack:

        def more(count: int) -> list[Engine]:
            made = [private_engine() for _ in range(count)]
            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(stack.enter_context, made))

        yield more
