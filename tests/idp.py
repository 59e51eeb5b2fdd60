"""A small stand-in for an identity provider, tsidp with its quirks or a hostile one, and signed tokens of any kind."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from systemmanager.server.auth import issuer
from systemmanager.server.auth.oidc import Oidc
from tests.support import tcp_server

NOW = 1_800_000_000
BASE = "https://gateway.test"
CLIENT = ("gateway", "cl:ent s3cret/")
OPAQUE = "0123456789abcdef0123456789abcdef"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- Keys and signed tokens -------------------------------------------------------------------------------------------


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A private key of a kind, made once: RS256, ES256, EdDSA, or one that is too weak or of a wrong curve."""
    if kind == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "ES384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind in ("EdDSA", "Ed25519"):
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if kind == "weak" else 2048)


def jwk(kind: str, kid: str | None, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public half, as a JWKS has it."""
    key = private_key(kind, number).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        public = {"kty": "RSA", "n": encode(numbers.n.to_bytes(size)), "e": encode(numbers.e.to_bytes(3))}
    elif isinstance(key, ec.EllipticCurvePublicKey):
        point, size = key.public_numbers(), (key.key_size + 7) // 8
        curve = {256: "P-256", 384: "P-384"}[key.key_size]
        public = {"kty": "EC", "crv": curve, "x": encode(point.x.to_bytes(size)), "y": encode(point.y.to_bytes(size))}
    else:
        public = {"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_bytes_raw())}
    return {**public, **({"kid": kid} if kid else {}), **more}


def signature(kind: str, key: Any, message: bytes) -> bytes:
    if kind in ("ES256", "ES384"):
        pair = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return b"".join(number.to_bytes(key.key_size // 8) for number in pair)
    if kind in ("EdDSA", "Ed25519"):
        done: bytes = key.sign(message)
        return done
    made: bytes = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return made


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def jwt(iss: str, header: Mapping[str, Any] | None = None, kind: str = "RS256", number: int = 0, **claims: Any) -> str:
    """A good access token of an issuer, with changes; None takes a member away."""
    good = {"alg": kind, "typ": "at+jwt", "kid": kind}
    head = json.dumps(without_none({**good, **(header or {})}))
    body = json.dumps(without_none({**signed_claims(iss), **claims}))
    message = f"{encode(head.encode())}.{encode(body.encode())}"
    return f"{message}.{encode(signature(kind, private_key(kind, number), message.encode()))}"


def signed_claims(iss: Any) -> dict[str, Any]:
    """Claims of an access token (RFC 9068, 2.2)."""
    times = {"iat": NOW - 10, "exp": NOW + 300}
    return {"iss": iss, "aud": BASE, "sub": "u-17", "client_id": "desk", "jti": "j", "scope": "openid", **times}


def tsidp_claims(url: str, /, **changes: Any) -> dict[str, Any]:
    """What tsidp answers about an access token: its user as a number and by login, the client among the audience."""
    return {
        "active": True, "iss": url, "sub": "5141251234", "username": "alice@example.com", "client_id": "desk",
        "aud": ["desk", BASE], "exp": NOW + 300, "iat": NOW, "nbf": NOW - 300, "token_type": "Bearer",
        "scope": "openid email profile", "jti": "j", "preferred_username": "alice", **changes,
    }  # fmt: skip


# --- The provider -----------------------------------------------------------------------------------------------------

Answer = tuple[int, bytes, dict[str, str]] | None
"""Status, body, headers; None: no answer at all."""


def as_json(value: Any, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


@dataclass
class Idp:
    """What the provider knows and how it behaves. `behave` may answer in its place, by path."""

    url: str = ""
    tokens: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(
        default_factory=lambda: [jwk(kind, kind) for kind in ("RS256", "ES256", "EdDSA")]
    )
    metadata: dict[str, Any] = field(default_factory=dict)
    behave: dict[str, Callable[[], Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if path in self.behave:
            return self.behave[path]()
        if path == "/.well-known/openid-configuration":
            ends = {"introspection_endpoint": f"{self.url}/introspect", "jwks_uri": f"{self.url}/jwks"}
            return as_json(without_none({"issuer": self.url, **ends, **self.metadata}))
        if path == "/jwks":
            return as_json({"keys": self.keys})
        if path == "/introspect" and method == "POST":
            token = parse_qs(body.decode()).get("token", [""])[0]
            known = self.tokens.get(token) if headers.get("authorization") == basic() else None
            return as_json(known or {"active": False})
        return as_json({"error": "not_found"}, 404)

    def times(self, path: str) -> int:
        return self.asked.count(path)


def basic() -> str:
    """The gateway's client at the provider: both halves are form-encoded first (RFC 6749, 2.3.1)."""
    return "Basic " + base64.b64encode(b"gateway:cl%3Aent%20s3cret%2F").decode()


@asynccontextmanager
async def provider(idp: Idp) -> AsyncIterator[Idp]:
    """Serve a stand-in on loopback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            method, path, _ = line.decode().split(" ", 2)
            headers = {}
            while (header := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            idp.asked.append(path)
            if idp.gate is not None:
                await idp.gate.wait()
            answer = idp.answer(method, path, headers, body)
            if answer is None:
                await asyncio.Event().wait()
                return
            status, content, more = answer
            more = {"Content-Length": str(len(content)), **more}
            head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
            writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content)
            await writer.drain()

    async with tcp_server(serve) as port:
        idp.url = f"http://127.0.0.1:{port}"
        yield idp


@dataclass
class Moment:
    """Clocks that stand until they are moved."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def verifier(idp: Idp, clock: Callable[[], float] | None = None, **fields: Any) -> AsyncIterator[Oidc]:
    """A verifier of the stand-in's tokens, over a real HTTP client."""
    clock = clock or Moment()
    async with issuer.client() as client:
        asked = issuer.Issuer(idp.url, client, CLIENT, fields.pop("degraded", None), clock)
        audiences = frozenset({BASE, f"{BASE}/", f"{BASE}/mcp"})
        oidc = Oidc(asked, audiences, client_id=CLIENT[0], clock=clock, **fields)
        try:
            yield oidc
        finally:
            await oidc.close()
