"""Opaque access tokens of an issuer, outages, how rarely anybody is asked, and what the rights are in the end."""

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from systemmanager.policy.grants import GrantRule
from systemmanager.policyfile import Policy
from systemmanager.request import Grant
from systemmanager.scopes import BUNDLES
from systemmanager.server.auth import issuer
from systemmanager.server.auth.identity import Refused, Unavailable, principal_of
from systemmanager.server.auth.oidc import Oidc
from tests.idp import NOW, OPAQUE, Answer, Idp, Moment, as_json, jwt, provider, tsidp_claims, verifier
from tests.support import run
from tests.test_oidc_signed import CLAIMS, Changes, one, refused

# --- Opaque tokens ----------------------------------------------------------------------------------------------------


def opaque(idp: Idp, **changes: Any) -> str:
    idp.tokens[OPAQUE] = {name: value for name, value in tsidp_claims(idp.url, **changes).items() if value is not None}
    return OPAQUE


def test_a_token_of_tsidp_is_accepted() -> None:
    found = run(one(Idp(), opaque))
    assert (found.subject, found.kind, found.limits, found.expires_at) == ("oidc:5141251234", "person", None, NOW + 300)


def test_a_token_of_tsidp_is_named_by_its_login_where_that_is_asked_for() -> None:
    assert run(one(Idp(), opaque, subject_claim="username")).subject == "alice@example.com"


