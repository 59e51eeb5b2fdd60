"""Bearer tokens: what is accepted, and everything that is not, by the verifier and over HTTP."""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager.request import Grant
from systemmanager.scopes import BUNDLES
from systemmanager.server.auth.identity import Identity
from systemmanager.server.auth.tokens import LEAST_TTL, MOST_TTL, BadToken, Key, Keys, duration, mint, verify
from tests.serving import AUDIENCE, KEYS, OTHER_SECRET, SECRET, served
from tests.support import real_gateway, run, target

NOW = 1_800_000_000
KID = hmac.new(SECRET.encode(), b"systemmanager key id", hashlib.sha256).hexdigest()[:16]
PLAIN = {"alg": "HS256", "typ": "at+jwt", "kid": KID}
HEADER = json.dumps(PLAIN, separators=(",", ":"))


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes one away."""
    good = {
        "iss": "systemmanager",
        "aud": AUDIENCE,
        "sub": "agent",
        "scope": "system:read",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 3600,
        "jti": "0011223344556677",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: Any, payload: Any, key: str = SECRET) -> str:
    """A compact JWS of any header and payload; texts are taken as they are, so that they can be malformed."""
    parts = [one if isinstance(one, str) else json.dumps(one) for one in (header, payload)]
    signed = ".".join(encode(part.encode()) for part in parts)
    return f"{signed}.{encode(hmac.new(key.encode(), signed.encode(), hashlib.sha256).digest())}"


def raw(text: str, **changes: str) -> str:
    """Good claims as text, with members of any spelling added or put in the place of others."""
    body = json.dumps(claims())
    for name, value in changes.items():
        body = body.replace(f'"{name}": {json.dumps(claims()[name])}', f'"{name}": {value}')
    return body[:-1] + text + "}"


GOOD = sign(HEADER, claims())


def flipped(token: str) -> str:
    """The same signature in another spelling: base64 leaves spare bits in the last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


