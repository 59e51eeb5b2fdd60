"""Access tokens of an issuer: signed ones (JWT, RFC 9068) by its keys, opaque ones by asking it (RFC 7662)."""

import hashlib
import math
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from warnings import catch_warnings

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, RSAKey

from systemmanager.request import Grant
from systemmanager.scopes import ALIASES, BUNDLES, SCOPES, expand
from systemmanager.server.auth.asking import Status, Together
from systemmanager.server.auth.identity import Identity, Refused
from systemmanager.server.auth.issuer import Issuer
from systemmanager.server.auth.plain import plain_object

SKEW = 5
"""Seconds by which the issuer's clock may be ahead."""

MOST_AHEAD = 24 * 3600
"""Seconds for which an access token may be valid yet."""

OPAQUE_LASTS, SIGNED_LASTS, REFUSED_LASTS = 5.0, 60.0, 2.0
"""Seconds for which what was found out of a token is not asked again."""

MOST_REFUSED, MOST_GROUPS = 1024, 1000
LONGEST_OPAQUE, LONGEST_SIGNED = 4096, 16_384

EDWARDS = frozenset({"EdDSA", "Ed25519"})
LEAST_RSA = 2048
"""Bits."""

OF_ID_TOKENS = frozenset({"nonce", "at_hash", "c_hash", "s_hash"})
OURS = SCOPES.keys() | ALIASES.keys() | BUNDLES.keys()