NAMES: dict[str, Changes] = {
    "none": {"username": None},
    "with a colon, as the local operator's": {"username": "local:0"},
    "with blanks": {"username": "alice smith"},
    "with another script": {"username": "\u0430lice@example.com"},
    "with a star": {"username": "*@example.com"},
    "number": {"username": 5},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_be_taken_for_another_is_refused(name: str) -> None:
    refused(Idp(), lambda idp: opaque(idp, **NAMES[name]), subject_claim="username")


def test_an_address_that_nobody_has_verified_names_nobody() -> None:
    refused(Idp(), lambda idp: opaque(idp, email="a@b.test", email_verified=False), subject_claim="email")
    refused(Idp(), lambda idp: opaque(idp, email="a@b.test"), subject_claim="email")
    known = run(one(Idp(), lambda idp: opaque(idp, email="a@b.test", email_verified=True), subject_claim="email"))
    assert known.subject == "a@b.test"


SAID: dict[str, Changes] = {
    "active as a text": {"active": "true"},
    "active as a number": {"active": 1},
    "active as a list": {"active": [True]},
    "no active": {"active": None},
    "inactive": {"active": False},
    "no resource was asked for: aud is the client alone": {"aud": ["desk"]},
    "a refresh token": {"token_type": "Refresh"},
    **{name: changes for name, changes in CLAIMS.items() if name not in ("no iat", "nonce: an ID token",
       "at_hash: an ID token", "c_hash: an ID token", "exp NaN", "exp Infinity")},
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_an_opaque_token_of_which_the_issuer_says_anything_else_is_refused(name: str) -> None:
    refused(Idp(), lambda idp: opaque(idp, **SAID[name]))


def moved() -> Answer:
    return 302, b"", {"Location": "/jwks"}


def packed() -> Answer:
    data = gzip.compress(b'{"active": true}' + b" " * 100_000_000)
    return 200, data, {"Content-Encoding": "gzip"}


HOSTILE: dict[str, Callable[[], Answer]] = {
    "a redirect": moved,
    "an error": lambda: (500, b"{}", {}),
    "not found": lambda: (404, b"{}", {}),
    "nothing": lambda: (204, b"", {}),
    "garbage": lambda: (200, b"\x00\xff<html>", {}),
    "a list": lambda: as_json([{"active": True}]),
    "null": lambda: as_json(None),
    "the key twice": lambda: (200, b'{"active":false,"active":true}', {}),
    "NaN": lambda: (200, b'{"active":true,"exp":NaN}', {}),
    "20,000 levels": lambda: (200, b'{"active":' + b"[" * 20_000, {}),
    "more than it may": lambda: (200, b'{"active":true,"x":"' + b"x" * 1_000_000 + b'"}', {}),
    "1 GB is announced": lambda: (200, b'{"active":true', {"Content-Length": str(2**30)}),
    "a bomb": packed,
    "an end in the middle": lambda: (200, b'{"act', {"Content-Length": "5"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/introspect", "/.well-known/openid-configuration", "/jwks"])
def test_a_hostile_answer_lets_nobody_in(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("systemmanager.server.auth.asking.WITHIN", 0.3)
    monkeypatch.setattr("systemmanager.server.auth.asking.ask.__defaults__", (0.3,))
    idp = Idp(behave={path: HOSTILE[name]})
    refused(idp, opaque if path != "/jwks" else lambda idp: jwt(idp.url))
    assert len(idp.asked) <= 3


ALMOST: dict[str, tuple[int, Changes, dict[str, str]]] = {
    "too long": (200, {"x": "x" * 300_000}, {}),
    "of another status": (201, {}, {}),
    "with an error's status": (500, {}, {}),
    "with a redirect": (307, {}, {"Location": "/introspect"}),
    "packed, or so it says": (200, {}, {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("name", ALMOST)
def test_an_answer_that_is_good_but_for_one_thing_lets_nobody_in(name: str) -> None:
    status, more, headers = ALMOST[name]

    async def work() -> None:
        async with provider(Idp()) as idp, verifier(idp) as oidc:
            body = json.dumps({**tsidp_claims(idp.url), **more}).encode()
            idp.behave["/introspect"] = lambda: (status, body, headers)
            with pytest.raises(Unavailable):
                await oidc.identify(OPAQUE)
            assert idp.times("/introspect") == 1

    run(work())


def test_an_issuer_that_hangs_is_given_up_and_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("systemmanager.server.auth.asking.ask.__defaults__", (0.2,))
    idp, clock, degraded = Idp(behave={"/introspect": lambda: None}), Moment(), dict[str, str]()

    async def work() -> None:
        async with provider(idp), verifier(idp, clock, degraded=degraded) as oidc:
            token = opaque(idp)
            for _ in range(20):
                with pytest.raises(Unavailable):
                    await oidc.identify(token)
            assert idp.times("/introspect") == 1 and "oidc" in degraded
            idp.behave.clear()
            clock.now += 2
            assert await oidc.identify(token)
            assert "oidc" not in degraded

    run(work())


def _status(status: int) -> Callable[[Idp], None]:
    return lambda idp: idp.behave.update({"/introspect": lambda: (status, b"", {})})


FAILS: dict[str, Callable[[Idp], None]] = {
    **{f"status {status}": _status(status) for status in (302, 401, 403, 404, 429, 500, 503)},
    "no metadata": lambda idp: idp.behave.update(
        dict.fromkeys(
            ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"), lambda: (404, b"", {})
        )
    ),
    "metadata of another": lambda idp: idp.metadata.update(issuer="https://evil.test"),
    "an endpoint in the clear": lambda idp: idp.metadata.update(introspection_endpoint="http://192.0.2.1/"),
    "no keys": lambda idp: idp.behave.update({"/jwks": lambda: (200, b"{}", {})}),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_flood_of_tokens_is_no_flood_of_questions_to_an_issuer_that_fails(name: str) -> None:
    idp, clock, degraded = Idp(), Moment(), dict[str, str]()
    FAILS[name](idp)

    async def flood(oidc: Oidc) -> int:
        before = len(idp.asked)
        for number in range(20):
            token = jwt(idp.url, number=number) if name == "no keys" else f"{number:032x}"
            with pytest.raises(Unavailable):
                await oidc.identify(token)
        return len(idp.asked) - before

    async def work() -> None:
        async with provider(idp), verifier(idp, clock, degraded=degraded) as oidc:
            first = await flood(oidc)
            assert first <= 2, "at most one question for the metadata and one for the token"
            assert "oidc" in degraded and ("CLIENT_SECRET" in degraded["oidc"]) == (
                name in ("status 401", "status 403")
            )
            clock.now += issuer.PAUSE - 0.1
            assert await flood(oidc) == 0
            clock.now += 0.1
            assert await flood(oidc) >= 1, "it is asked again"

    run(work())


def test_what_an_issuer_can_not_read_is_a_word_on_that_token_alone() -> None:
    idp = Idp(behave={"/introspect": lambda: (400, b"", {})})

    async def work() -> None:
        async with provider(idp), verifier(idp) as oidc:
            for number in range(5):
                with pytest.raises(Refused) as caught:
                    await oidc.identify(f"{number:032x}")
                assert type(caught.value) is Refused
            idp.behave.clear()
            assert await oidc.identify(opaque(idp))

    run(work())


def test_an_issuer_that_is_not_there_lets_nobody_in() -> None:
    async def work() -> None:
        idp = Idp(url="http://127.0.0.1:1")
        async with verifier(idp) as oidc:
            for token in (OPAQUE, jwt(idp.url)):
                with pytest.raises(Unavailable):
                    await oidc.identify(token)

    run(work())


METADATA: dict[str, Changes] = {
    "another issuer": {"issuer": "https://evil.test"},
    "an issuer with a slash": {"issuer": "{}/"},
    "no issuer": {"issuer": None},
    "introspection in the clear, elsewhere": {"introspection_endpoint": "http://192.0.2.1/introspect"},
    "introspection by another scheme": {"introspection_endpoint": "file:///etc/passwd"},
    "no introspection": {"introspection_endpoint": None},
    "introspection as a list": {"introspection_endpoint": ["x"]},
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_is_not_the_issuer_s_own_lets_nobody_in(name: str) -> None:
    idp = Idp(metadata=METADATA[name])
    said = refused(idp, opaque)
    assert any(words in said for words in ("to the letter", "is no https address", "has no introspection"))
    assert idp.times("/introspect") == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/introspect", "http://idp.test/introspect", "https:///introspect"])
def test_an_issuer_by_https_has_no_endpoint_in_the_clear(url: str) -> None:
    async def work() -> None:
        async with issuer.client() as client:
            with pytest.raises(Unavailable, match="no https"):
                issuer.Issuer("https://idp.test", client)._endpoint(
                    {"introspection_endpoint": url}, "introspection_endpoint"
                )

    run(work())


def test_metadata_is_found_where_oauth_has_it() -> None:
    idp = Idp(behave={"/.well-known/openid-configuration": lambda: (404, b"{}", {})})
    idp.behave["/.well-known/oauth-authorization-server"] = lambda: as_json(
        {"issuer": idp.url, "introspection_endpoint": f"{idp.url}/introspect"}
    )
    assert run(one(idp, opaque)).subject == "oidc:5141251234"


def test_a_client_with_a_wrong_secret_learns_nothing() -> None:
    idp = Idp()

    async def work() -> None:
        async with provider(idp), verifier(idp) as oidc:
            oidc.issuer._auth = None
            with pytest.raises(Refused):
                await oidc.identify(opaque(idp))

    run(work())


# --- How often the issuer is asked ------------------------------------------------------------------------------------


def test_a_hundred_requests_with_one_token_ask_once() -> None:
    idp = Idp()

    async def work() -> None:
        async with provider(idp), verifier(idp) as oidc:
            token, idp.gate = opaque(idp), asyncio.Event()
            asking = [asyncio.create_task(oidc.identify(token)) for _ in range(100)]
            while not idp.asked:
                await asyncio.sleep(0)
            asking[0].cancel()
            idp.gate.set()
            done = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert all(isinstance(one, tuple) for one in done[1:])
            assert idp.times("/introspect") == 1

    run(work())


def test_a_refusal_is_remembered_for_two_seconds_and_an_outage_not_at_all() -> None:
    idp, clock = Idp(), Moment()

    async def work() -> None:
        async with provider(idp), verifier(idp, clock) as oidc:
            for seconds, asked in ((0, 1), (1.9, 1), (0.2, 2)):
                clock.now += seconds
                with pytest.raises(Refused):
                    await oidc.identify("unknown")
                assert idp.times("/introspect") == asked
            _, until = await oidc.identify(opaque(idp))
            assert until == clock.now + 5

    run(work())


# --- Rights -----------------------------------------------------------------------------------------------------------

POLICY = Policy(
    (
        GrantRule(frozenset({"oidc:u-17"}), frozenset(), frozenset(), Grant(BUNDLES["readonly"], "tag:web")),
        GrantRule(frozenset(), frozenset({"ops"}), frozenset(), Grant(frozenset({"service:write"}))),
    )
)
READ, WRITE = Grant(BUNDLES["readonly"], "tag:web"), Grant(frozenset({"service:write"}))

RIGHTS: dict[str, tuple[Mapping[str, Any], tuple[Grant, ...]]] = {
    "no scope of ours narrows nothing": ({"scope": "openid email profile offline_access"}, (READ,)),
    "no scope at all": ({"scope": None}, (READ,)),
    "an empty scope": ({"scope": ""}, (READ,)),
    "a scope of ours narrows": ({"scope": "openid system:read"}, (Grant(frozenset({"system:read"}), "tag:web"),)),
    "a scope that was not granted gives nothing": ({"scope": "system:admin"}, ()),
    "admin does not widen": ({"scope": "admin"}, (READ,)),
    "an alias": ({"scope": "docker:read"}, (Grant(frozenset({"container:read"}), "tag:web"),)),
    "a group gives its grant": ({"groups": ["ops", 7]}, (READ, WRITE)),
    "a group as a text is none": ({"groups": "ops"}, (READ,)),
    "groups, narrowed": ({"groups": ["ops"], "scope": "service:control"}, (WRITE,)),
    "a stranger": ({"sub": "u-18"}, ()),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_scopes_of_a_token_only_ever_narrow_what_the_policy_grants(name: str) -> None:
    changes, wanted = RIGHTS[name]
    identity = run(one(Idp(), lambda idp: jwt(idp.url, None, "ES256", **changes)))
    assert principal_of(identity, POLICY).grants == wanted
    assert principal_of(identity, Policy()).grants == ()
