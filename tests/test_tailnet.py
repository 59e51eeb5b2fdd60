"""Identities of a tailnet: whose connection it is, what headers count, and everything that names nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from systemmanager.policy.grants import GrantRule
from systemmanager.policyfile import Policy
from systemmanager.request import Grant
from systemmanager.scopes import BUNDLES, expand
from systemmanager.server.auth import tailnet
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.identity import Identity, Missing, Refused, Unavailable, principal_of
from systemmanager.server.auth.tailnet import Tailnet
from tests.idp import Moment
from tests.support import run
from tests.tailscaled import ALICE, CAPABILITY, OWN, RUNNER, STRANGER, Answer, Tailscaled, person, tagged, tailscaled

LOGIN = (b"tailscale-user-login", b"alice@example.com")


@asynccontextmanager
async def asked(
    tmp_path: Path, clock: Moment | None = None, **fields: Any
) -> AsyncIterator[tuple[Tailnet, Tailscaled]]:
    async with tailscaled(tmp_path) as daemon, tailnet.client(daemon.path) as client:
        one = Tailnet(daemon.path, client, ticks=clock or Moment(), **fields)
        try:
            yield one, daemon
        finally:
            await one.close()


def scope(address: str | None, *headers: tuple[bytes, bytes], port: int = 40_000) -> dict[str, Any]:
    return {
        "type": "http",
        "client": (address, port) if address else None,
        "headers": list(headers),
        "query_string": b"",
    }


def owner(daemon: Tailscaled) -> str:
    """The peer's name when tailscaled itself is at the other end of a unix socket."""
    return f"uid:{daemon.path.stat().st_uid}"


def of(tmp_path: Path, address: str, said: dict[str, Any] | None = None, **fields: Any) -> Identity:
    async def work() -> Identity:
        async with asked(tmp_path, **fields) as (one, daemon):
            if said is not None:
                daemon.known[address] = said
            return await one.identify(scope(address))

    return run(work())


# --- By address -------------------------------------------------------------------------------------------------------


def test_a_person_is_named_by_login(tmp_path: Path) -> None:
    found = of(tmp_path, ALICE)
    assert (found.subject, found.kind, found.tags, found.limits) == ("alice@example.com", "person", (), None)
    assert found.verified_by == "tailscale whois desk.tail1.ts.net."


def test_a_tagged_node_is_named_by_its_id_and_granted_by_its_tags(tmp_path: Path) -> None:
    """Its host name is for the node itself to choose."""
    found = of(tmp_path, RUNNER, tagged("tag:web", "tag:ci"))
    assert (found.subject, found.kind, found.tags) == ("node:nRunner2CNTRL", "node", ("tag:ci", "tag:web"))


@pytest.mark.parametrize("address", ["fd7a:115c:a1e0::1", f"::ffff:{ALICE}"])
def test_addresses_of_both_families_are_asked_about(address: str, tmp_path: Path) -> None:
    async def work() -> Identity:
        async with asked(tmp_path) as (one, daemon):
            daemon.known["fd7a:115c:a1e0::1"] = person()
            return await one.identify(scope(address))

    assert run(work()).subject == "alice@example.com"


NOBODY: dict[str, str | None] = {
    "a stranger": STRANGER,
    "this machine": "127.0.0.1",
    "no peer": None,
    "no address": "localhost",
    "another user on the unix socket": "uid:12345",
}


