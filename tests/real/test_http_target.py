"""HTTP targets over real servers: health, credentials, origins, bounds, faults."""

import gzip
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from systemmanager.errors import GatewayError
from systemmanager.executors import Surroundings
from systemmanager.executors.http import HttpApi, HttpExecutor, below_base
from systemmanager.ports import HttpAnswer
from systemmanager.request import Permit
from systemmanager.target import Target
from tests.real.sites import Pki, closed_port, http_site, silent, tcp_site
from tests.support import call, permitted, run, target

SECRET = "s3cret-of-the-api"
BEARER = {"type": "bearer", "token": SECRET}


def api(port: int, *, scheme: str = "http", path: str = "", **connection: Any) -> Target:
    return target("api", "http", connection={"base_url": f"{scheme}://127.0.0.1:{port}{path}", **connection})


def health(tmp_path: Path, one: Target) -> dict[str, Any]:
    result: dict[str, Any] = call(tmp_path, "health_check", {"target": "api"}, one)["results"][0]
    return result


def permit(one: Target) -> Permit:
    return permitted("health_check", one)


def request(one: Target, path: str, method: str = "GET") -> HttpAnswer:
    async def work() -> HttpAnswer:

        executor = HttpExecutor(Surroundings(Path("/nonexistent")))
        try:
            async with AsyncExitStack() as stack:
                port: HttpApi = await executor.open(permit(one), "Http", stack)
                return await port.request(method, path)
        finally:
            await executor.aclose()

    return run(work())


@pytest.mark.parametrize("status", [200, 204, 302, 404, 429])
def test_a_server_that_answers_is_healthy(tmp_path: Path, status: int) -> None:
    with http_site({"/api/health": (status, {"Location": "http://elsewhere.test/"}, b"")}) as site:
        result = health(tmp_path, api(site.port, path="/api", health_path="/health"))
    assert result["ok"] and result["data"]["answered"]["status"] == str(status)


@pytest.mark.parametrize(("status", "code"), [(401, "auth_refused"), (403, "auth_refused"), (500, "server_failed")])
def test_refused_credentials_and_failures_are_told_apart(tmp_path: Path, status: int, code: str) -> None:
    with http_site({"/": (status, {}, b"")}) as site:
        error = health(tmp_path, api(site.port, auth=BEARER))["error"]
    assert error["code"] == code and str(status) in error["message"] and SECRET not in str(error)


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (BEARER, "authorization", f"Bearer {SECRET}"),
        ({"type": "basic", "username": "ops", "password": "p:w"}, "authorization", "Basic b3BzOnA6dw=="),
        ({"type": "header", "name": "X-Api-Key", "value": SECRET}, "x-api-key", SECRET),
    ],
    ids=["bearer", "basic", "header"],
)
def test_the_credentials_go_with_each_request(auth: dict[str, str], header: str, value: str) -> None:
    with http_site({"/": (200, {}, b"")}) as site:
        request(api(site.port, auth=auth), "/")
    assert site.seen[0][2][header] == value


def test_redirects_are_followed_on_the_own_origin_only(tmp_path: Path) -> None:
    with http_site({"/": (200, {}, b"theirs")}) as other:
        pages = {
            "/a": (301, {"Location": "/b"}, b""),
            "/b": (307, {"Location": "c"}, b""),
            "/c": (200, {}, b"here"),
            "/off": (302, {"Location": f"http://127.0.0.1:{other.port}/"}, b""),
            "/name": (302, {"Location": "http://localhost/"}, b""),
            "/tls": (302, {"Location": "https://127.0.0.1/"}, b""),
            "/loop": (302, {"Location": "/loop"}, b""),
        }
        with http_site(pages) as site:
            one = api(site.port, auth=BEARER)
            assert request(one, "/a").body == b"here"
            for path in ("/off", "/name", "/tls"):
                assert request(one, path).status == 302
            assert request(one, "/a", "POST").status == 301
            with pytest.raises(GatewayError) as caught:
                request(one, "/loop")
    assert caught.value.code == "server_failed" and other.seen == []
    assert sum(path == "/loop" for _, path, _ in site.seen) == 6


def test_a_cookie_of_a_server_is_not_kept() -> None:
    with http_site({"/": (302, {"Location": "/next", "Set-Cookie": "a=b"}, b""), "/next": (200, {}, b"")}) as site:
        request(api(site.port), "/")
    assert [headers.get("cookie") for _, _, headers in site.seen] == [None, None]


def test_no_proxy_of_the_environment_sees_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_site({}) as proxy, http_site({"/": (200, {}, b"direct")}) as site:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert request(api(site.port, auth=BEARER), "/").body == b"direct"
    assert proxy.seen == []


OUTWARD = """
|x|//evil.test/|/../x|/a/..|/%2e%2e/x|/%252e%252e/x|/.|/a\\b|/%5c..|@evil.test/
:80/|/a b|/#x|/%2f/evil|/é|http://evil.test/
"""


@pytest.mark.parametrize("path", [*re.split(r"[|\n]", OUTWARD.strip()), "", "/a\r\nX: y"])
def test_a_path_that_could_lead_out_is_refused(path: str) -> None:
    with pytest.raises(GatewayError) as caught:
        below_base(path)
    assert caught.value.code == "invalid_arguments"


