"""Identities of a tailnet: tailscaled says whose connection it is, by its LocalAPI or by headers on a unix socket."""

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import structlog
from starlette.types import Scope

from systemmanager.errors import UnknownTarget
from systemmanager.request import Grant
from systemmanager.scopes import expand
from systemmanager.selectors import selector
from systemmanager.server.auth.asking import Status, Together, ask
from systemmanager.server.auth.identity import Identity, Missing, Refused, Unavailable
from systemmanager.server.auth.plain import plain_object
from systemmanager.server.peers import UID

LASTS, SELF_LASTS = 5.0, 60.0
"""Seconds for which an answer about a peer, and about this node itself, is taken as read."""

WITHIN = 2.0
"""Seconds that tailscaled gets for one answer."""

PAUSE = 1.0
"""Seconds for which nobody asks again after no answer came."""

MOST_REMEMBERED = 4096
DEFAULT_CAPABILITY = "example.com/cap/systemmanager"
LOGIN, CAPABILITIES = b"tailscale-user-login", b"tailscale-app-capabilities"
FORWARDED = b"x-forwarded-for"

_API = "http://local-tailscaled.sock/localapi/v0"
_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*@[A-Za-z0-9][A-Za-z0-9.-]*", re.ASCII)
_NODE = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_TAG = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]*", re.ASCII)

log = structlog.get_logger("systemmanager")


def client(path: Path) -> httpx.AsyncClient:
    """The one HTTP client for tailscaled's LocalAPI."""
    transport = httpx.AsyncHTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=16))
    return httpx.AsyncClient(transport=transport, trust_env=False, headers={"Accept-Encoding": "identity"})


