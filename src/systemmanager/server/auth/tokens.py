"""The gateway's own bearer tokens: HMAC-signed (JWS HS256, RFC 7515), scoped, expiring, for this gateway only."""

import hashlib
import hmac
import json
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from systemmanager.errors import UnknownTarget
from systemmanager.fleet import gateway_target
from systemmanager.request import Grant
from systemmanager.scopes import expand
from systemmanager.selectors import matches
from systemmanager.server.auth.identity import Identity, Refused
from systemmanager.server.auth.plain import plain_object

ISSUER = "systemmanager"
TYPE = "at+jwt"
LEAST_TTL, MOST_TTL = 15 * 60, 90 * 24 * 3600
SKEW = 5
"""Seconds by which another clock may be ahead."""

ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
_CLAIMS = frozenset({"iss", "aud", "sub", "scope", "iat", "nbf", "exp", "jti"})
_MAX_LENGTH = 4096


class BadToken(Refused, ValueError):
    """A token that is not accepted; the message is for the log, never for the client."""


@dataclass(frozen=True, slots=True)
class Key:
    """One secret, and the first part of every token signed with it, to the letter.

    A header is compared, never read: an algorithm, key or address that a token names has no say in anything.
    """

    secret: bytes
    header: str

    @classmethod
    def of(cls, secret: str) -> "Key":
        id = hmac.digest(secret.encode(), b"systemmanager key id", "sha256")[:8].hex()
        header = json.dumps({"alg": "HS256", "typ": TYPE, "kid": id}, separators=(",", ":"))
        return cls(secret.encode(), _encode(header.encode()))

    def sign(self, signed: str) -> str:
        return _encode(hmac.digest(self.secret, signed.encode(), hashlib.sha256))


class Keys:
    """The keys of one gateway, the one that signs first, and the audience that its tokens are for."""

    def __init__(self, audience: str, *secrets: str) -> None:
        self.audience = audience
        self.signing = Key.of(secrets[0])
        self.by_header = {key.header: key for key in map(Key.of, secrets)}


def duration(text: str) -> int:
    """Seconds of a duration such as 30d, 12h or 15m. Raises `ValueError`."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no duration; write 30d, 12h or 15m")
    return int(match[1]) * _UNITS[match[2]]


def mint(
    keys: Keys, subject: str, scopes: Iterable[str], ttl: int, targets: str | None = None, now: float | None = None
) -> tuple[str, Identity]:
    """A token for `subject`, and what it says. `ttl` in seconds, 15 minutes to 90 days.

    Raises `ValueError`, also for unknown scopes.
    """
    if not _SUBJECT.fullmatch(subject):
        raise ValueError("the agent's name has 1 to 64 letters, digits, '.', '_', '@' or '-'")
    if not LEAST_TTL <= ttl <= MOST_TTL:
        raise ValueError("the ttl must be between 15m and 90d")
    if targets is not None:
        _readable(targets)
    issued = int(time.time() if now is None else now)
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": keys.audience,
        "sub": subject,
        "scope": " ".join(sorted(expand(scopes))),
        "iat": issued,
        "nbf": issued,
        "exp": issued + ttl,
        "jti": secrets.token_hex(8),
    }
    if targets is not None:
        claims["targets"] = targets
    signed = f"{keys.signing.header}.{_encode(json.dumps(claims, separators=(',', ':')).encode())}"
    token = f"{signed}.{keys.signing.sign(signed)}"
    if len(token) > _MAX_LENGTH:
        raise ValueError("the token would be too long; shorten the selector")
    return token, _identity(claims, keys, issued)


def verify(keys: Keys, token: str, now: float | None = None) -> Identity:
    """Who a token names. Whether it was revoked is not asked here. Raises `BadToken`."""
    return _identity(claims_of(keys, token), keys, time.time() if now is None else now)


def claims_of(keys: Keys, token: str) -> dict[str, Any]:
    """The claims of a token that one of our keys has signed, expired or not. Raises `BadToken`."""
    if len(token) > _MAX_LENGTH:
        raise BadToken("is longer than our tokens are")
    signed, _, signature = token.rpartition(".")
    header, dot, payload = signed.partition(".")
    key = keys.by_header.get(header)
    if key is None or not dot:
        raise BadToken("has a header or a key that is not ours")
    # The signature is compared as it is written: another spelling of the same bytes does not count.
    if not token.isascii() or not hmac.compare_digest(signature, key.sign(signed)):
        raise BadToken("is not signed with our key")
    try:
        return plain_object(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError as error:
        raise BadToken(str(error)) from error


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _readable(selector: str) -> None:
    """Raises `ValueError` for a selector that can't be read: it would fail each call instead."""
    try:
        matches(selector, gateway_target())
    except UnknownTarget as error:
        raise ValueError(str(error)) from error


def _identity(claims: dict[str, Any], keys: Keys, now: float) -> Identity:
    if claims.keys() - {"targets"} != _CLAIMS:
        raise BadToken("has other claims than our tokens have")
    if claims["iss"] != ISSUER or claims["aud"] != keys.audience:
        raise BadToken("was not made by or for this gateway")
    issued, begins, ends = claims["iat"], claims["nbf"], claims["exp"]
    if not (type(issued) is int and type(begins) is int and type(ends) is int):
        raise BadToken("lacks iat, nbf or exp as a whole number")
    if issued > now + SKEW or begins > now + SKEW:
        raise BadToken("is not valid yet")
    if ends <= now or ends > issued + MOST_TTL:
        raise BadToken("has expired, or would for too long not")
    subject, scope, targets, id = claims["sub"], claims["scope"], claims.get("targets"), claims["jti"]
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject) or not isinstance(scope, str):
        raise BadToken("lacks sub or scope as a text of ours")
    if not isinstance(id, str) or not ID.fullmatch(id):
        raise BadToken("lacks an id of ours")
    if "targets" in claims and not isinstance(targets, str):
        raise BadToken("has targets that are no text")
    try:
        held = expand(scope.split())
        if targets is not None:
            _readable(targets)
    except ValueError as error:
        raise BadToken(str(error)) from error
    return Identity(subject, "token", "token", (Grant(held, targets),), expires_at=ends, id=id)
