"""What is made of the engine's list of containers."""

from typing import Any

import pytest

from systemmanager.operations.containers import ContainerList, get_container_list, published
from systemmanager.operations.images import ImageList, list_docker_images
from tests.support import run

ANY, ANY6 = "0.0.0.0", "::"


def port(inside: int, outside: int | None = None, address: str = ANY, kind: str = "tcp") -> dict[str, Any]:
    found: dict[str, Any] = {"PrivatePort": inside, "Type": kind}
    return found if outside is None else {**found, "PublicPort": outside, "IP": address}


@pytest.mark.parametrize(
    ("ports", "shown"),
    [
        ([], []),
        ([port(80)], ["80/tcp"]),
        ([port(80, 8080), port(80, 8080, ANY6)], ["8080->80/tcp"]),
        ([port(80, 8080, "127.0.0.1")], ["127.0.0.1:8080->80/tcp"]),
        ([port(80, 8080, "::1")], ["[::1]:8080->80/tcp"]),
        ([port(53, 53, kind="udp"), port(22)], ["22/tcp", "53->53/udp"]),
    ],
)
def test_ports_are_short(ports: list[dict[str, Any]], shown: list[str]) -> None:
    assert published(ports) == shown


class Listing:
    """A Docker port that only lists."""

    def __init__(self, count: int) -> None:
        self._rows: list[dict[str, Any]] = [
            {
                "Id": f"{number:064x}", "Names": [f"/other/link-{number}", f"/c{number:03}"], "Image": "nginx",
                "Created": 0, "State": "exited" if number % 2 else "running", "Status": "Up", "Ports": [], "Labels": {},
            }
            for number in range(count)
        ]  # fmt: skip

    async def containers(self) -> list[dict[str, Any]]:
        return self._rows


def test_a_long_list_is_given_in_pages_running_ones_first() -> None:
    async def pages(docker: Any) -> list[ContainerList]:
        found = [await get_container_list(docker, limit=2)]
        while found[-1].truncated:
            found.append(await get_container_list(docker, limit=2, cursor=found[-1].next))
        return found

    found = run(pages(Listing(5)))
    assert [[row.name for row in page.containers] for page in found] == [["c000", "c002"], ["c004", "c001"], ["c003"]]
    assert {(page.total, page.running) for page in found} == {(5, 3)}
    assert found[-1].next is None


class Images:
    """A Docker port that only lists images, one of them built without a date as reproducible ones are."""

    async def images(self) -> list[dict[str, Any]]:
        never = -62135596800
        return [{"Id": f"sha256:{abs(at):064x}", "Size": 1, "Created": at} for at in (never, 1767225600)]

    async def containers(self) -> list[dict[str, Any]]:
        return []


def test_an_image_without_a_date_has_none() -> None:
    async def listed(docker: Any) -> ImageList:
        return await list_docker_images(docker)

    assert [row.created for row in run(listed(Images())).images] == ["2026-01-01T00:00:00Z", None]