@pytest.mark.parametrize("name", NOBODY)
@pytest.mark.parametrize("headers", [(), (LOGIN,)], ids=["plain", "with a header"])
def test_who_is_not_of_the_tailnet_is_nobody_whatever_headers_say(
    headers: tuple[tuple[bytes, bytes], ...], name: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asked(tmp_path) as (one, _):
            with pytest.raises(Missing):
                await one.identify(scope(NOBODY[name], *headers, (b"x-forwarded-for", ALICE.encode())))

    run(work())


def test_a_header_changes_nothing_for_a_peer_with_an_address(tmp_path: Path) -> None:
    async def work() -> Identity:
        async with asked(tmp_path) as (one, _):
            return await one.identify(scope(RUNNER, LOGIN))

    assert run(work()).subject == "node:nRunner2CNTRL"


def test_the_gateway_s_own_machine_is_nobody(tmp_path: Path) -> None:
    """Any local user could connect from its address."""
    with pytest.raises(Refused, match="own machine"):
        of(tmp_path, OWN)


SAID: dict[str, Any] = {
    "no node": {"UserProfile": {"LoginName": "a@b.test"}},
    "no user": {"Node": {"StableID": "n1CNTRL"}},
    "no id": person(StableID=None),
    "an id with a colon": person(StableID="n1:2"),
    "tags as a text": person(Tags="tag:ci"),
    "a tag that is none": tagged("tag:ci", "ci"),
    "a tag as a number": person(Tags=[7]),
    "no login": person(""),
    "a login without a domain": person("alice"),
    "a login with blanks": person("alice smith@example.com"),
    "a login of another script": person("\u0430lice@example.com"),
    "a login of everybody": person("*@example.com"),
    "a login with a line break": person("alice@example.com\n"),
    "a login of the local operator": person("local:0"),
    "capabilities as a list": person(caps=["x"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_an_answer_that_names_nobody_clearly_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        of(tmp_path, ALICE, SAID[name])


HOSTILE: dict[str, Callable[[str], Answer]] = {
    "hangs": lambda path: None,
    "garbage": lambda path: (200, b"\xff\x00"),
    "a list": lambda path: (200, b"[]"),
    "an error": lambda path: (500, b"{}"),
    "forbidden": lambda path: (403, b"{}"),
    "a redirect": lambda path: (302, b"{}"),
    "more than it may": lambda path: (200, b'{"x":"' + b"x" * 1_000_000 + b'"}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tailscaled_that_answers_anything_else_lets_nobody_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailnet, "WITHIN", 0.2)
    degraded: dict[str, str] = {}

    async def work() -> None:
        async with asked(tmp_path, degraded=degraded) as (one, daemon):
            daemon.behave = HOSTILE[name]
            for _ in range(5):
                with pytest.raises(Unavailable):
                    await one.identify(scope(ALICE))
            assert len(daemon.asked) == 1 or name in ("an error", "forbidden", "a redirect")

    run(work())


def test_a_tailscaled_that_is_not_there_lets_nobody_in_and_is_back_by_itself(tmp_path: Path) -> None:
    clock, degraded = Moment(), dict[str, str]()

    async def work() -> None:
        async with tailnet.client(tmp_path / "tailscaled.sock") as client:
            one = Tailnet(tmp_path / "tailscaled.sock", client, degraded=degraded, ticks=clock)
            with pytest.raises(Unavailable):
                await one.identify(scope(ALICE))
            assert "tailscale" in degraded
            with pytest.raises(Unavailable):
                await one.identify(scope("uid:0", LOGIN))
            clock.now += 1
            async with tailscaled(tmp_path):
                assert (await one.identify(scope(ALICE))).subject == "alice@example.com"
            assert "tailscale" not in degraded

    run(work())


def test_tailscaled_is_asked_once_in_a_few_seconds(tmp_path: Path) -> None:
    clock = Moment()

    async def work() -> None:
        async with asked(tmp_path, clock) as (one, daemon):
            await asyncio.gather(*(one.identify(scope(ALICE)) for _ in range(50)))
            assert daemon.asked.count("whois") == 1
            del daemon.known[ALICE]
            clock.now += 5
            with pytest.raises(Missing):
                await one.identify(scope(ALICE))

    run(work())


# --- By headers, on a unix socket -------------------------------------------------------------------------------------


def by_headers(tmp_path: Path, *headers: tuple[bytes, bytes], **fields: Any) -> Identity:
    async def work() -> Identity:
        async with asked(tmp_path, **fields) as (one, daemon):
            return await one.identify(scope(owner(daemon), *headers))

    return run(work())


def test_headers_of_tailscaled_name_a_person(tmp_path: Path) -> None:
    found = by_headers(tmp_path, LOGIN, (b"x-forwarded-for", ALICE.encode()))
    assert (found.subject, found.kind, found.limits) == ("alice@example.com", "person", None)


HEADERS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "none": (),
    "a tagged node: no login": ((b"x-forwarded-for", RUNNER.encode()),),
    "empty": ((LOGIN[0], b""),),
    "twice": (LOGIN, LOGIN),
    "twice, once with underscores": (LOGIN, (b"tailscale_user_login", b"root@example.com")),
    "encoded (RFC 2047)": ((LOGIN[0], b"=?utf-8?q?alice=40example.com?="),),
    "with a line feed": ((LOGIN[0], b"alice@example.com\nx"),),
    "this machine, by tailscaled": (LOGIN, (b"x-forwarded-for", OWN.encode())),
    "two addresses": (LOGIN, (b"x-forwarded-for", ALICE.encode()), (b"x-forwarded-for", ALICE.encode())),
    "capabilities that are no JSON": (LOGIN, (b"tailscale-app-capabilities", b"{")),
    "capabilities twice": (LOGIN, *[(b"tailscale-app-capabilities", b"{}")] * 2),
    "capabilities with a key twice": (LOGIN, (b"tailscale-app-capabilities", b'{"a":[],"a":[]}')),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_name_nobody_clearly_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        by_headers(tmp_path, *HEADERS[name])


def test_what_came_by_funnel_is_refused_in_every_mode(tmp_path: Path) -> None:
    async def work() -> None:
        async with asked(tmp_path) as (one, daemon):
            public = scope(owner(daemon), LOGIN, (b"tailscale-funnel-request", b"?1"))
            with pytest.raises(Refused, match="Funnel"):
                await Authentication(tailnet=one).user(public)

    run(work())


def test_a_bearer_token_is_never_passed_over_for_the_tailnet(tmp_path: Path) -> None:
    async def work() -> None:
        async with asked(tmp_path) as (one, _):
            modes = Authentication(tailnet=one)
            assert (await modes.user(scope(ALICE))).access_token.subject == "alice@example.com"
            for bad in (b"Bearer x", b"Basic x", b"", b"Bearer"):
                with pytest.raises(Refused):
                    await modes.user(scope(ALICE, (b"authorization", bad)))

    run(work())


# --- Capabilities -----------------------------------------------------------------------------------------------------

POLICY = Policy(
    (
        GrantRule(
            frozenset({"*@example.com"}), frozenset(), frozenset({"tag:ci"}), Grant(expand(["readonly"]), "tag:web")
        ),
    )
)
ALL, READ = Grant(BUNDLES["readonly"], "tag:web"), frozenset({"system:read"})

CAPABILITIES: dict[str, tuple[Any, tuple[Grant, ...] | None]] = {
    "none": (None, (ALL,)),
    "another one": ({"example.com/cap/other": [{"scopes": ["admin"]}]}, (ALL,)),
    "fewer scopes": ({CAPABILITY: [{"scopes": ["system:read"]}]}, (Grant(READ, "tag:web"),)),
    "fewer targets": (
        {CAPABILITY: [{"scopes": ["system:read"], "targets": "env:test"}]},
        (Grant(READ, "(tag:web) and (env:test)"),),
    ),
    "two values": (
        {CAPABILITY: [{"scopes": ["system:read"]}, {"scopes": ["file:read"], "targets": "a or b"}]},
        (Grant(READ, "tag:web"), Grant(frozenset({"file:read"}), "(tag:web) and (a or b)")),
    ),
    "admin does not widen": ({CAPABILITY: [{"scopes": ["admin"]}]}, (ALL,)),
    "no value": ({CAPABILITY: []}, ()),
    "null": ({CAPABILITY: None}, ()),
    "no scope": ({CAPABILITY: [{"scopes": []}]}, ()),
    "what was not granted": ({CAPABILITY: [{"scopes": ["service:write"]}]}, ()),
    "an unknown scope": ({CAPABILITY: [{"scopes": ["system:raed"]}]}, None),
    "a selector that can't be read": ({CAPABILITY: [{"scopes": ["system:read"], "targets": "(web"}]}, None),
    "targets as a list": ({CAPABILITY: [{"scopes": ["system:read"], "targets": ["*"]}]}, None),
    "scopes as a text": ({CAPABILITY: [{"scopes": "admin"}]}, None),
    "a scope as a number": ({CAPABILITY: [{"scopes": [1]}]}, None),
    "a misspelt key": ({CAPABILITY: [{"scopes": ["system:read"], "target": "web"}]}, None),
    "no object": ({CAPABILITY: ["admin"]}, None),
    "a text": ({CAPABILITY: "admin"}, None),
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_narrows_what_the_policy_grants(name: str, tmp_path: Path) -> None:
    caps, wanted = CAPABILITIES[name]
    if wanted is None:
        with pytest.raises(Refused):
            of(tmp_path, ALICE, person(caps=caps))
        return
    for address, said in ((ALICE, person(caps=caps)), (RUNNER, tagged("tag:ci", caps=caps))):
        (tmp_path / address).mkdir()
        identity = of(tmp_path / address, address, said)
        assert principal_of(identity, POLICY).grants == wanted
        assert principal_of(identity, Policy()).grants == ()


def test_a_capability_that_is_demanded_must_be_there(tmp_path: Path) -> None:
    identity = of(tmp_path, ALICE, capability="example.com/cap/other")
    assert principal_of(identity, POLICY).grants == ()


def test_the_capability_may_have_another_name_and_then_only_that_counts(tmp_path: Path) -> None:
    caps = {"example.com/cap/other": [{"scopes": ["system:read"]}], CAPABILITY: [{"scopes": ["file:read"]}]}
    identity = of(tmp_path, ALICE, person(caps=caps), capability="example.com/cap/other")
    assert principal_of(identity, POLICY).grants == (Grant(READ, "tag:web"),)


def test_capabilities_in_a_header_count_as_those_of_whois(tmp_path: Path) -> None:
    header = (b"tailscale-app-capabilities", b'{"example.com/cap/systemmanager":[{"scopes":["system:read"]}]}')
    assert by_headers(tmp_path, LOGIN, header).limits == (Grant(READ),)