@pytest.mark.parametrize("path", ["/", "/a/b", "/a?x=../y", "/@user", "/a..b", "/v1/q?u=http://x/"])
def test_a_plain_path_is_sent_as_it_is(path: str) -> None:
    assert below_base(path) == path


def endless(page: BaseHTTPRequestHandler) -> None:
    page.send_response(200)
    page.end_headers()
    while True:
        page.wfile.write(b"x" * 65536)


def test_a_body_is_cut_at_the_bound_of_the_target() -> None:
    pages: dict[str, Any] = {
        "/endless": endless,
        "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"0" * 20_000_000)),
    }
    with http_site(pages) as site:
        one = target(
            "api",
            "http",
            connection={"base_url": f"http://127.0.0.1:{site.port}"},
            constraints={"max_output_bytes": 10_000},
        )
        for path in pages:
            answer = request(one, path)
            assert answer.truncated and len(answer.body) == 10_000


def hang_up(connection: Any) -> None:
    connection.recv(65536)


def mumble(connection: Any) -> None:
    connection.recv(65536)
    connection.sendall(b"garbage\r\n\r\n")
    silent(connection)


@pytest.mark.parametrize(("behaviour", "code"), [(hang_up, "connection_lost"), (mumble, "unreadable_output")])
def test_a_server_that_speaks_no_http_is_a_clear_error(tmp_path: Path, behaviour: Any, code: str) -> None:
    with tcp_site(behaviour) as port:
        error = health(tmp_path, api(port, auth=BEARER))["error"]
    assert error["code"] == code and SECRET not in str(error)


def test_a_server_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    assert health(tmp_path, api(closed_port()))["error"]["code"] == "unreachable"
    nowhere = target("api", "http", connection={"base_url": "http://nosuch.invalid"})
    assert health(tmp_path, nowhere)["error"]["code"] == "dns_failure"


def test_a_server_that_never_answers_ends_with_the_deadline(tmp_path: Path) -> None:
    with tcp_site(silent) as port:
        one = target("api", "http", connection={"base_url": f"http://127.0.0.1:{port}"}, constraints={"timeout": 0.5})
        result = health(tmp_path, one)
    assert result["error"]["code"] == "deadline_exceeded" and result["elapsed_ms"] < 2000


def test_a_credential_with_a_line_break_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValidationError):
        api(closed_port(), auth={"type": "bearer", "token": f"{SECRET}\r\nX: y"})


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pki]:
    yield Pki.make(tmp_path_factory.mktemp("pki"))


def test_certificates_are_judged_by_the_targets_own_authority(tmp_path: Path, pki: Pki) -> None:
    with http_site({"/": (200, {}, b"")}, tls=pki.good) as site:
        unknown = api(site.port, scheme="https", auth=BEARER)
        known = api(site.port, scheme="https", cert_path=str(pki.authority.pem))
        unchecked = api(site.port, scheme="https", tls_verify=False)
        error = health(tmp_path, unknown)["error"]
        assert error["code"] == "tls_failed" and "not to be trusted" in error["message"]
        assert site.seen == [], "no credential goes to whom nobody trusts"
        assert health(tmp_path, known)["ok"]
        assert health(tmp_path, unchecked)["ok"]
        assert health(tmp_path, unknown)["error"]["code"] == "tls_failed", "one target's leniency is not another's"


def test_certificate_files_that_are_none_are_not_configured(tmp_path: Path, pki: Pki) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    for path in ("no.pem", "missing.pem"):
        error = health(tmp_path, api(closed_port(), scheme="https", cert_path=str(tmp_path / path)))["error"]
        assert error["code"] == "not_configured" and path in error["message"]


def test_a_connection_is_kept_between_calls() -> None:
    seen: list[Any] = []

    def page(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.client_address)
        request.close_connection = False
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    async def work(one: Target) -> None:

        executor = HttpExecutor(Surroundings(Path("/nonexistent")))
        for _ in range(3):
            async with AsyncExitStack() as stack:
                await (await executor.open(permit(one), "Http", stack)).request("GET", "/")
        await executor.retire([one])
        await executor.aclose()

    with http_site({"/": page}) as site:
        run(work(api(site.port)))
    assert len(seen) == 3 and len(set(seen)) == 1


@pytest.mark.parametrize(("method", "requests"), [("GET", 3), ("POST", 2)])
def test_a_read_outlives_a_kept_connection_that_the_server_just_closed(method: str, requests: int) -> None:
    heard: list[bytes] = []

    def once(connection: Any) -> None:
        """Answer one request, promise to go on, and hang up on the next one."""
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if more := connection.recv(65536):
            heard.append(more)

    async def work(one: Target) -> HttpAnswer:
        executor = HttpExecutor(Surroundings(Path("/nonexistent")))
        try:
            async with AsyncExitStack() as stack:
                port = await executor.open(permit(one), "Http", stack)
                await port.request("GET", "/")
                return await port.request(method, "/")
        finally:
            await executor.aclose()

    with tcp_site(once) as port:
        if method == "GET":
            assert run(work(api(port))).body == b"ok"
        else:
            with pytest.raises(GatewayError) as caught:
                run(work(api(port)))
            assert caught.value.code == "connection_lost"
    assert len(heard) == requests, "a change is never sent twice"
