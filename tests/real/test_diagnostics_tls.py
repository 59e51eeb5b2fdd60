"""Certificates of real TLS servers on loopback: good, and bad in one way each."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from systemmanager.errors import Unreachable
from systemmanager.executors import web
from systemmanager.operations import certificates
from tests.real.sites import Pki, closed_port, http_site, silent, tcp_site
from tests.real.test_diagnostics import answer, error
from tests.support import run


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def trust(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's trust store holds our authority and nothing else."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.authority.pem))
    web.trusted.cache_clear()
    certificates._trusting.cache_clear()
    yield
    web.trusted.cache_clear()
    certificates._trusting.cache_clear()


def check(tmp_path: Path, pki: Pki, kind: str, host: str = "127.0.0.1") -> dict[str, Any]:
    with http_site({}, tls=getattr(pki, kind)) as site:
        return answer(tmp_path, "check_ssl_certificate", host=host, port=site.port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_good_certificate_is_valid(tmp_path: Path, pki: Pki, host: str) -> None:
    data = check(tmp_path, pki, "good", host)
    assert data["valid"] is True and "problems" not in data and "reason" not in data
    assert data["issuer"] == "Test Authority" and data["subject"] == "localhost"
    assert data["names"] == ["localhost", "127.0.0.1", "::1"]
    assert data["days_left"] == 89 and data["protocol"] == "TLSv1.3" and data["key"] == "EC secp256r1"
    assert data["chain_length"] == 1 and len(data["sha256"]) == 64


@pytest.mark.parametrize(
    ("kind", "problems"),
    [
        ("expired", ["expired"]),
        ("future", ["not_yet_valid"]),
        ("wrong_name", ["wrong_name"]),
        ("self_signed", ["self_signed"]),
    ],
)
def test_a_bad_certificate_is_an_answer(tmp_path: Path, pki: Pki, kind: str, problems: list[str]) -> None:
    data = check(tmp_path, pki, kind)
    assert data["valid"] is False and data["problems"] == problems
    assert data["reason"]
    assert (data["days_left"] < 0) == (kind == "expired")


def test_an_issuer_that_nobody_trusts_is_named(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.self_signed.pem))
    certificates._trusting.cache_clear()
    assert check(tmp_path, pki, "good")["problems"] == ["unknown_issuer"]
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.self_signed.pem))
    everything = check(tmp_path, pki, "expired", "localhost")
    assert set(everything["problems"]) == {"expired", "unknown_issuer"}, "OpenSSL names only the first"


def test_the_old_protocol_is_a_problem(tmp_path: Path, pki: Pki) -> None:
    def speak(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.good.pem)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with tcp_site(speak) as port:
        data = answer(tmp_path, "check_ssl_certificate", host="127.0.0.1", port=port)
    assert data["valid"] is False and data["problems"] == ["weak_protocol"] and data["protocol"] == "TLSv1.1"


def test_what_is_no_tls_is_an_error_that_says_so(tmp_path: Path) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.test ESMTP\r\n")
        silent(connection)

    with tcp_site(greet) as port:
        found = error(tmp_path, "check_ssl_certificate", host="127.0.0.1", port=port)
    assert found["code"] == "tls_failed" and "Is it a TLS port?" in found["hint"]
    with tcp_site(lambda connection: None) as port:
        found = error(tmp_path, "check_ssl_certificate", host="127.0.0.1", port=port)
    assert found["code"] in ("tls_failed", "connection_lost") and "Is it a TLS port?" in found["hint"]
    found = error(tmp_path, "check_ssl_certificate", host="127.0.0.1", port=closed_port())
    assert found["code"] == "unreachable"


def test_a_host_that_never_accepts_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "HANDSHAKE", 0.05)

    class Silent:
        async def connect(self, host: str, port: int, timeout: float) -> Any:
            await anyio.sleep(timeout)
            raise Unreachable(f"{host}:{port} did not answer within {timeout:g} s")

    with pytest.raises(Unreachable, match="did not answer"):
        run(certificates.check_ssl_certificate(Silent(), "silent.example"))  # type: ignore[arg-type]


def test_a_server_that_never_shakes_hands_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "HANDSHAKE", 0.5)
    with tcp_site(silent) as port:
        found = error(tmp_path, "check_ssl_certificate", host="127.0.0.1", port=port)
    assert found["code"] == "deadline_exceeded" and "handshake" in found["message"]


@pytest.mark.parametrize(
    ("name", "host", "covered"),
    [
        ("*.shop.example", "www.shop.example", True),
        ("*.shop.example", "WWW.Shop.example.", True),
        ("*.shop.example", "shop.example", False),
        ("*.shop.example", "a.b.shop.example", False),
        ("*.example", "www.example", False),
        ("www.shop.example", "www.shop.example", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("127.0.0.1", "localhost", False),
    ],
)
def test_a_wildcard_stands_for_one_label(name: str, host: str, covered: bool) -> None:
    assert certificates._covers(name, host) is covered


def test_http_over_tls_tells_protocol_and_timing(tmp_path: Path, pki: Pki) -> None:
    with http_site({"/": (200, {}, b"hello")}, tls=pki.good) as site:
        data = answer(tmp_path, "http_request_test", url=f"https://localhost:{site.port}/")
    assert data["status"] == 200 and data["tls"]["protocol"] == "TLSv1.3" and data["body"] == "hello"
    assert 0 < data["ms"]["tls"] < data["ms"]["total"]


@pytest.mark.parametrize("kind", ["expired", "self_signed", "wrong_name"])
def test_http_to_a_bad_certificate_is_an_error_and_nothing_is_asked(tmp_path: Path, pki: Pki, kind: str) -> None:
    with http_site({}, tls=getattr(pki, kind)) as site:
        found = error(tmp_path, "http_request_test", url=f"https://127.0.0.1:{site.port}/")
    assert found["code"] == "tls_failed" and "check_ssl_certificate" in found["hint"]
    assert site.seen == []


def test_https_to_a_port_that_speaks_http_is_said(tmp_path: Path) -> None:
    with http_site({}) as site:
        found = error(tmp_path, "http_request_test", url=f"https://127.0.0.1:{site.port}/")
    assert found["code"] == "tls_failed" and "does not speak TLS" in found["message"]
