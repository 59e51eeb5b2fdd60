"""Failed attempts per address: a flood is answered before anything is computed or asked, and nobody else suffers."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from systemmanager.server.auth import throttle
from systemmanager.server.auth.identity import Missing, Refused, Unavailable
from systemmanager.server.auth.issuer import PAUSE
from systemmanager.server.auth.throttle import AT_ONCE, EVERY, Throttle, Throttled
from tests.idp import OPAQUE, Moment
from tests.serving import token
from tests.support import records, run
from tests.test_door import There, gateway

HOME, OTHER = "192.0.2.1", "192.0.2.2"


def flood(one: Throttle, peer: str, times: int) -> None:
    for _ in range(times):
        one.check(peer)
        one.failed(peer)


def waits(one: Throttle, peer: str) -> int:
    """Seconds that an address has to wait."""
    try:
        one.check(peer)
    except Throttled as told:
        return told.seconds
    return 0


def test_so_many_attempts_are_heard_and_then_one_every_while() -> None:
    clock = Moment()
    one = Throttle(clock)
    flood(one, HOME, AT_ONCE)
    assert waits(one, HOME) == EVERY and waits(one, OTHER) == 0
    clock.now += EVERY - 0.1
    assert waits(one, HOME) == 1
    clock.now += 0.1
    flood(one, HOME, 1)
    assert waits(one, HOME) == EVERY
    clock.now += EVERY * AT_ONCE
    flood(one, HOME, AT_ONCE)


def test_attempts_beyond_the_bound_do_not_lengthen_the_wait() -> None:
    clock = Moment()
    one = Throttle(clock)
    for _ in range(1000):
        one.failed(HOME)
    assert waits(one, HOME) == EVERY


SAME: dict[str, tuple[str, str, bool]] = {
    "IPv6 of one network": ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
    "IPv6 of two networks": ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
    "IPv4 in IPv6": (HOME, f"::ffff:{HOME}", True),
    "IPv4 neighbours": (HOME, OTHER, False),
    "two nodes of a tailnet": ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", False),
    "one node of a tailnet": ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0:0::1", True),
}


@pytest.mark.parametrize("name", SAME)
def test_what_counts_as_one_address(name: str) -> None:
    first, second, same = SAME[name]
    one = Throttle(Moment())
    flood(one, first, AT_ONCE)
    assert bool(waits(one, second)) is same


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "uid:0", "unknown"])
def test_where_a_proxy_brings_everybody_more_is_heard(peer: str) -> None:
    one = Throttle(Moment())
    flood(one, peer, AT_ONCE * 10)
    assert waits(one, peer) == 1


def test_a_flood_of_addresses_takes_no_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MOST_ADDRESSES", 100)
    one = Throttle(Moment())
    flood(one, HOME, AT_ONCE)
    for number in range(99):
        one.failed(f"10.0.0.{number}")
    assert waits(one, HOME) and len(one._failed) == 100
    one.failed("10.0.1.1")
    assert not waits(one, HOME) and len(one._failed) == 100


def test_over_http_a_flood_is_429_unasked_and_who_is_known_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BY_PROXY", 1)

    async def work() -> None:
        async with gateway(tmp_path) as there:
            there.authentication.throttle = Throttle(Moment())
            assert (await there.ask(OPAQUE)).status_code == 200
            for number in range(AT_ONCE):
                assert (await there.ask(f"{number:032x}")).status_code == 401
            asked = there.idp.times("/introspect")
            for bad in ("f" * 32, token(), None):
                answer = await there.ask(bad)
                assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
                assert "www-authenticate" not in answer.headers
            assert there.idp.times("/introspect") == asked
            there.authentication.clock = lambda: time.time() + 6
            assert (await there.ask(OPAQUE)).status_code == 200, "a token that was good is heard"
            assert there.idp.times("/introspect") == asked + 1, "and asked about again"
            there.idp.tokens.clear()
            there.authentication.clock = lambda: time.time() + 12
            assert (await there.ask(OPAQUE)).status_code == 401
            assert (await there.ask(OPAQUE)).status_code == 429, "once only"

    run(work())
    told = [one["arguments"]["why"] for one in records(tmp_path) if one["tool"] == "credential refused"]
    assert "too many failed attempts" in told


def test_an_outage_of_the_issuer_throttles_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "BY_PROXY", 1)

    async def work() -> None:
        async with gateway(tmp_path) as there:
            clock = moved(there)
            there.idp.behave["/introspect"] = lambda: (503, b"", {})
            for _ in range(AT_ONCE + 5):
                assert (await there.ask(OPAQUE)).status_code == 401
                clock.now += PAUSE
            assert there.idp.times("/introspect") == AT_ONCE + 5
            there.idp.behave.clear()
            assert (await there.ask(OPAQUE)).status_code == 200

    run(work())


def moved(there: There) -> Moment:
    """A clock that the issuer's pauses are judged by."""
    clock, verifier = Moment(), there.authentication.issuer
    assert verifier is not None
    verifier.issuer._ticks = clock
    return clock


def test_a_flood_at_once_counts_each_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them has failed yet when the last one comes."""
    monkeypatch.setattr(throttle, "BY_PROXY", 1)

    async def work() -> None:
        async with gateway(tmp_path) as there:
            there.authentication.throttle, there.idp.gate = Throttle(Moment()), asyncio.Event()
            flood = [asyncio.create_task(there.ask(f"{number:032x}")) for number in range(AT_ONCE + 10)]
            while sum(one.done() for one in flood) < 10:
                await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            assert {one.result().status_code for one in flood if one.done()} == {429}
            there.idp.gate.set()
            answers = [(await one).status_code for one in flood]
            assert (answers.count(401), answers.count(429)) == (AT_ONCE, 10)
            assert there.idp.times("/introspect") == AT_ONCE

    run(work())


ENDS: dict[str, tuple[type[BaseException] | None, bool, bool]] = {
    "well": (None, False, False),
    "well, heard in any case": (None, True, False),
    "refused": (Refused, False, True),
    "refused, heard in any case": (Refused, True, True),
    "missing": (Missing, False, True),
    "an outage": (Unavailable, False, False),
    "an outage, heard in any case": (Unavailable, True, False),
    "cancelled": (asyncio.CancelledError, False, False),
    "a defect": (KeyError, False, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_attempt_counts_until_it_is_known_to_be_no_failure(name: str) -> None:
    error, heard, counts = ENDS[name]
    one = Throttle(Moment())
    flood(one, HOME, AT_ONCE - 1)
    with suppress(*(() if error is None else (error,))), one.attempt(HOME, heard=heard):
        assert bool(waits(one, HOME)) is not heard
        if error is not None:
            raise error("why")
    assert bool(waits(one, HOME)) is counts


def test_good_attempts_leave_nothing_behind() -> None:
    one = Throttle(Moment())
    for _ in range(1000):
        with one.attempt(HOME):
            pass
    assert not one._failed
