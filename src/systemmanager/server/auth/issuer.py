"""The issuer of access tokens: its endpoints are read from its own metadata (RFC 8414, OpenID Connect Discovery)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key

from systemmanager.server.auth.asking import Status, Together, ask
from systemmanager.server.auth.identity import Refused, Unavailable
from systemmanager.trustworthy import trusted_url

METADATA_LASTS, KEYS_LAST = 3600.0, 600.0
"""Seconds after which the metadata and the keys are asked for again."""

KEYS_AT_MOST = 3600.0
"""Seconds for which keys count while the issuer does not answer."""

PAUSE = 2.0
"""Seconds for which nobody asks again after no answer came, or one that is no answer: until then everybody is refused
at once, so that a flood of unknown tokens is no flood of questions."""

NEW_KEY_EVERY = 10.0
"""Seconds between questions for keys because of an unknown key id, which anybody can make up."""

LEAST_MODULUS = 342
"""Characters of an RSA modulus of 2,048 bits."""

_OURS = dict.fromkeys(
    (401, 403), ": are SYSTEMMANAGER_OIDC_CLIENT_ID and SYSTEMMANAGER_OIDC_CLIENT_SECRET those of a client there?"
)
"""What a status says about the gateway's own settings."""

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What of the issuer's metadata is used."""

    introspection: str | None
    keys: str | None


class Issuer:
    """One issuer, asked over one HTTP client. Everything raises `Unavailable` when the issuer does not answer."""

    def __init__(
        self,
        name: str,
        client: httpx.AsyncClient,
        own: tuple[str, str] | None = None,
        degraded: dict[str, str] | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`own` are id and secret of the gateway's client at the issuer; `degraded` is told of outages."""
        self.name, self._client, self._ticks = name, client, ticks
        self._degraded = {} if degraded is None else degraded
        self._auth = None if own is None else httpx.BasicAuth(*(quote(part, safe="") for part in own))
        self._metadata: Metadata | None = None
        self._keys: Mapping[str | None, Key] = {}
        self._read_metadata = self._read_keys = self._tried_key = self._down = float("-inf")
        self._together: Together[Any] = Together()

    async def introspect(self, token: str) -> dict[str, Any]:
        """What the issuer says of an opaque token (RFC 7662)."""
        endpoint = (await self.metadata()).introspection
        if endpoint is None:
            raise Refused("an opaque token, and the issuer has no introspection endpoint")
        body = {"token": token, "token_type_hint": "access_token"}
        return await self._ask("POST", endpoint, said=400, data=body, auth=self._auth)

    async def key(self, id: str | None) -> Key:
        """The public key of an id; without an id the only one. Raises `Refused` when there is none."""
        age = self._ticks() - self._read_keys
        if age >= KEYS_LAST:
            try:
                await self._together.once("keys", self._fetch_keys)
            except Unavailable:
                if age >= KEYS_AT_MOST:
                    raise
        elif self._find(id) is None and self._ticks() - self._tried_key >= NEW_KEY_EVERY:
            self._tried_key = self._ticks()
            await self._together.once("keys", self._fetch_keys)
        found = self._find(id)
        if found is None:
            raise Refused("a token whose key the issuer does not have")
        return found

    def _find(self, id: str | None) -> Key | None:
        if id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(id)

    async def metadata(self) -> Metadata:
        """The issuer's endpoints. Raises `Unavailable` also when the metadata is somebody else's."""
        if self._metadata is None or self._ticks() - self._read_metadata >= METADATA_LASTS:
            await self._together.once("metadata", self._fetch_metadata)
        assert self._metadata is not None
        return self._metadata

    async def _fetch_metadata(self) -> None:
        openid, oauth = _wellknown(self.name)
        try:
            found = await self._ask("GET", openid, said=404)
        except Status as error:
            if error.status != 404:
                raise
            found = await self._ask("GET", oauth)
        if found.get("issuer") != self.name:
            why = f"the issuer says that it is {str(found.get('issuer'))[:200]!r}, to the letter; the setting differs"
            raise self._out(why)
        self._metadata = Metadata(self._endpoint(found, "introspection_endpoint"), self._endpoint(found, "jwks_uri"))
        self._read_metadata = self._ticks()

    def _endpoint(self, found: Mapping[str, Any], name: str) -> str | None:
        """An address of the metadata: https, or loopback where the issuer itself is on loopback."""
        url = found.get(name)
        if url is None:
            return None
        plain = isinstance(url, str) and url.startswith("http://")
        if (
            not isinstance(url, str)
            or not trusted_url(url.partition("?")[0])
            or (plain and self.name.startswith("https"))
        ):
            raise self._out(f"the issuer's {name} is no https address")
        return url

    async def _fetch_keys(self) -> None:
        endpoint = (await self.metadata()).keys
        if endpoint is None:
            raise Refused("a signed token, and the issuer has no keys")
        given = (await self._ask("GET", endpoint)).get("keys")
        if not isinstance(given, list):
            raise self._out(f"{endpoint} answered no keys")
        usable = (key for one in given[:100] if (key := _key(one)) is not None)
        self._keys = {key.kid: key for key in usable}
        self._read_keys = self._ticks()

    async def _ask(self, method: str, url: str, said: int | None = None, **fields: Any) -> dict[str, Any]:
        """`said` is a status that says something about this question, and nothing about the issuer."""
        if self._ticks() - self._down < PAUSE:
            raise Unavailable(f"{self.name} did not answer a moment ago")
        try:
            answer = await ask(self._client, method, url, **fields)
        except Unavailable as error:
            status = error.status if isinstance(error, Status) else None
            if status is None or status != said:
                self._out(f"{error}{_OURS.get(status or 0, '')}")
            raise
        self._degraded.pop("oidc", None)
        return answer

    def _out(self, why: str) -> Unavailable:
        """Nobody can be verified now: this is said, and nobody asks again for a moment."""
        self._down, self._degraded["oidc"] = self._ticks(), why
        log.warning("the issuer does not answer: nobody with a token of its own is let in", why=why)
        return Unavailable(why)

    async def close(self) -> None:
        await self._together.close()


def client() -> httpx.AsyncClient:
    """The one HTTP client for the issuer: no redirects, no proxies from the environment, nothing packed."""
    return httpx.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(5.0, connect=3.0),
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=4),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


def _wellknown(issuer: str) -> tuple[str, str]:
    """Where an issuer's metadata stands: behind its path for OpenID, in front of it for OAuth (RFC 8414, 3.1)."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    openid = urlunsplit(parts._replace(path=f"{path}/.well-known/openid-configuration"))
    return openid, urlunsplit(parts._replace(path=f"/.well-known/oauth-authorization-server{path}"))


def _key(given: Any) -> Key | None:
    """A public key for signatures, or None for a key of any other kind."""
    if not isinstance(given, dict) or given.get("use", "sig") != "sig" or given.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if given["kty"] == "RSA" and len(str(given.get("n", ""))) < LEAST_MODULUS:
        return None
    operations = given.get("key_ops", ["verify"])
    public = {name: value for name, value in given.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        return import_key(public) if isinstance(operations, list) and "verify" in operations else None
    except (JoseError, ValueError, TypeError):
        return None
