"""Where the connections of an HTTP target go: to the host that was written, never to what its name was bent to."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import Denied, TlsFailed, Unreachable
from systemmanager.executors import Surroundings
from systemmanager.executors.egress import first_of
from systemmanager.executors.http import HttpExecutor
from systemmanager.ports import HttpAnswer
from tests.real.sink import sink
from tests.real.sites import Pki, closed_port, http_site
from tests.support import permitted, run, target

SECRET = "s3cret-of-the-api"


class Names:
    """A resolver with these answers, one per question, the last one for all that follow."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), list[str]()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def asked(base: str, names: Names, times: int = 1, *, path: str = "/", **fields: Any) -> list[HttpAnswer]:
    connection = {"base_url": base, "auth": {"type": "bearer", "token": SECRET}, **fields.pop("connection", {})}
    permit = permitted("health_check", target("api", "http", connection=connection, **fields))

    async def work() -> list[HttpAnswer]:
        executor = HttpExecutor(Surroundings(Path("/nonexistent")), names)
        try:
            found = []
            for _ in range(times):
                async with AsyncExitStack() as stack:
                    port = await executor.open(permit, "Http", stack)
                    found.append(await port.request("GET", path))
            return found
        finally:
            await executor.aclose()

    return run(work())


@pytest.mark.parametrize(
    "answers",
    [["169.254.169.254"], ["fd00:ec2::254"], ["::ffff:169.254.169.254"], ["0.0.0.0"], ["127.0.0.1", "169.254.0.9"]],
    ids=str,
)
def test_credentials_never_go_to_a_metadata_service(answers: list[str]) -> None:
    with http_site({}) as site:
        with pytest.raises(Denied) as caught:
            asked(f"http://api.vendor.example:{site.port}", Names(answers))
    assert caught.value.code == "host_not_allowed" and "api.vendor.example" in caught.value.message
    assert site.seen == []


def test_a_private_host_is_open_because_the_target_names_it() -> None:
    with http_site({"/": (200, {}, b"hi")}) as site:
        (answer,) = asked(f"http://api.home.lab:{site.port}", Names(["127.0.0.1"]))
    assert answer.status == 200
    ((_, _, headers),) = site.seen
    assert headers["host"] == f"api.home.lab:{site.port}" and headers["authorization"] == f"Bearer {SECRET}"


def test_a_list_of_hosts_is_the_whole_list() -> None:
    with http_site({"/": (200, {}, b"hi")}) as site:
        base = f"http://api.home.lab:{site.port}"
        with pytest.raises(Denied):
            asked(base, Names(["127.0.0.1"]), constraints={"hosts": ["10.0.0.0/8"]})
        assert site.seen == []
        assert asked(base, Names(["127.0.0.1"]), constraints={"hosts": ["127.0.0.1"]})[0].status == 200


def test_every_new_connection_is_judged_also_behind_a_redirect() -> None:
    """The server closes after each answer, so that the redirect needs a connection of its own."""
    hop = (302, {"Location": "/", "Connection": "close"}, b"")
    with http_site({"/hop": hop, "/": (200, {}, b"hi")}) as site, sink() as bad:
        names = Names(["127.0.0.1"], [bad.address, "169.254.169.254"])
        base = f"http://api.home.lab:{site.port}"
        (answer,) = asked(base, names, path="/hop")
        assert answer.status == 200 and len(names.asked) == 1, "one call, one address"
        with pytest.raises(Denied):
            asked(base, Names(["127.0.0.1"], ["169.254.169.254"]), times=2, path="/hop")
        assert bad.packets == 0


def test_redirects_to_another_origin_are_not_followed_and_get_no_credentials() -> None:
    with http_site({}) as other, sink() as bad:
        for location in (f"http://127.0.0.1:{other.port}/", f"http://{bad.address}:{bad.port}/", "//169.254.169.254/"):
            with http_site({"/": (307, {"Location": location}, b"")}) as site:
                (answer,) = asked(f"http://api.home.lab:{site.port}", Names(["127.0.0.1"]))
            assert (answer.status, answer.headers["location"]) == (307, location)
        assert other.seen == [] and bad.packets == 0


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_site({}) as proxy, http_site({"/": (200, {}, b"hi")}) as site:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert asked(f"http://api.home.lab:{site.port}", Names(["127.0.0.1"]))[0].status == 200
    assert proxy.seen == []


def test_an_address_that_does_not_answer_does_not_hold_up_the_others() -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    with http_site({"/": page}) as site:
        base = f"http://api.home.lab:{site.port}"
        assert asked(base, Names(["10.255.255.1", "127.0.0.1"]))[0].status == 204


def test_an_attempt_that_something_below_cancels_is_a_failure_and_no_defect() -> None:
    """As it happens beside a thousand others when a deadline and the head start end in one turn of the loop."""

    async def dial(address: str) -> None:
        raise asyncio.CancelledError

    async def close(connection: None) -> None:
        raise AssertionError("nothing was opened")

    with pytest.raises(Unreachable, match="given up"):
        run(first_of(["192.0.2.1", "192.0.2.2"], dial, close))


def test_a_refused_connection_is_named() -> None:
    with pytest.raises(Unreachable, match=r"api\.home\.lab:\d+ refused the connection"):
        asked(f"http://api.home.lab:{closed_port()}", Names(["127.0.0.1"]))


def test_a_certificate_is_judged_by_the_name_not_the_address(tmp_path: Path) -> None:
    pki = Pki.make(tmp_path)
    with http_site({"/": (200, {}, b"hi")}, tls=pki.good) as site:
        names, trust = Names(["127.0.0.1"]), {"cert_path": str(pki.authority.pem)}
        assert asked(f"https://localhost:{site.port}", names, connection=trust)[0].status == 200
        with pytest.raises(TlsFailed, match="not to be trusted"):
            asked(f"https://api.home.lab:{site.port}", names, connection=trust)