_SUBJECT = re.compile(r"[!-~]{1,249}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@-]{0,253}", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Oidc:
    """Verifies the tokens of one issuer, for this gateway as their audience."""

    def __init__(
        self,
        issuer: Issuer,
        audiences: frozenset[str],
        *,
        client_id: str | None = None,
        subject_claim: str = "sub",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issuer, self._audiences, self._client_id = issuer, audiences, client_id
        self._subject_claim, self._clock = subject_claim, clock
        self._refused: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._together: Together[Identity] = Together()

    async def identify(self, token: str) -> tuple[Identity, float]:
        """Who a token names, and until when that may be remembered. Raises `Refused`, `Unavailable` in an outage."""
        signed = token.count(".") >= 2 and token.startswith("ey")
        if len(token) > (LONGEST_SIGNED if signed else LONGEST_OPAQUE):
            raise Refused("a token that is too long")
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        if (known := self._refused.get(digest)) is not None and now < known[1]:
            raise Refused(known[0])
        verify = self._signed if signed else self._opaque
        try:
            identity = await self._together.once(digest, lambda: verify(token))
        except Refused as error:
            if type(error) is Refused:
                self._refused[digest] = str(error), self._clock() + REFUSED_LASTS
                if len(self._refused) > MOST_REFUSED:
                    self._refused.popitem(last=False)
            raise
        return identity, self._clock() + (SIGNED_LASTS if signed else OPAQUE_LASTS)

    async def close(self) -> None:
        await self._together.close()
        await self.issuer.close()

    # --- Opaque tokens ------------------------------------------------------------------------------------------------

    async def _opaque(self, token: str) -> Identity:
        try:
            said = await self.issuer.introspect(token)
        except Status as error:
            if error.status == 400:  # the issuer could not read the question: it is about this token alone
                raise Refused("a token that the issuer can't read") from error
            raise
        if said.get("active") is not True:
            raise Refused("a token that the issuer says is not active")
        if str(said.get("token_type", "bearer")).lower() != "bearer":
            raise Refused("a token of another type than bearer")
        return self._identity(said, "introspection")

    # --- Signed tokens ------------------------------------------------------------------------------------------------

    async def _signed(self, token: str) -> Identity:
        header, claims = _parts(token)
        type_ = str(header.get("typ", "")).lower().removeprefix("application/")
        if type_ not in ("at+jwt", "jwt", ""):
            raise Refused("a signed token of another type than an access token")
        if "crit" in header or header.keys() & {"jwk", "jku", "x5u", "x5c", "b64", "zip"}:
            raise Refused("a signed token whose header asks for something that is not done")
        id = header.get("kid")
        if id is not None and not isinstance(id, str):
            raise Refused("a signed token whose key id is no text")
        if header.get("alg") not in ("RS256", "ES256", *EDWARDS):
            raise Refused("a signed token with an algorithm that is not accepted")
        _verify(header["alg"], await self.issuer.key(id), token)
        self._access_token(claims, of_type=type_ == "at+jwt")
        if "iat" not in claims:
            raise Refused("a signed token without iat")
        return self._identity(claims, "signature")

    def _access_token(self, claims: Mapping[str, Any], *, of_type: bool) -> None:
        """Refuses ID tokens: they say who logged in at a client, and give that client no access to anything."""
        to_client = self._client_id in _audience(claims) if self._client_id else False
        says_access = of_type or ({"scope", "client_id"} & claims.keys() and not to_client)
        if OF_ID_TOKENS & claims.keys() or not says_access:
            raise Refused("a signed token that is an ID token, or does not say that it is an access token")

    # --- What both say ------------------------------------------------------------------------------------------------

    def _identity(self, claims: Mapping[str, Any], how: str) -> Identity:
        now = self._clock()
        if claims.get("iss") != self.issuer.name:
            raise Refused("a token of another issuer")
        if self._audiences.isdisjoint(_audience(claims)):
            raise Refused("a token for somebody else")
        if "cnf" in claims:
            raise Refused("a token that is bound to a key, without the proof")
        ends = _time(claims, "exp")
        if ends is None or ends <= now or ends > now + MOST_AHEAD:
            raise Refused("a token that has expired, or never does within a day")
        if any((at := _time(claims, name)) is not None and at > now + SKEW for name in ("nbf", "iat")):
            raise Refused("a token that is not valid yet")
        groups = claims.get("groups")
        return Identity(
            self._subject(claims),
            "person",
            f"oidc {how} {self.issuer.name}",
            _limits(claims.get("scope")),
            tuple(one for one in groups[:MOST_GROUPS] if isinstance(one, str)) if isinstance(groups, list) else (),
            expires_at=ends,
        )

    def _subject(self, claims: Mapping[str, Any]) -> str:
        """The name in policy.yaml. A `sub` gets a prefix: it must not read like a name of another kind."""
        name = claims.get(self._subject_claim)
        form = _SUBJECT if self._subject_claim == "sub" else _NAME
        if not isinstance(name, str) or not form.fullmatch(name):
            raise Refused(f"a token without a usable {self._subject_claim}")
        if self._subject_claim == "email" and claims.get("email_verified") is not True:
            raise Refused("a token with an address that is not verified")
        return f"oidc:{name}" if self._subject_claim == "sub" else name


def _audience(claims: Mapping[str, Any]) -> list[str]:
    """Whom a token is for: one name or several (RFC 7519, 4.1.3). Raises `Refused` for anything else."""
    given = claims.get("aud")
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Refused("a token that does not say whom it is for")
    return named


def _limits(scope: Any) -> tuple[Grant, ...] | None:
    """What the scopes of a token narrow its rights to: those of ours; without any of ours, nothing is narrowed.

    Scopes such as openid, email and profile are about the person, not about what may be done.
    """
    if scope is None:
        return None
    if not isinstance(scope, str):
        raise Refused("a token whose scope is no text")
    ours = [name for name in scope.split() if name in OURS]
    return (Grant(expand(ours)),) if ours else None


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A time in seconds since 1970, or None when there is none. Raises `Refused` for anything that is no time."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12 or not math.isfinite(value):
        raise Refused(f"a token whose {name} is no time")
    return float(value)


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a compact JWS (RFC 7515, 7.1), no name in them twice; the signature is not looked at yet."""
    parts = token.split(".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise Refused("a signed token that is no compact JWS")
    try:
        header, claims, signature = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
        if urlsafe_b64encode(signature).rstrip(b"=").decode() != parts[2]:
            raise ValueError("another spelling of a signature")  # base64 leaves spare bits
        return plain_object(header), plain_object(claims)
    except ValueError as error:
        raise Refused("a signed token that can't be read") from error


def _verify(algorithm: str, key: Key, token: str) -> None:
    """Check a signature. Raises `Refused`, also when the key is for another algorithm."""
    named = str(key.get("alg", algorithm))
    if named != algorithm and not {named, algorithm} <= EDWARDS:
        raise Refused("a signed token whose key is for another algorithm")
    if isinstance(key, RSAKey) and key.public_key.key_size < LEAST_RSA:
        raise Refused("a signed token whose key is too short")
    try:
        with catch_warnings(category=SecurityWarning, action="ignore"):  # RFC 9864 renames EdDSA; issuers still use it
            jws.deserialize_compact(token, key, algorithms=[algorithm])
    except (JoseError, ValueError, TypeError) as error:
        raise Refused("a signed token with a wrong signature, or whose key is for another algorithm") from error