HOSTILE: dict[str, str] = {
    "alg none, no signature": sign({"alg": "none"}, claims()).rpartition(".")[0] + ".",
    "alg none, our signature": sign({**PLAIN, "alg": "none"}, claims()),
    "alg None in another case": sign({**PLAIN, "alg": "nOnE"}, claims()),
    "HS256 with another key": sign(HEADER, claims(), OTHER_SECRET),
    "HS256 with an empty key": sign(HEADER, claims(), ""),
    "alg HS512 named, HS256 signed": sign({**PLAIN, "alg": "HS512"}, claims()),
    "alg RS256 named": sign({**PLAIN, "alg": "RS256"}, claims()),
    "alg as a list": sign({**PLAIN, "alg": ["HS256"]}, claims()),
    "no alg": sign({"typ": "at+jwt"}, claims()),
    "alg twice": sign('{"alg":"none","alg":"HS256","typ":"at+jwt"}', claims()),
    "no typ": sign({"alg": "HS256"}, claims()),
    "typ JWT, an ID token": sign({"alg": "HS256", "typ": "JWT"}, claims()),
    "no kid": sign({"alg": "HS256", "typ": "at+jwt"}, claims()),
    "kid as a path": sign({**PLAIN, "kid": "../../dev/null"}, claims()),
    "kid as an address": sign({**PLAIN, "kid": "http://127.0.0.1:1/key"}, claims()),
    "kid of another key": sign({**PLAIN, "kid": Key.of(OTHER_SECRET).sign("x")[:16]}, claims()),
    "another key and its kid": mint(Keys(AUDIENCE, OTHER_SECRET), "agent", ["system:read"], 3600, now=NOW)[0],
    "our header in another order": sign({"kid": KID, "typ": "at+jwt", "alg": "HS256"}, claims()),
    "our header with a space": sign(PLAIN, claims()),
    "jwk": sign({**PLAIN, "jwk": {"kty": "oct", "k": encode(OTHER_SECRET.encode())}}, claims(), OTHER_SECRET),
    "jku": sign({**PLAIN, "jku": "http://127.0.0.1:1/keys"}, claims()),
    "x5u": sign({**PLAIN, "x5u": "http://127.0.0.1:1/cert"}, claims()),
    "crit unknown": sign({**PLAIN, "crit": ["x"], "x": 1}, claims()),
    "crit empty": sign({**PLAIN, "crit": []}, claims()),
    "b64 false": sign({**PLAIN, "b64": False, "crit": ["b64"]}, claims()),
    "zip": sign({**PLAIN, "zip": "DEF"}, claims()),
    "header is a list": sign("[]", claims()),
    "payload is a list": sign(HEADER, "[]"),
    "payload is no JSON": sign(HEADER, "{"),
    "payload is bad UTF-8": f"{encode(json.dumps(HEADER).encode())}.{encode(bytes([255, 254]))}.AAAA",
    "payload 20,000 levels deep": sign(HEADER, "[" * 1400 + "]" * 1400),
    "no exp": sign(HEADER, claims(exp=None)),
    "exp past": sign(HEADER, claims(iat=NOW - 7200, nbf=NOW - 7200, exp=NOW - 1)),
    "exp now": sign(HEADER, claims(iat=NOW - 7200, exp=NOW)),
    "exp in 2999": sign(HEADER, claims(exp=32_472_144_000)),
    "exp beyond the longest ttl": sign(HEADER, claims(exp=NOW + MOST_TTL + 1)),
    "exp huge": sign(HEADER, raw("", exp="1" + "0" * 400)),
    "exp of 5,000 digits": sign(HEADER, raw("", exp="9" * 5000))[:4000],
    "exp NaN": sign(HEADER, raw("", exp="NaN")),
    "exp Infinity": sign(HEADER, raw("", exp="Infinity")),
    "exp true": sign(HEADER, raw("", exp="true")),
    "exp text": sign(HEADER, claims(exp=str(NOW + 3600))),
    "exp float": sign(HEADER, claims(exp=NOW + 3600.5)),
    "exp list": sign(HEADER, claims(exp=[NOW + 3600])),
    "nbf in the future": sign(HEADER, claims(nbf=NOW + 600)),
    "no nbf": sign(HEADER, claims(nbf=None)),
    "nbf text": sign(HEADER, claims(nbf=str(NOW))),
    "iat in the future": sign(HEADER, claims(iat=NOW + 600)),
    "no iat": sign(HEADER, claims(iat=None)),
    "iat true": sign(HEADER, raw("", iat="true")),
    "no iss": sign(HEADER, claims(iss=None)),
    "another iss": sign(HEADER, claims(iss="systemmanager2")),
    "iss with a slash": sign(HEADER, claims(iss="systemmanager/")),
    "iss in capitals": sign(HEADER, claims(iss="SystemManager")),
    "iss list": sign(HEADER, claims(iss=["systemmanager"])),
    "no aud": sign(HEADER, claims(aud=None)),
    "another aud": sign(HEADER, claims(aud="other")),
    "another gateway's aud, the same secret": sign(HEADER, claims(aud="http://other.test:8080")),
    "aud longer": sign(HEADER, claims(aud=f"{AUDIENCE}.evil")),
    "aud prefix": sign(HEADER, claims(aud=AUDIENCE[:-1])),
    "aud with a slash": sign(HEADER, claims(aud=f"{AUDIENCE}/")),
    "aud list that holds ours": sign(HEADER, claims(aud=["other", AUDIENCE])),
    "aud list of ours": sign(HEADER, claims(aud=[AUDIENCE])),
    "aud empty list": sign(HEADER, claims(aud=[])),
    "no sub": sign(HEADER, claims(sub=None)),
    "sub empty": sign(HEADER, claims(sub="")),
    "sub number": sign(HEADER, claims(sub=7)),
    "sub with a line break": sign(HEADER, claims(sub="agent\nroot")),
    "sub of the local operator": sign(HEADER, claims(sub="local:0")),
    "sub with bidi marks": sign(HEADER, claims(sub="agent\u202e")),
    "sub of 1,000 characters": sign(HEADER, claims(sub="a" * 1000)),
    "scope as a list": sign(HEADER, claims(scope=["system:read"])),
    "no scope": sign(HEADER, claims(scope=None)),
    "scope null": sign(HEADER, raw("", scope="null")),
    "scope unknown": sign(HEADER, claims(scope="system:*")),
    "scope with one unknown of two": sign(HEADER, claims(scope="system:read everything")),
    "targets as a list": sign(HEADER, claims(targets=["*"])),
    "targets number": sign(HEADER, claims(targets=1)),
    "targets empty": sign(HEADER, claims(targets="")),
    "targets that is no selector": sign(HEADER, claims(targets="(web")),
    "no jti": sign(HEADER, claims(jti=None)),
    "jti empty": sign(HEADER, claims(jti="")),
    "jti number": sign(HEADER, claims(jti=11223344)),
    "jti in capitals": sign(HEADER, claims(jti="00112233AABBCCDD")),
    "targets null": sign(HEADER, raw(', "targets": null')),
    "sub twice": sign(HEADER, raw(', "sub": "root"')),
    "scope twice": sign(HEADER, raw(', "scope": "system:admin"')),
    "a claim nobody knows": sign(HEADER, claims(admin=True)),
    "signature in another spelling": flipped(GOOD),
    "signature padded": GOOD + "=",
    "signature cut": GOOD[:-1],
    "signature empty": GOOD.rpartition(".")[0] + ".",
    "payload padded": ".".join(part + "=" if place == 1 else part for place, part in enumerate(GOOD.split("."))),
    "standard base64": GOOD.replace("-", "+").replace("_", "/") + "+",
    "line break inside": GOOD[:40] + "\n" + GOOD[40:],
    "space behind": GOOD + " ",
    "two parts": GOOD.rpartition(".")[0],
    "four parts": GOOD + ".AAAA",
    "five parts, a JWE": "e30.AAAA.AAAA.AAAA.AAAA",
    "empty": "",
    "dots": "..",
    "JSON serialisation": json.dumps({"payload": GOOD.split(".")[1], "signatures": []}),
    "not ASCII": "\u212a" + GOOD[1:],
    "1 MB": GOOD + "A" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_token_is_refused(name: str) -> None:
    with pytest.raises(BadToken):
        verify(KEYS, HOSTILE[name], NOW)


def test_the_good_token_of_the_table_is_accepted() -> None:
    wanted = Identity(
        "agent", "token", "token", (Grant(frozenset({"system:read"})),), expires_at=NOW + 3600, id="0011223344556677"
    )
    assert verify(KEYS, GOOD, NOW) == wanted


def test_a_minted_token_is_accepted_until_it_expires() -> None:
    made, said = mint(KEYS, "claude@desk", ["readonly"], LEAST_TTL, "tag:web", now=NOW)
    found = verify(KEYS, made, NOW + LEAST_TTL - 1)
    assert found == said and found.limits == (Grant(BUNDLES["readonly"], "tag:web"),)
    with pytest.raises(BadToken, match="expired"):
        verify(KEYS, made, NOW + LEAST_TTL)


@pytest.mark.parametrize(
    ("subject", "scopes", "ttl", "targets"),
    [
        ("", ["readonly"], 3600, None),
        ("local:0", ["readonly"], 3600, None),
        ("a\nb", ["readonly"], 3600, None),
        ("agent", ["everything"], 3600, None),
        ("agent", ["readonly"], LEAST_TTL - 1, None),
        ("agent", ["readonly"], MOST_TTL + 1, None),
        ("agent", ["readonly"], 3600, "(web"),
        ("agent", ["readonly"], 3600, ""),
    ],
)
def test_a_bad_token_is_not_minted(subject: str, scopes: list[str], ttl: int, targets: str | None) -> None:
    with pytest.raises(ValueError):
        mint(KEYS, subject, scopes, ttl, targets)


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("900s", 900)])
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1w", "d", "1 d", "1d ", "99999999d", "1.5h", "\u0661d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


