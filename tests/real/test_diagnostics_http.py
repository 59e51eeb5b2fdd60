"""One HTTP request to real servers: what is shown, what is cut, what is refused before anything is sent."""

import gzip
import socket
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.real.sites import closed_port, http_site, silent, tcp_site
from tests.real.test_diagnostics import LOCAL, answer, error
from tests.support import call, principal, real_gateway, run, target

TEST = "http_request_test"


def test_status_headers_and_the_beginning_of_the_body_are_shown(tmp_path: Path) -> None:
    page = (200, {"Content-Type": "text/html", "Set-Cookie": "session=secret", "ETag": '"1"'}, b"<h1>hello</h1>")
    with http_site({"/a?b=c": page}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/a?b=c")
    assert (data["status"], data["version"], data["body"], data["size"]) == (200, "HTTP/1.1", "<h1>hello</h1>", 14)
    assert data["headers"]["content-type"] == "text/html" and data["headers"]["etag"] == '"1"'
    assert "set-cookie" not in data["headers"] and "truncated" not in data and "tls" not in data
    assert 0 <= data["ms"]["connect"] <= data["ms"]["total"] and data["ms"]["first_byte"] > 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_the_method_is_sent_without_body_cookie_or_credential(tmp_path: Path, method: str) -> None:
    with http_site({"/": (200, {}, b"")}) as site:
        assert answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}", method=method)["status"] == 200
    ((seen, path, headers),) = site.seen
    assert (seen, path, headers["host"]) == (method, "/", f"127.0.0.1:{site.port}")
    assert set(headers) <= {"host", "user-agent", "accept", "accept-encoding", "connection", "content-length"}
    assert headers.get("content-length", "0") == "0"


def test_a_redirect_is_shown_and_not_followed(tmp_path: Path) -> None:
    with http_site({"/": (302, {"Location": "/inside"}, b""), "/inside": (200, {}, b"in")}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")
    assert (data["status"], data["location"]) == (302, "/inside")
    assert [path for _, path, _ in site.seen] == ["/"]


def test_no_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_site({}) as proxy, http_site({"/": (200, {}, b"direct")}) as site:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")["body"] == "direct"
    assert proxy.seen == []


def test_an_error_status_is_an_answer(tmp_path: Path) -> None:
    with http_site({"/": (503, {"Retry-After": "5"}, b"down")}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")
    assert data["status"] == 503 and data["headers"]["retry-after"] == "5"


def endless(page: BaseHTTPRequestHandler) -> None:
    page.send_response(200)
    page.send_header("Content-Type", "text/plain")
    page.end_headers()
    while True:
        page.wfile.write(b"x" * 65536)


def dripping(page: BaseHTTPRequestHandler) -> None:
    page.send_response(200)
    page.end_headers()
    page.wfile.write(b"first drop")
    page.wfile.flush()
    page.rfile.read(1)


def test_a_body_without_end_is_cut_at_the_bound(tmp_path: Path) -> None:
    small = target("local", constraints={"max_output_bytes": 100_000})
    with http_site({"/": endless}) as site:
        reply = call(tmp_path, TEST, {"url": f"http://127.0.0.1:{site.port}/"}, small)
    data = reply["results"][0]["data"]
    assert data["truncated"] is True and 100_000 <= data["size"] < 300_000 and len(data["body"]) == 2048


def test_a_body_that_drips_is_cut_at_the_timeout(tmp_path: Path) -> None:
    with http_site({"/": dripping}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/", timeout=0.5)
    assert data["truncated"] is True and data["body"] == "first drop" and data["ms"]["total"] < 3000
    assert data["note"] == "It was not all there after 0.5 s."


def test_a_zip_bomb_unpacks_no_further_than_the_bound(tmp_path: Path) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    with http_site({"/": (200, {"Content-Encoding": "gzip", "Content-Type": "text/plain"}, bomb)}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")
    assert data["truncated"] is True and data["body"] == "0" * 2048 and data["size"] <= len(bomb)


def test_what_is_no_text_has_no_preview(tmp_path: Path) -> None:
    with http_site({"/": (200, {"Content-Type": "image/png"}, b"\x89PNG\x00\x00" + bytes(range(256)))}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")
    assert "body" not in data and data["size"] == 262 and data["note"] == "The body is not text."


def test_a_body_that_breaks_off_has_still_a_status(tmp_path: Path) -> None:
    with http_site({"/": (200, {"Content-Length": "100"}, b"half")}) as site:
        data = answer(tmp_path, TEST, url=f"http://127.0.0.1:{site.port}/")
    assert data["status"] == 200 and data["truncated"] is True and data["body"] == "half"


def hang_up(connection: socket.socket) -> None:
    connection.recv(65536)


def mumble(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def banner(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.test ESMTP\r\n")
    silent(connection)


def long_headers(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x-filler: " + b"y" * 1000 + b"\r\n")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (hang_up, "connection_lost"),
        (mumble, "unreadable_output"),
        (banner, "unreadable_output"),
        (long_headers, "unreadable_output"),
        (silent, "deadline_exceeded"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_server_that_answers_no_http_is_a_clear_error(tmp_path: Path, behaviour: Any, code: str) -> None:
    with tcp_site(behaviour) as port:
        found = error(tmp_path, TEST, url=f"http://127.0.0.1:{port}/", timeout=1)
    assert found["code"] == code and "127.0.0.1" in found["message"] and found["hint"]


def test_refused_and_unknown_names_are_clear_errors(tmp_path: Path) -> None:
    assert error(tmp_path, TEST, url=f"http://127.0.0.1:{closed_port()}/")["code"] == "unreachable"
    assert error(tmp_path, TEST, url="http://nosuch.invalid/")["code"] == "dns_failure"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1@evil.test/",
        "http://127.0.0.1\\@evil.test/",
        "http://127.0.0.1/#@evil.test/",
        "http://127.0.0.1/\\..",
        "http://2852039166/",
        "http://0x7f000001/",
        "http://0177.0.0.1x/..%0d%0a /",
        "http://127.1/",
        "http://１２７.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:80:80/",
        "http://[::1/",
        "http://-oProxy/",
        "http:/127.0.0.1/",
        "//127.0.0.1/",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nHost: evil",
        "http://",
        "http://127.0.0.1/\u2028",
        "HTTP://127.0.0.1/" + "x" * 3000,
    ],
)
def test_a_url_that_could_be_read_two_ways_is_refused(tmp_path: Path, url: str) -> None:
    assert error(tmp_path, TEST, url=url)["code"] == "invalid_arguments"


def test_it_needs_an_approval_and_without_one_nothing_is_sent(tmp_path: Path) -> None:
    async def ask(url: str) -> dict[str, Any]:
        async with real_gateway(tmp_path, LOCAL) as gateway:
            return (await gateway.call(principal("network:diag"), TEST, {"url": url})).as_dict()

    with http_site({}) as site:
        reply = run(ask(f"http://127.0.0.1:{site.port}/"))
    assert reply["results"][0]["error"]["code"] == "approval_required"
    assert site.seen == []


def test_policy_judges_the_host_that_is_asked(tmp_path: Path) -> None:
    narrow = target("local", constraints={"hosts": ["127.0.0.2"], "ports": [80]})
    with http_site({}) as site:
        reply = call(tmp_path, TEST, {"url": f"http://127.0.0.1:{site.port}/"}, narrow)
        assert reply["results"][0]["error"]["code"] == "host_not_allowed"
        reply = call(tmp_path, TEST, {"url": f"http://127.0.0.2:{site.port}/"}, narrow)
        assert reply["results"][0]["error"]["code"] == "port_not_allowed"
    assert site.seen == []
