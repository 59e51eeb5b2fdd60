"""What a container is made again with, from inspections alone, those of newer engines too."""

from typing import Any

import pytest

from systemmanager.errors import EngineRefused
from systemmanager.operations.recreation import recreation, reference_of

ID = "0123456789abcdef" * 4


def inspection(mode: str = "shop", networks: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A container as an engine inspects it; `config` and `host` replace single fields."""
    config = {"Image": "nginx:1", "Hostname": ID[:12], "Env": None, "Cmd": None, **fields.pop("config", {})}
    host = {"NetworkMode": mode, "Binds": None, **fields.pop("host", {})}
    own = {"shop": {"IPAMConfig": None, "Aliases": None, "NetworkID": "net1"}} if networks is None else networks
    return {
        "Id": ID, "Name": "/web", "Image": "sha256:" + ID, "Config": config, "HostConfig": host,
        "NetworkSettings": {"Networks": own}, "Mounts": [], **fields,
    }  # fmt: skip


def endpoint(**fields: Any) -> dict[str, Any]:
    made = recreation(inspection(networks={"shop": {"NetworkID": "net1", **fields}}), {"Config": {}}, "nginx:1")
    found: dict[str, Any] = made.body["NetworkingConfig"]["EndpointsConfig"]["shop"]
    return found


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("nginx", ("nginx", "latest")),
        ("nginx:1.27", ("nginx", "1.27")),
        ("registry.lan:5000/team/app", ("registry.lan:5000/team/app", "latest")),
        ("registry.lan:5000/team/app:2", ("registry.lan:5000/team/app", "2")),
        ("cafe", ("cafe", "latest")),
    ],
)
def test_the_reference_is_read_from_the_name(image: str, reference: tuple[str, str]) -> None:
    assert reference_of(inspection(config={"Image": image})) == reference


@pytest.mark.parametrize("image", ["", ID[:12], "sha256:" + ID, "nginx@sha256:" + ID, "nginx:1@sha256:" + ID])
def test_without_a_name_that_can_move_there_is_no_update(image: str) -> None:
    with pytest.raises(EngineRefused):
        reference_of(inspection(config={"Image": image}))


def test_a_hardware_address_made_from_the_address_is_not_kept() -> None:
    assert "MacAddress" not in endpoint(MacAddress="02:42:0a:00:00:07", IPAddress="10.0.0.7")
    assert endpoint(MacAddress="02:42:0a:00:00:63", IPAddress="10.0.0.7")["MacAddress"] == "02:42:0a:00:00:63"


def test_only_what_was_asked_of_an_endpoint_is_kept() -> None:
    found = endpoint(
        IPAMConfig={"IPv4Address": "10.0.0.7"}, Aliases=["www", ID[:12]], DNSNames=["web", "www", ID[:12]],
        DriverOpts={"a": "b"}, GwPriority=3, Gateway="10.0.0.1", EndpointID="x", IPAddress="10.0.0.7",
    )  # fmt: skip
    wanted = {"IPAMConfig": {"IPv4Address": "10.0.0.7"}, "Aliases": ["www"], "DriverOpts": {"a": "b"}, "GwPriority": 3}
    assert found == wanted


def test_a_network_is_found_by_its_id() -> None:
    made = recreation(inspection(mode="net1"), {"Config": {}}, "nginx:1")
    assert list(made.body["NetworkingConfig"]["EndpointsConfig"]) == ["shop"] and made.leave is None


def test_a_network_that_was_left_is_left_again() -> None:
    networks = {"other": {"NetworkID": "net2", "Aliases": ["www"]}}
    made = recreation(inspection(mode="bridge", networks=networks), {"Config": {}}, "nginx:1")
    assert made.leave == "bridge" and made.connect == {"other": {"Aliases": ["www"]}}


def test_who_shares_a_network_has_no_name_and_ports_of_its_own() -> None:
    shared = inspection("container:abc", {}, config={"Hostname": "theirs", "ExposedPorts": {"80/tcp": {}}})
    made = recreation(shared, {"Config": {}}, "nginx:1")
    assert not {"Hostname", "ExposedPorts", "NetworkingConfig"} & set(made.body)
    assert made.connect == {} and made.leave is None


def test_the_hosts_network_is_joined_by_mode_alone() -> None:
    made = recreation(inspection("host", {"host": {"NetworkID": "h"}}), {"Config": {}}, "nginx:1")
    assert "NetworkingConfig" not in made.body and made.connect == {} and made.leave is None


def test_volumes_of_another_container_stay_that_containers() -> None:
    mounts = [
        {"Type": "volume", "Name": "theirs", "Destination": "/a", "RW": True},
        {"Type": "volume", "Name": "mine", "Destination": "/b", "RW": False},
        {"Type": "bind", "Source": "/srv", "Destination": "/c"},
    ]
    made = recreation(inspection(Mounts=mounts), {"Config": {}}, "nginx:1", borrowed={"theirs"})
    assert made.body["HostConfig"]["Binds"] == ["mine:/b:ro"]


def test_without_the_old_image_every_setting_is_the_containers_own() -> None:
    config = {"Env": ["A=1"], "Cmd": ["run"], "Entrypoint": None, "Labels": {"a": "b"}, "User": "app"}
    body = recreation(inspection(config=config), None, "nginx:1").body
    assert (body["Env"], body["Cmd"], body["Labels"], body["User"]) == (["A=1"], ["run"], {"a": "b"}, "app")
