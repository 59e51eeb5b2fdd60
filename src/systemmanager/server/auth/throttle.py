"""Failed attempts per address: who has had too many waits, before anything is computed or asked for them."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systemmanager.server.auth.identity import Refused, Unavailable

AT_ONCE, EVERY = 20, 3.0
"""Failed attempts of one address that are heard at once, and seconds after which one more is."""

BY_PROXY = 10
"""So many times as many on loopback and on the unix socket, where a proxy brings everybody. A peer with a space in its
name is one whom such a proxy names."""

MOST_ADDRESSES = 10_000
TAILNET = ipaddress.IPv6Network("fd7a:115c:a1e0::/48")


class Throttled(Refused):
    """Too many failed attempts; `seconds` until the next one is heard."""

    def __init__(self, seconds: int) -> None:
        super().__init__("too many failed attempts")
        self.seconds = seconds


@dataclass(slots=True)
class _Failed:
    """Attempts that count yet, as of a time: each is forgotten after its while."""

    count: float
    at: float


class Throttle:
    """Counts failed attempts. Only those: who has a good credential is never slowed down by it."""

    def __init__(self, ticks: Callable[[], float] = time.monotonic) -> None:
        self._ticks = ticks
        self._failed: OrderedDict[str, _Failed] = OrderedDict()

    @contextmanager
    def attempt(self, peer: str, *, heard: bool = False) -> Iterator[None]:
        """One attempt. It counts as failed from its beginning, so that a thousand at a time count a thousand, and is
        given back unless it ends as `Refused` by a word on the credential itself.

        Raises `Throttled` unheard, for an address that has had too many; one that is `heard` in any case counts when
        it has failed.
        """
        if not heard:
            self.check(peer)
            self.failed(peer)
        failed = False
        try:
            yield
        except Refused as refused:
            failed = not isinstance(refused, Unavailable)
            raise
        finally:
            if failed and heard:
                self.failed(peer)
            elif not failed and not heard:
                self._give_back(peer)

    def _give_back(self, peer: str) -> None:
        key, size = _network(peer)
        if (one := self._failed.get(key)) is not None:
            one.count, one.at = self._now(one, size) - 1, self._ticks()
            if one.count <= 0:
                del self._failed[key]

    def check(self, peer: str) -> None:
        """Raises `Throttled` for an address that has had too many."""
        key, size = _network(peer)
        if (one := self._failed.get(key)) is None:
            return
        over = self._now(one, size) + 1 - AT_ONCE * size
        if over > 0:
            raise Throttled(max(1, math.ceil(over * EVERY / size)))

    def failed(self, peer: str) -> None:
        """One more failed attempt. The address that has failed least recently is forgotten when there are too many."""
        key, size = _network(peer)
        one = self._failed.setdefault(key, _Failed(0.0, self._ticks()))
        one.count, one.at = min(self._now(one, size) + 1, AT_ONCE * size), self._ticks()
        self._failed.move_to_end(key)
        if len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)

    def _now(self, one: _Failed, size: int) -> float:
        return max(0.0, one.count - (self._ticks() - one.at) * size / EVERY)


def _network(peer: str) -> tuple[str, int]:
    """What counts as one address (of IPv6 the /64 that one customer has), and how many share it.

    A tailnet is one /64, and gives each of its nodes an address there that no other node can send from.
    """
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer, 1 if " " in peer else BY_PROXY
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return str(address), BY_PROXY
    whole = address.version == 4 or address in TAILNET
    return (str(address) if whole else str(int(address) >> 64)), 1