def fresh() -> str:
    now = int(time.time())
    return sign(HEADER, claims(iat=now, nbf=now, exp=now + 3600))


REQUESTS: dict[str, tuple[str, list[tuple[str, str]], int]] = {
    "no credential": ("/mcp", [], 401),
    "an empty credential": ("/mcp", [("Authorization", "")], 401),
    "the scheme alone": ("/mcp", [("Authorization", "Bearer")], 401),
    "Basic": ("/mcp", [("Authorization", "Basic {token}")], 401),
    "no scheme": ("/mcp", [("Authorization", "{token}")], 401),
    "two spaces": ("/mcp", [("Authorization", "Bearer  {token}")], 401),
    "in the query": ("/mcp?access_token={token}", [], 401),
    "in the query and in the header": ("/mcp?access_token={token}", [("Authorization", "Bearer {token}")], 401),
    "two headers, the same": ("/mcp", [("Authorization", "Bearer {token}")] * 2, 401),
    "two headers, a bad one first": (
        "/mcp",
        [("Authorization", "Bearer x"), ("Authorization", "Bearer {token}")],
        401,
    ),
    "two headers, a bad one last": (
        "/mcp",
        [("Authorization", "Bearer {token}"), ("Authorization", "Bearer x")],
        401,
    ),
    "two tokens in one header": ("/mcp", [("Authorization", "Bearer {token}, Bearer {token}")], 401),
    "in a cookie": ("/mcp", [("Cookie", "access_token={token}")], 401),
    "by another header": ("/mcp", [("X-Forwarded-User", "root"), ("Tailscale-User-Login", "root@example.com")], 401),
    "good": ("/mcp", [("Authorization", "Bearer {token}")], 200),
    "good, the scheme in lower case": ("/mcp", [("Authorization", "bearer {token}")], 200),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_over_http_a_request_without_one_good_token_is_401(name: str, tmp_path: Path) -> None:
    path, headers, status = REQUESTS[name]
    token = fresh()
    answer = run(ask(tmp_path, path.format(token=token), [(key, value.format(token=token)) for key, value in headers]))
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert token not in answer.text


async def ask(tmp_path: Path, path: str, headers: list[tuple[str, str]]) -> httpx.Response:
    """`initialize`, the first request of any client."""
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    accept = [("Accept", "application/json, text/event-stream"), *headers]
    async with real_gateway(tmp_path, target()) as gateway, served(gateway) as there, httpx.AsyncClient() as client:
        return await client.post(there.origin + path, json=body, headers=accept)
