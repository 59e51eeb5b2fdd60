"""Real servers on loopback for network tests: HTTP, TLS with good and bad certificates, DNS, and rude TCP servers."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# --- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Issued:
    """A certificate with its key in one PEM file."""

    pem: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        return context


def issue(
    path: Path, *names: str, by: Issued | None = None, days: tuple[int, int] = (-10, 90), authority: bool = False
) -> Issued:
    """Make a certificate for names and addresses, in force from and until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    issuer_key = by.key if by else key
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    certificate = builder.sign(issuer_key, hashes.SHA256())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return Issued(path, key, certificate)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Pki:
    """An authority of our own, and certificates that are good or bad in one way each."""

    authority: Issued
    good: Issued
    expired: Issued
    future: Issued
    wrong_name: Issued
    self_signed: Issued

    @classmethod
    def make(cls, folder: Path) -> "Pki":
        here = ("localhost", "127.0.0.1", "::1")
        authority = issue(folder / "ca.pem", "Test Authority", authority=True)
        return cls(
            authority,
            good=issue(folder / "good.pem", *here, by=authority),
            expired=issue(folder / "expired.pem", *here, by=authority, days=(-90, -3)),
            future=issue(folder / "future.pem", *here, by=authority, days=(5, 90)),
            wrong_name=issue(folder / "wrong.pem", "shop.example", "*.shop.example", by=authority),
            self_signed=issue(folder / "self.pem", *here),
        )


# --- HTTP and rude servers --------------------------------------------------------------------------------------------

Page = tuple[int, Mapping[str, str], bytes]


@dataclass
class Site:
    """A running HTTP server; `seen` are method, path and headers of each request."""

    port: int
    seen: list[tuple[str, str, dict[str, str]]]


@contextmanager
def http_site(
    pages: Mapping[str, Page | Callable[[BaseHTTPRequestHandler], None]], tls: Issued | None = None
) -> Iterator[Site]:
    """Serve fixed answers by path; a path that is not there is 404. A page may be a function that writes the socket."""
    seen: list[tuple[str, str, dict[str, str]]] = []

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            page = pages.get(self.path, (404, {}, b"no such page"))
            self.close_connection = True
            with suppress(OSError):
                if callable(page):
                    page(self)
                    return
                status, headers, body = page
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_OPTIONS = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away, or refuses our certificate, is what some tests want."""

    server = Server(("127.0.0.1", 0), Answering)
    if tls is not None:
        server.socket = tls.context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with server, _running(lambda: server.serve_forever(0.02), server.shutdown):
        yield Site(server.server_port, seen)


@contextmanager
def _running(work: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(10)


@contextmanager
def tcp_site(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that treats each connection as `behave` says; answers its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                behave(connection)

    def stop() -> None:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    with _running(serve, stop):
        yield listener.getsockname()[1]


def silent(connection: socket.socket) -> None:
    """Say nothing until the other side goes."""
    while connection.recv(65536):
        pass


@contextmanager
def filtered_port() -> Iterator[int]:
    """A port whose queue is full, so that the kernel drops what comes: as behind a firewall."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    waiting = [socket.socket() for _ in range(3)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(address)
    try:
        yield address[1]
    finally:
        for one in (*waiting, listener):
            one.close()


def closed_port() -> int:
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# --- DNS --------------------------------------------------------------------------------------------------------------

Zone = Mapping[tuple[str, str], list[str] | Callable[[], list[str]]]

ZONE: Zone = {
    ("web.test.", "A"): ["192.0.2.10", "192.0.2.9"],
    ("web.test.", "AAAA"): ["2001:db8::10"],
    ("www.test.", "CNAME"): ["edge.test."],
    ("edge.test.", "CNAME"): ["web.test."],
    ("test.", "MX"): ["20 backup.test.", "10 mail.test."],
    ("test.", "TXT"): ['"v=spf1 " "-all"'],
    ("test.", "NS"): ["ns1.test."],
    ("test.", "SOA"): ["ns1.test. root.test. 7 7200 3600 1209600 300"],
    ("test.", "CAA"): ['0 issue "ca.test"'],
    ("_ldap._tcp.test.", "SRV"): ["0 5 389 dc1.test."],
    ("10.2.0.192.in-addr.arpa.", "PTR"): ["web.test."],
    ("big.test.", "TXT"): [f'"{number:03} {"x" * 200}"' for number in range(20)],
}


@dataclass
class Resolver:
    """A running name server; `asked` are the transports and names of its questions."""

    port: int
    address: str
    asked: list[tuple[str, str]]
    resolv_conf: Path


def _reply(wire: bytes, transport: str, mood: str, zone: Zone) -> bytes:
    query = dns.message.from_wire(wire)
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.RA
    question = query.question[0]
    name, kind = question.name, dns.rdatatype.to_text(question.rdtype)
    if mood == "servfail":
        reply.set_rcode(dns.rcode.SERVFAIL)
        return reply.to_wire()
    while True:
        for wanted in dict.fromkeys((kind, "CNAME")):
            found = zone.get((name.to_text().lower(), wanted), [])
            if texts := found() if callable(found) else found:
                reply.answer.append(dns.rrset.from_text_list(name, 300, "IN", wanted, texts))
                break
        else:
            break
        if wanted == kind:
            break
        name = dns.name.from_text(texts[0])
    if not reply.answer and not any(known == name.to_text().lower() for known, _ in zone):
        reply.set_rcode(dns.rcode.NXDOMAIN)
    full = reply.to_wire(max_size=65535)
    if transport == "udp" and len(full) > 1232:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire()
    return full


@contextmanager
def resolver(
    folder: Path, *, mood: str = "", address: str = "127.0.0.1", zone: Zone = ZONE, port: int = 0
) -> Iterator[Resolver]:
    """A name server for `zone` by UDP and TCP on one port. Moods: `servfail`; `mute`, by UDP; `garbage`; `other`,
    which answers another question by UDP."""
    tcp = socket.create_server((address, port))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, port))
    asked: list[tuple[str, str]] = []

    def by_udp() -> None:
        while True:
            wire, client = udp.recvfrom(4096)
            if wire == b"stop":
                return
            asked.append(("udp", dns.message.from_wire(wire).question[0].name.to_text()))
            if mood == "other":
                udp.sendto(b"\x00\x00" + _reply(wire, "udp", mood, zone)[2:], client)
            elif mood != "mute":
                udp.sendto(b"\x00" * 3 if mood == "garbage" else _reply(wire, "udp", mood, zone), client)

    def by_tcp() -> None:
        while True:
            connection, _ = tcp.accept()
            with connection, suppress(OSError):
                if (head := connection.recv(2, socket.MSG_WAITALL)) == b"\x00\x00":
                    return
                wire = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                asked.append(("tcp", dns.message.from_wire(wire).question[0].name.to_text()))
                reply = b"\x01\x02\x03" if mood == "garbage" else _reply(wire, "tcp", mood, zone)
                connection.sendall(len(reply).to_bytes(2, "big") + reply)

    def stop() -> None:
        udp.sendto(b"stop", (address, port))
        with socket.create_connection((address, port)) as last:
            last.sendall(b"\x00\x00")

    resolv_conf = folder / f"resolv-{port}.conf"
    resolv_conf.write_text(f"# made by a test\nsearch lan\nnameserver {address}\noptions timeout:2 attempts:1\n")
    with tcp, udp, _running(by_tcp, lambda: None), _running(by_udp, stop):
        yield Resolver(port, address, asked, resolv_conf)
