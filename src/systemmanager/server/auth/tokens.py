"""The gateway's own bearer tokens: HMAC-signed (JWS HS256, RFC 7515), scoped, expiring, for this gateway only."""

import json
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from fastmcp.server.auth import AccessToken, TokenVerifier
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from systemmanager.errors import UnknownTarget
from systemmanager.fleet import gateway_target
from systemmanager.request import Grant, Principal
from systemmanager.scopes import expand
from systemmanager.selectors import matches
from systemmanager.server.refusals import because

ISSUER = "systemmanager"
TYPE = "at+jwt"
LEAST_TTL, MOST_TTL = 15 * 60, 90 * 24 * 3600
SKEW = 5
"""Seconds by which another clock may be ahead."""

_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
_CLAIMS = frozenset({"iss", "aud", "sub", "scope", "iat", "nbf", "exp", "jti", "targets"})
_MAX_LENGTH = 4096


class BadToken(ValueError):
    """A token that is not accepted; the message is for the log, never for the client."""


def duration(text: str) -> int:
    """Seconds of a duration such as 30d, 12h or 15m. Raises `ValueError`."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no duration; write 30d, 12h or 15m")
    return int(match[1]) * _UNITS[match[2]]


def mint(
    secret: str, subject: str, scopes: Iterable[str], ttl: int, targets: str | None = None, now: float | None = None
) -> str:
    """A token for `subject`. `ttl` in seconds, 15 minutes to 90 days. Raises `ValueError`, also for unknown scopes."""
    if not _SUBJECT.fullmatch(subject):
        raise ValueError("the agent's name has 1 to 64 letters, digits, '.', '_', '@' or '-'")
    if not LEAST_TTL <= ttl <= MOST_TTL:
        raise ValueError("the ttl must be between 15m and 90d")
    if targets is not None:
        _readable(targets)
    issued = int(time.time() if now is None else now)
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": subject,
        "scope": " ".join(sorted(expand(scopes))),
        "iat": issued,
        "nbf": issued,
        "exp": issued + ttl,
        "jti": secrets.token_hex(8),
    }
    if targets is not None:
        claims["targets"] = targets
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return jws.serialize_compact({"alg": "HS256", "typ": TYPE}, payload, _key(secret), algorithms=["HS256"])


def verify(secret: str, token: str, now: float | None = None) -> tuple[Principal, dict[str, Any]]:
    """The principal of a token and its claims. Raises `BadToken`."""
    parts = token.split(".")
    if len(token) > _MAX_LENGTH or len(parts) != 3:
        raise BadToken("is not a compact JWS")
    try:
        # Base64 leaves spare bits: only the one canonical spelling of a signature counts.
        if any(urlsafe_b64encode(urlsafe_b64decode(part.encode())).decode() != part for part in parts):
            raise BadToken("is not canonical base64url")
        _plain_object(urlsafe_b64decode(parts[0].encode()))
        signed = jws.deserialize_compact(token, _key(secret), algorithms=["HS256"])
        header, claims = signed.headers(), _plain_object(signed.payload)
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise BadToken(str(error) or type(error).__name__) from error
    if header != {"alg": "HS256", "typ": TYPE}:
        raise BadToken("has another header than our tokens have")
    return _principal(claims, time.time() if now is None else now), claims


def _key(secret: str) -> OctKey:
    return OctKey.import_key(secret.encode())


def _plain_object(data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise BadToken("has a duplicate key")
        return dict(pairs)

    value = json.loads(data, object_pairs_hook=once)
    if not isinstance(value, dict):
        raise BadToken("does not hold an object")
    return value


def _readable(selector: str) -> None:
    """Raises `ValueError` for a selector that can't be read: it would fail each call instead."""
    try:
        matches(selector, gateway_target())
    except UnknownTarget as error:
        raise ValueError(str(error)) from error


def _principal(claims: dict[str, Any], now: float) -> Principal:
    if unknown := claims.keys() - _CLAIMS:
        raise BadToken(f"has claims that our tokens do not have: {sorted(unknown)[:5]}")
    if claims.get("iss") != ISSUER or claims.get("aud") != ISSUER:
        raise BadToken("was not made by or for this gateway")
    issued, begins, ends = (claims.get(name) for name in ("iat", "nbf", "exp"))
    if not (type(issued) is int and type(begins) is int and type(ends) is int):
        raise BadToken("lacks iat, nbf or exp as a whole number")
    if issued > now + SKEW or begins > now + SKEW:
        raise BadToken("is not valid yet")
    if ends <= now or ends > issued + MOST_TTL:
        raise BadToken("has expired, or would for too long not")
    subject, scope, targets = claims.get("sub"), claims.get("scope"), claims.get("targets")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject) or not isinstance(scope, str):
        raise BadToken("lacks sub or scope as a text of ours")
    if targets is not None and not isinstance(targets, str):
        raise BadToken("has targets that are no text")
    try:
        held = expand(scope.split())
        if targets is not None:
            _readable(targets)
    except ValueError as error:
        raise BadToken(str(error)) from error
    return Principal(subject, "token", (Grant(held, targets),), "token")


class GatewayAccess(AccessToken):
    """fastmcp's access token with the Principal that it stands for."""

    principal: Principal


class SharedSecretVerifier(TokenVerifier):
    """fastmcp's seam for bearer tokens."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    async def verify_token(self, token: str) -> AccessToken | None:
        try:
            principal, claims = verify(self._secret, token)
        except BadToken as error:
            because(f"a token that {error}")
            return None
        return GatewayAccess(
            token=token,
            client_id=principal.subject,
            scopes=claims["scope"].split(),
            expires_at=claims["exp"],
            subject=principal.subject,
            principal=principal,
        )
