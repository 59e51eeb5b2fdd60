"""Engines that are missing, hang, go away or come back; TLS, right and wrong."""

import asyncio
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from systemmanager.executors.docker_client import MOST_THREADS, Client, Exchange, forget
from systemmanager.target import Target
from tests.real.docker_calls import answer, failure
from tests.real.engine import Containers, Engine
from tests.support import OPERATOR, call, real_gateway, run, target

Serve = Callable[[socket.socket], None]


@contextmanager
def listening(serve: Serve, path: Path | None = None, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that gives each connection to `serve`; its address as a Docker URL."""
    server = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    server.bind(str(path) if path else ("127.0.0.1", 0))
    server.listen(64)
    server.settimeout(0.1)
    stopped = threading.Event()
    threads: list[threading.Thread] = []
    open_ones: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(20)
            if tls:
                with tls.wrap_socket(connection, server_side=True) as wrapped:
                    open_ones.append(wrapped)
                    serve(wrapped)
            else:
                open_ones.append(connection)
                serve(connection)

    def accept() -> None:
        while not stopped.is_set():
            with suppress(TimeoutError):
                threads.append(threading.Thread(target=one, args=(server.accept()[0],)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"unix://{path}" if path else f"tcp://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stopped.set()
        acceptor.join()
        server.close()
        for connection in open_ones:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        if path:
            path.unlink()


def relay(engine: Engine) -> Serve:
    """Passes a connection on to the engine's socket, in one thread: OpenSSL lets no two use one TLS connection."""

    def serve(connection: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as up:
            up.connect(engine.socket)
            while ready := _readable(connection, up):
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (up if source is connection else connection).sendall(data)

    return serve


def _readable(connection: socket.socket, up: socket.socket) -> list[socket.socket]:
    """Which of the two have something to read or are at their end; waits for one."""
    if isinstance(connection, ssl.SSLSocket) and connection.pending():
        return [connection]
    return select.select([connection, up], [], [])[0]


def at(url: str, **connection: Any) -> Target:
    """A docker target at this address."""
    if url.startswith("unix://"):
        return target("host-01", "docker", connection={"socket_path": url.removeprefix("unix://")})
    return target("host-01", "docker", connection={"host": url, **connection})


def list_error(tmp_path: Path, where: Target) -> dict[str, Any]:
    return failure(tmp_path, "get_container_list", {}, where)


# --- TLS -------------------------------------------------------------------------------------------------------------


class Authority:
    """Signs certificates into folders as Docker's clients have them: ca.pem, cert.pem, key.pem."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        self._folder = folder
        self.pem = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def folder(self, name: str, host: str = "127.0.0.1") -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([_alternative(host)])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "ca.pem").write_bytes(self.pem)
        (folder / "cert.pem").write_bytes(self._sign(subject, key, names))
        (folder / "key.pem").write_bytes(pem)
        return folder


def _alternative(host: str) -> x509.GeneralName:
    from ipaddress import ip_address

    return x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)


def mutual(folder: Path) -> ssl.SSLContext:
    """As an engine with --tlsverify: it shows this certificate and asks for one of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_every_docker_tool_works_over_tcp_with_tls(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "own")
    name = containers("echo hello; exec sleep 60", stop_timeout=0)
    with listening(relay(engine), tls=mutual(authority.folder("engine"))) as url:
        where = at(url, cert_path=str(authority.folder("gateway")))
        listed = answer(tmp_path, "get_container_list", {}, where)
        assert name in {row["name"] for row in listed["containers"]}
        logs = answer(tmp_path, "manage_container", {"action": "logs", "name_or_id": name}, where)
        assert logs["logs"] == "hello"
        stopped = answer(tmp_path, "manage_container", {"action": "stop", "name_or_id": name}, where)
        assert stopped["state"] == "exited"
        assert answer(tmp_path, "list_docker_images", {}, where)["total"] >= 1
        assert answer(tmp_path, "get_docker_networks", {}, where)["total"] >= 3
        assert answer(tmp_path, "health_check", {}, where)["answered"]["engine"]


def test_tls_that_does_not_hold_is_told_apart(engine: Engine, tmp_path: Path) -> None:
    own, foreign = Authority(tmp_path / "own"), Authority(tmp_path / "foreign")
    good, stranger = own.folder("gateway"), foreign.folder("gateway")
    with listening(relay(engine), tls=mutual(own.folder("engine"))) as url:
        unknown = list_error(tmp_path, at(url, cert_path=str(stranger)))
        assert unknown["code"] == "engine_unavailable" and not unknown["retryable"]
        assert "TLS" in unknown["message"] and "ca.pem" in unknown["hint"]
        (stranger / "ca.pem").write_bytes(own.pem)
        refused = list_error(tmp_path, at(url, cert_path=str(stranger)))
        assert "TLS" in refused["message"] and "cert.pem" in refused["hint"], refused
        plain = list_error(tmp_path, at(url, tls_verify=False))
        assert plain["code"] == "engine_unavailable"
        (good / "key.pem").unlink()
        missing = list_error(tmp_path, at(url, cert_path=str(good)))
        assert missing["code"] == "not_configured" and "key.pem" in missing["message"]
    with listening(relay(engine), tls=mutual(own.folder("other", "engine.lan"))) as url:
        wrong = list_error(tmp_path, at(url, cert_path=str(own.folder("gateway2"))))
        assert "TLS" in wrong["message"] and "host name" in wrong["hint"]
    with listening(relay(engine)) as url:
        speaks_none = list_error(tmp_path, at(url, cert_path=str(own.folder("gateway3"))))
        assert "TLS" in speaks_none["message"], speaks_none


# --- engines that fail -----------------------------------------------------------------------------------------------


def test_a_missing_or_dead_socket_says_what_to_do(tmp_path: Path) -> None:
    missing = list_error(tmp_path, at(f"unix://{tmp_path}/none.sock"))
    assert missing["code"] == "engine_unavailable" and str(tmp_path) in missing["message"] and missing["hint"]
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(dead))
    refused = list_error(tmp_path, at(f"unix://{dead}"))
    assert refused["code"] == "engine_unavailable" and refused["retryable"] and "listens" in refused["message"]
    nobody = list_error(tmp_path, at("tcp://127.0.0.1:9", tls_verify=False))
    assert nobody["code"] == "engine_unavailable"


def test_something_that_is_no_engine_is_told(tmp_path: Path) -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    def garbage(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"\0\1\2 what?\r\n\r\n")

    with listening(http, tmp_path / "h.sock") as url:
        assert list_error(tmp_path, at(url))["code"] == "unreadable_output"
    with listening(garbage, tmp_path / "g.sock") as url:
        assert list_error(tmp_path, at(url))["code"] in ("engine_unavailable", "unreadable_output")


def test_an_engine_that_hangs_costs_no_more_than_the_deadline(engine: Engine, tmp_path: Path) -> None:
    hold = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(65536)
        hold.wait(20)

    with listening(hang, tmp_path / "hang.sock") as url:
        dead = target("dead", "docker", connection=at(url).connection, constraints={"timeout": 1.5})
        live = target("live", "docker", connection={"socket_path": engine.socket})
        started = time.monotonic()
        reply = call(tmp_path, "get_container_list", {"targets": ["dead", "live"]}, dead, live)
        results = {result["target"]: result for result in reply["results"]}
        assert results["live"]["ok"] and results["live"]["elapsed_ms"] < 1000
        assert results["dead"]["error"]["code"] in ("engine_unavailable", "deadline_exceeded")
        assert time.monotonic() - started < 5
        hold.set()


def test_threads_for_an_engine_that_hangs_are_bounded(tmp_path: Path) -> None:
    hold = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(65536)
        hold.wait(20)

    async def work(url: str) -> list[Any]:
        client = Client(url)
        asking = [client.ask(Exchange(time.monotonic() + 2), "GET", "/info") for _ in range(MOST_THREADS + 8)]
        try:
            return await asyncio.gather(*asking, return_exceptions=True)
        finally:
            client.close()

    with listening(hang, tmp_path / "hang.sock") as url:
        failed = run(work(url))
        hold.set()
    assert all(error.code == "engine_unavailable" for error in failed)
    assert sum("requests wait" in error.message for error in failed) == 8


def test_an_engine_that_goes_away_in_an_answer_is_an_error(tmp_path: Path) -> None:
    def cut(connection: socket.socket) -> None:
        asked = connection.recv(65536)
        if b"/version" in asked:
            body = b'{"ApiVersion": "1.41"}'
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            asked = connection.recv(65536)
        if b"/start" in asked:
            return
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{"Id": ')

    with listening(cut, tmp_path / "cut.sock") as url:
        assert list_error(tmp_path, at(url))["code"] == "engine_unavailable"
        error = failure(tmp_path, "manage_container", {"action": "start", "name_or_id": "web"}, at(url))
        assert error["code"] == "connection_lost" and "not known" in error["hint"]


def test_a_kept_client_recovers_when_the_engine_comes_back(
    engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    path = tmp_path / "engine.sock"
    containers(start=False)

    async def work() -> list[bool]:
        seen = []
        async with AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(real_gateway(tmp_path, at(f"unix://{path}")))
            for running in (True, False, True):
                served = listening(relay(engine), path) if running else None
                if served:
                    await asyncio.to_thread(served.__enter__)
                reply = await gateway.call(OPERATOR, "get_container_list", {"target": "host-01"})
                seen.append(reply.ok)
                if served:
                    await asyncio.to_thread(served.__exit__, None, None, None)
        return seen

    assert run(work()) == [True, False, True]
    forget()