class Tailnet:
    """Names the peer of a request that bears no token."""

    def __init__(
        self,
        path: Path,
        client: httpx.AsyncClient,
        capability: str | None = None,
        degraded: dict[str, str] | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`capability`: the application capability that a peer must have; None: the usual one counts if it is there."""
        self._path, self._client, self._ticks = path, client, ticks
        self._capability, self._demanded = capability or DEFAULT_CAPABILITY, capability is not None
        self._degraded = {} if degraded is None else degraded
        self._seen: OrderedDict[str, tuple[Identity, float]] = OrderedDict()
        self._own: tuple[str, frozenset[str]] = ("", frozenset())
        self._own_read = self._down = float("-inf")
        self._together: Together[Any] = Together()

    async def identify(self, scope: Scope) -> Identity:
        """Who makes a request. Raises `Missing` for nobody of the tailnet, `Refused`, `Unavailable` in an outage."""
        peer = scope.get("client")
        if peer is None:
            raise Missing("no credential, and no peer that could be asked about")
        if str(peer[0]).startswith(UID):
            return await self._by_headers(int(str(peer[0]).removeprefix(UID)), scope)
        return await self._by_address(_address(str(peer[0]), int(peer[1])))

    def brings(self, scope: Scope) -> bool:
        """Whether tailscaled itself brings a request, over a unix socket, and says whose it is."""
        return any(header == LOGIN for header, _ in scope["headers"]) and self._by_itself(scope)

    def node(self, scope: Scope) -> str | None:
        """The address of the node that tailscaled itself brings a request of, over a unix socket: tailscaled puts it
        in the place of whatever the node has sent."""
        given = [value for name, value in scope["headers"] if name == FORWARDED]
        if len(given) != 1 or not self._by_itself(scope):
            return None
        try:
            return str(ipaddress.ip_address(given[0].decode("latin-1")))
        except ValueError:
            return None

    def _by_itself(self, scope: Scope) -> bool:
        name = str((scope.get("client") or ("",))[0])
        try:
            return name.startswith(UID) and int(name.removeprefix(UID)) == self._tailscaled()
        except Unavailable:
            return False

    async def close(self) -> None:
        await self._together.close()

    # --- By address ---------------------------------------------------------------------------------------------------

    async def _by_address(self, address: str) -> Identity:
        found = self._seen.get(address)
        if found is not None and self._ticks() - found[1] < LASTS:
            self._seen.move_to_end(address)
            return found[0]
        identity: Identity = await self._together.once(address, lambda: self._whois(address))
        self._seen[address] = identity, self._ticks()
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return identity

    async def _whois(self, address: str) -> Identity:
        try:
            said = await self._ask("whois", addr=address, proto="tcp")
        except Status as error:
            if error.status == 404:
                raise Missing("no credential, and the peer is nobody of the tailnet") from None
            raise
        node, person = said.get("Node"), said.get("UserProfile")
        if not isinstance(node, dict) or not isinstance(person, dict):
            raise Unavailable("tailscaled answered no node and no user")
        id, tags = node.get("StableID"), node.get("Tags") or []
        if not isinstance(id, str) or not _NODE.fullmatch(id) or not isinstance(tags, list):
            raise Unavailable("tailscaled answered a node without an id")
        if id == (await self._self())[0]:
            raise Refused("a connection from the gateway's own machine, which is nobody of the tailnet")
        caps = said.get("CapMap") or {}
        if not isinstance(caps, dict):
            raise Unavailable("tailscaled answered capabilities that can't be read")
        limits, how = self._limits(caps), f"tailscale whois {str(node.get('Name', ''))[:100]}"
        if tags:
            if not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
                raise Refused("a node with tags that can't be read")
            return Identity(f"node:{id}", "node", how, limits, tags=tuple(sorted(tags)))
        return Identity(_login(person.get("LoginName")), "person", how, limits)

    # --- By headers ---------------------------------------------------------------------------------------------------

    async def _by_headers(self, uid: int, scope: Scope) -> Identity:
        """`tailscale serve` in front of a unix socket: its headers count when tailscaled itself is the peer."""
        if uid != self._tailscaled():
            raise Missing("no credential, and the peer on the unix socket is not tailscaled")
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.replace(b"_", b"-"), []).append(value)
        if any(len(values) > 1 for name, values in headers.items() if name.startswith(b"tailscale-")):
            raise Refused("a Tailscale header given twice")
        forwarded = [value.decode("latin-1") for value in headers.get(FORWARDED, [])]
        if forwarded and (len(forwarded) > 1 or forwarded[0] in (await self._self())[1]):
            raise Refused("a connection from the gateway's own machine, which is nobody of the tailnet")
        if LOGIN not in headers:
            raise Missing("no credential, and tailscaled names nobody: a tagged node, or not of the tailnet")
        try:
            caps = plain_object(headers.get(CAPABILITIES, [b"{}"])[0])
        except ValueError:
            raise Refused("capabilities that can't be read") from None
        return Identity(_login(headers[LOGIN][0].decode("latin-1")), "person", "tailscale serve", self._limits(caps))

    def _tailscaled(self) -> int:
        """The user that tailscaled runs as: its socket is its own."""
        try:
            return self._path.stat().st_uid
        except OSError as error:
            raise Unavailable(f"{self._path} is not there: {error.strerror}") from None

    # --- What both need -----------------------------------------------------------------------------------------------

    def _limits(self, capabilities: Mapping[str, Any]) -> tuple[Grant, ...] | None:
        """What the capability's values narrow the rights to: a grant each. Raises `Refused` when one can't be read."""
        if self._capability not in capabilities:
            return () if self._demanded else None
        values = capabilities[self._capability]
        try:
            return tuple(_grant(value) for value in values or ())
        except (ValueError, TypeError) as error:
            raise Refused(f"a value of {self._capability} that can't be read: {str(error)[:100]}") from None

    async def _self(self) -> tuple[str, frozenset[str]]:
        """The id and the addresses of the node that this machine is."""
        if self._ticks() - self._own_read >= SELF_LASTS:
            await self._together.once(None, self._read_self)
        return self._own

    async def _read_self(self) -> None:
        own = (await self._ask("status", peers="false")).get("Self")
        if not isinstance(own, dict) or not isinstance(own.get("ID"), str) or not own["ID"]:
            raise Unavailable("tailscaled does not say which node this is")
        self._own = own["ID"], frozenset(map(str, own.get("TailscaleIPs") or ()))
        self._own_read = self._ticks()

    async def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        if self._ticks() - self._down < PAUSE:
            raise Unavailable("tailscaled did not answer a moment ago")
        try:
            answer = await ask(self._client, "GET", f"{_API}/{what}", WITHIN, params=parameters)
        except Status:
            raise
        except Unavailable as error:
            self._down = self._ticks()
            self._degraded["tailscale"] = str(error)
            log.warning("tailscaled does not answer: nobody of the tailnet is let in", why=str(error))
            raise
        self._degraded.pop("tailscale", None)
        return answer


def _grant(value: Any) -> Grant:
    """One value of the capability: `{"scopes": ["readonly"], "targets": "tag:web"}`. Raises `ValueError`."""
    if not isinstance(value, dict) or value.keys() - {"scopes", "targets"}:
        raise ValueError("it has scopes and targets, and nothing else")
    scopes, targets = value.get("scopes"), value.get("targets")
    if not isinstance(scopes, list) or not all(isinstance(one, str) for one in scopes):
        raise ValueError("scopes must be a list of names")
    if targets is not None:
        if not isinstance(targets, str):
            raise ValueError("targets must be a selector")
        try:
            selector(targets)
        except UnknownTarget as error:
            raise ValueError(error.message) from None
    return Grant(expand(scopes), targets)


def _login(name: Any) -> str:
    """A login name as policy.yaml has it: in plain letters, so that none looks like another."""
    if not isinstance(name, str) or len(name) > 254 or not _LOGIN.fullmatch(name):
        raise Refused("a login name that can't be told apart from others")
    return name


def _address(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise Missing("no credential, and no peer that could be asked about") from None
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
