"""One request, exactly one credential, one Identity: which mode judges it, and what was verified a moment ago."""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from fastmcp.server.auth import AccessToken
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.types import Scope

from systemmanager.server.auth.identity import Expired, Identity, Missing, Refused, Unavailable
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.resource import Resource
from systemmanager.server.auth.throttle import Throttle, Throttled
from systemmanager.server.auth.tokens import BadToken, Keys, verify

if TYPE_CHECKING:
    from systemmanager.server.auth.oidc import Oidc
    from systemmanager.server.auth.tailnet import Tailnet

FUNNEL = b"tailscale-funnel-request"
"""A header of requests that `tailscale funnel` lets in."""

MOST_REMEMBERED = 4096
"""Verified tokens that are remembered; the one that was not used for longest makes room."""

_BEARER = re.compile(rb"bearer ([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)


class GatewayAccess(AccessToken):
    """fastmcp's access token with the Identity that it stands for, and without the token."""

    identity: Identity


def user_of(identity: Identity) -> AuthenticatedUser:
    """An Identity as fastmcp carries it; sessions belong to the three names that are given here."""
    access = GatewayAccess(
        token="",
        client_id=identity.subject,
        scopes=[],
        subject=identity.subject,
        claims={"iss": identity.verified_by},
        identity=identity,
    )
    return AuthenticatedUser(access)


class Tokens:
    """Tokens of the gateway's own."""

    def __init__(self, keys: Keys, ledger: Ledger) -> None:
        self._keys, self._ledger = keys, ledger

    def made(self, token: str) -> bool:
        """Whether the token names one of our keys: nobody else is asked about it then."""
        return token.partition(".")[0] in self._keys.by_header

    def identify(self, token: str, now: float) -> Identity:
        """Raises `Refused`."""
        try:
            return verify(self._keys, token, now)
        except BadToken as error:
            raise Refused(f"a token that {error}") from error

    def revoked(self, id: str) -> bool:
        """For what goes on without a request; a list that can't be read ends nothing."""
        try:
            return self._ledger.check(id)
        except Unavailable:
            return False

    def check(self, identity: Identity) -> None:
        """Raises `Refused` for a revoked token; asked on each request."""
        if identity.id is None or self._ledger.check(identity.id):
            raise Refused(f"token {identity.id} of {identity.subject!r} is revoked")


@dataclass
class Authentication:
    """The modes that are switched on. A request with a bearer token is judged by that token and by nothing else."""

    tokens: Tokens | None = None
    issuer: "Oidc | None" = None
    resource: Resource | None = None
    tailnet: "Tailnet | None" = None
    throttle: Throttle = field(default_factory=Throttle)
    clock: Callable[[], float] = time.time
    _remembered: OrderedDict[bytes, tuple[AuthenticatedUser, Identity, float]] = field(default_factory=OrderedDict)

    async def user(self, scope: Scope) -> AuthenticatedUser:
        """Who makes this request. Raises `Missing` without a credential, `Refused` for one that is no good, and
        `Throttled` unheard for an address with too many of those."""
        where = self._whence(scope)
        with self.throttle.attempt(where, heard=True):
            token = _token(scope)
        digest = b"" if token is None else hashlib.sha256(token.encode()).digest()
        # One that was good, or whom tailscaled names, is heard: a flood beside it is not its fault.
        heard = digest in self._remembered or (token is None and self._brought(scope))
        with self.throttle.attempt(where, heard=heard):
            try:
                return self._known(digest) or await self._identified(scope, token, digest)
            except Unavailable:
                raise
            except Refused:
                self._remembered.pop(digest, None)
                raise

    def _whence(self, scope: Scope) -> str:
        """Whose failed attempts are counted together. Behind tailscaled that is the node it names, not tailscaled: one
        member of the tailnet keeps out no other."""
        node = self.tailnet.node(scope) if self.tailnet is not None else None
        return f"{peer(scope)} {node}" if node else peer(scope)

    def _brought(self, scope: Scope) -> bool:
        return self.tailnet is not None and self.tailnet.brings(scope)

    async def _identified(self, scope: Scope, token: str | None, digest: bytes) -> AuthenticatedUser:
        return await self._of_the_tailnet(scope) if token is None else await self._verified(token, digest)

    def own(self, user: AuthenticatedUser) -> bool:
        """Whether it is a token of the gateway's own that was verified."""
        return isinstance(user.access_token, GatewayAccess) and user.access_token.identity.kind == "token"

    async def still(self, scope: Scope, user: AuthenticatedUser) -> bool:
        """Whether a request that goes on for long would yet be let in, as the same caller. An outage ends nothing
        before the credential does."""
        access = user.access_token
        assert isinstance(access, GatewayAccess)
        try:
            await self.again(scope)
            return True
        except (Throttled, Unavailable):
            ends = access.identity.expires_at
            return ends is None or self.clock() < ends
        except Refused:
            return False

    async def again(self, scope: Scope) -> Identity:
        """Who makes a request that was let in a while ago. Raises `Refused`, also for another caller than then, and
        `Expired` where nobody took the credential back before its end."""
        then = scope["user"].access_token
        assert isinstance(then, GatewayAccess)
        if (ends := then.identity.expires_at) is not None and self.clock() >= ends:
            self._check(then.identity)
            raise Expired(f"the credential of {then.identity.subject!r} has expired")
        now = (await self.user(scope)).access_token
        assert isinstance(now, GatewayAccess)
        if (now.identity.subject, now.identity.kind) != (then.identity.subject, then.identity.kind):
            raise Refused(f"the credential of {then.identity.subject!r} is {now.identity.subject!r}'s by now")
        return now.identity

    async def _of_the_tailnet(self, scope: Scope) -> AuthenticatedUser:
        if self.tailnet is None:
            raise Missing("no credential")
        return user_of(await self.tailnet.identify(scope))

    def _known(self, digest: bytes) -> AuthenticatedUser | None:
        found = self._remembered.get(digest)
        if found is None:
            return None
        user, identity, until = found
        if self.clock() >= until:
            return None
        self._check(identity)
        self._remembered.move_to_end(digest)
        return user

    async def _verified(self, token: str, digest: bytes) -> AuthenticatedUser:
        if self.tokens is not None and (self.issuer is None or self.tokens.made(token)):
            identity = self.tokens.identify(token, self.clock())
            until = identity.expires_at or 0.0
        elif self.issuer is not None:
            identity, until = await self.issuer.identify(token)
        else:
            raise Refused("bearer tokens are not accepted here")
        self._check(identity)
        user = user_of(identity)
        self._remembered[digest] = user, identity, min(until, identity.expires_at or until)
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return user

    def _check(self, identity: Identity) -> None:
        if identity.kind == "token" and self.tokens is not None:
            self.tokens.check(identity)


def peer(scope: Scope) -> str:
    """Where a request comes from: an address, or a user of this machine."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _token(scope: Scope) -> str | None:
    if any(name == FUNNEL for name, _ in scope["headers"]):
        raise Refused("a request from the public internet, by Funnel")
    return bearer(scope)


def bearer(scope: Scope) -> str | None:
    """The request's one bearer token, or None. Raises `Refused` when it could mean two callers, or none properly.

    A proxy and the gateway must never disagree about who calls, so a second credential is never passed over.
    """
    query = scope["query_string"].decode("latin-1")
    if query and "access_token" in parse_qs(query, keep_blank_values=True):
        raise Refused("a token in the address")
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        return None
    if len(given) > 1:
        raise Refused("more than one Authorization header")
    match = _BEARER.fullmatch(given[0])
    if match is None:
        raise Refused("an Authorization header that is no bearer token")
    return match[1].decode()
