"""The engine that the other Docker tests stand on."""

from tests.real.engine import Containers, Engine


def test_a_container_of_the_test_image_runs(engine: Engine, containers: Containers) -> None:
    name = containers("echo hello; exec sleep 60")
    assert containers.state(name)["State"]["Running"]
    assert containers.state(name)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
