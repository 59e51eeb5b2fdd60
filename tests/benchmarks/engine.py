"""A Docker Engine with 50 containers: get_container_list against the bare list call."""

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path

import docker

from tests.benchmarks.measure import Row, interleaved
from tests.real.engine import missing, shared_engine
from tests.support import OPERATOR, real_gateway, target

CONTAINERS = 50


def rows() -> list[Row]:
    """Measured on the Engine that the tests use; says so when there can be none."""
    if why := missing():
        print(f"not measured: {why}")
        return []
    with shared_engine() as socket, closing(docker.DockerClient(f"unix://{socket}", timeout=60)) as client:
        return _with_containers(socket, client)


def _with_containers(socket: Path, client: docker.DockerClient) -> list[Row]:
    made: list[str] = []
    try:
        image = client.api.import_image_from_data(_empty_tar(), repository="systemmanager-bench", tag="latest")
        assert image
        for number in range(CONTAINERS):
            name = f"systemmanager-bench-{number}"
            made.append(client.api.create_container("systemmanager-bench", command=["/none"], name=name)["Id"])
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(_measure(Path(folder), socket, client))
    finally:
        for id in made:
            client.api.remove_container(id, force=True)
        if made:
            client.api.remove_image("systemmanager-bench", force=True)


def _empty_tar() -> bytes:
    return b"\0" * 10240


async def _measure(folder: Path, socket: Path, client: docker.DockerClient) -> list[Row]:
    clock = iter(range(0, 10_000_000, 60))  # a minute a call: the rate rule never says no
    local = target("local", connection={"socket_path": str(socket)})
    async with real_gateway(folder, local, clock=lambda: float(next(clock))) as gateway:

        async def ours() -> None:
            reply = await gateway.call(OPERATOR, "get_container_list", {})
            assert reply.ok, reply.text()[:500]

        async def bare() -> None:
            await asyncio.to_thread(client.api.containers, all=True)

        await ours()
        await bare()
        seconds = await interleaved({"ours": ours, "bare": bare}, 30)
    return [Row(f"get_container_list of {CONTAINERS} / the bare call", seconds["ours"], seconds["bare"], "s", 2.0)]
