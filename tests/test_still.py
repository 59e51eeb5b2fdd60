"""A credential that ends while its call waits for a person: whatever the person says then, nothing is done with it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StreamableHttpTransport
from mcp.shared.exceptions import MCPError

from systemmanager import still
from systemmanager.approvals.webhook import Webhook
from systemmanager.operation import Risk
from systemmanager.policy.demands import Approvals, Demand
from systemmanager.server.auth import tailnet
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.resource import Resource
from systemmanager.server.auth.tokens import claims_of
from tests.fakes import codes
from tests.idp import BASE, OPAQUE, Idp, Moment, provider, tsidp_claims, verifier
from tests.serving import ERAS, KEYS, SECRET, Era, Served, by_token, served, token
from tests.support import records, run, tcp_server
from tests.tailscaled import Tailscaled, person, tailscaled
from tests.test_approvals_desk import PULL, Scene
from tests.test_approvals_wait import pending
from tests.test_approvals_webhook import Receiver, response, yes
from tests.test_door import granting

TOOL = "pull_docker_image"
FAR = 90 * 86_400


@dataclass
class There:
    """A gateway with a desk over HTTP, where every mode knows a caller; and those who verify credentials."""

    scene: Scene
    served: Served
    modes: Authentication
    idp: Idp
    daemon: Tailscaled
    clock: Moment

    def client(self, era: Era, credential: str, **fields: Any) -> Client[Any]:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        return Client(StreamableHttpTransport(self.served.url, headers=headers), mode=era, **fields)

    async def call(
        self, era: Era, credential: str, client: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        async with self.client(era, credential, **(client or {})) as one:
            done = await one.call_tool(TOOL, {**PULL, **more}, raise_on_error=False)
            reply: dict[str, Any] = done.structured_content
            return reply

    def later(self, seconds: float) -> None:
        """All clocks that credentials are judged by go on."""
        self.clock.now += seconds


@asynccontextmanager
async def there(folder: Path) -> AsyncIterator[There]:
    scene, clock = Scene(folder), Moment(time.time())
    scene.gateway.policy = replace(granting("admin"), taint_minutes=0)
    modes = by_token(scene.gateway)
    modes.clock = clock
    async with (
        provider(Idp()) as idp,
        verifier(idp, clock, subject_claim="username") as oidc,
        tailscaled(folder) as daemon,
        tailnet.client(daemon.path) as client,
    ):
        idp.tokens[OPAQUE] = tsidp_claims(idp.url, iat=int(clock()), nbf=int(clock()), exp=int(clock()) + 300)
        daemon.known["127.0.0.1"] = person()
        modes.issuer, modes.resource = oidc, Resource(BASE, idp.url)
        modes.tailnet = tailnet.Tailnet(daemon.path, client, ticks=clock)
        async with served(scene.gateway, modes) as one:
            yield There(scene, one, modes, idp, daemon, clock)
        await modes.tailnet.close()


OURS = token(subject="claude")
ID = str(claims_of(KEYS, OURS)["jti"])


def _revoked(one: There) -> None:
    """By another process."""
    Ledger(one.scene.folder / "tokens.sqlite").revoke(ID, time.time() + FAR)
    assert one.modes.tokens is not None
    one.modes.tokens._ledger._tried -= 1  # the second for which a ledger is taken as read


def _expired(one: There) -> None:
    one.later(3601)


def _inactive(one: There) -> None:
    one.idp.tokens.clear()
    one.later(5)


def _outage(one: There) -> None:
    one.idp.behave["/introspect"] = lambda: (503, b"", {})
    one.later(5)


def _removed(one: There) -> None:
    del one.daemon.known["127.0.0.1"]
    one.later(5)


def _somebody_else(one: There) -> None:
    one.daemon.known["127.0.0.1"] = person("mallory@example.com")
    one.later(5)


def _tailscaled_gone(one: There) -> None:
    one.daemon.behave = lambda path: (500, b"")
    one.later(5)


def _narrowed(one: There) -> None:
    one.scene.gateway.policy = replace(granting("readonly"), taint_minutes=0, version=one.scene.gateway.policy.version)


def _capability(one: There) -> None:
    one.daemon.known["127.0.0.1"] = person(caps={"example.com/cap/systemmanager": [{"scopes": ["readonly"]}]})
    one.later(5)


def _nothing(one: There) -> None:
    one.later(5)


HAPPENS: dict[str, tuple[str, Callable[[There], None], str]] = {
    "a token, nothing": (OURS, _nothing, "ok"),
    "a token is revoked": (OURS, _revoked, "unauthenticated"),
    "a token expires": (OURS, _expired, "unauthenticated"),
    "an access token, nothing": (OPAQUE, _nothing, "ok"),
    "an access token is ended": (OPAQUE, _inactive, "unauthenticated"),
    "an access token expires": (OPAQUE, _expired, "unauthenticated"),
    "an access token, and the issuer fails": (OPAQUE, _outage, "unauthenticated"),
    "an access token, and its grant is narrowed": (OPAQUE, _narrowed, "scope_missing"),
    "a node, nothing": ("", _nothing, "ok"),
    "a node is removed": ("", _removed, "unauthenticated"),
    "a node's address is another's": ("", _somebody_else, "unauthenticated"),
    "a node, and tailscaled fails": ("", _tailscaled_gone, "unauthenticated"),
    "a node's capability is narrowed": ("", _capability, "scope_missing"),
}


def said(reply: dict[str, Any]) -> str:
    return str(reply["error"]["code"]) if "error" in reply else codes(reply)["a"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", HAPPENS)
def test_what_happens_to_a_credential_while_its_call_waits_counts(tmp_path: Path, name: str, era: Era) -> None:
    credential, happen, code = HAPPENS[name]

    async def work() -> None:
        async with there(tmp_path) as one:
            call = asyncio.create_task(one.call(era, credential, approval_wait=30))
            id = await pending(one.scene)
            happen(one)
            await one.scene.desk.answer(id, "ann@example.com", True, "operator")
            assert said(await asyncio.wait_for(call, 10)) == code
            assert one.scene.engine.pulled == (1 if code == "ok" else 0)
            left = one.scene.desk.store.get(id).state
            assert left == ("used" if code == "ok" else "approved"), "a yes that did nothing is not used up"

    run(work())
    decided = [(one["phase"], one.get("code")) for one in records(tmp_path) if one["phase"] in ("intent", "refused")]
    assert decided == [("intent", None) if code == "ok" else ("refused", code)], "one decision record"


def test_who_can_not_be_verified_again_is_on_record_and_told_what_to_do(tmp_path: Path) -> None:
    async def work() -> dict[str, Any]:
        async with there(tmp_path) as one:
            call = asyncio.create_task(one.call("auto", OPAQUE, approval_wait=30))
            id = await pending(one.scene)
            _outage(one)
            await one.scene.desk.answer(id, "ann@example.com", True, "operator")
            return await asyncio.wait_for(call, 10)

    error = run(work())["error"]
    assert error["retryable"] and "credential" in error["hint"]
    told = [one["arguments"]["why"] for one in records(tmp_path) if one["tool"] == "credential refused"]
    assert any("after a wait" in why and "503" in why for why in told)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("revoke", [False, True])
def test_a_token_that_is_revoked_while_the_person_at_the_client_thinks(tmp_path: Path, era: Era, revoke: bool) -> None:
    async def work() -> None:
        async with there(tmp_path) as one:
            one.scene.gateway.policy = replace(one.scene.gateway.policy, approvals=Approvals(elicitation=Risk.CRITICAL))
            one.scene.desk.rules = lambda: one.scene.gateway.policy.approvals

            async def handler(message: str, response_type: Any, params: Any, context: Any) -> Any:
                if revoke:
                    _revoked(one)
                return ElicitResult(action="accept", content={"approve": True})

            call = asyncio.create_task(one.call(era, OURS, {"elicitation_handler": handler}))
            if not revoke:
                assert said(await call) == "ok"
            else:  # the answer comes with a request of its own, which the door refuses
                while not any("is revoked" in str(found) for found in records(tmp_path)):
                    await asyncio.sleep(0.01)
                call.cancel()
                await asyncio.wait([call])
            assert one.scene.engine.pulled == (0 if revoke else 1)

    run(work())


def test_a_call_waits_no_longer_for_a_person_than_its_token_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the one at the client, who never says a word, nor for an answer that comes some other way."""
    monkeypatch.setattr(still, "KNOWN_EVERY", 0.05)

    async def work(waits: dict[str, Any], *, thinks: bool) -> None:
        async with there(tmp_path / str(thinks)) as one:
            one.scene.gateway.policy = replace(one.scene.gateway.policy, approvals=Approvals(elicitation=Risk.CRITICAL))
            one.scene.desk.rules = lambda: one.scene.gateway.policy.approvals
            asked = asyncio.Event()

            async def handler(message: str, response_type: Any, params: Any, context: Any) -> Any:
                asked.set()
                await asyncio.Event().wait()

            call = asyncio.create_task(
                one.call("legacy", OURS, {"elicitation_handler": handler} if thinks else {}, **waits)
            )
            await (asked.wait() if thinks else pending(one.scene))
            done, _ = await asyncio.wait([call], timeout=0.3)
            assert not done, "as long as the token counts there is time"
            _revoked(one)
            assert said(await asyncio.wait_for(call, 5)) == "unauthenticated"
            assert one.scene.engine.pulled == 0

    for thinks, waits in ((True, {}), (False, {"approval_wait": 60})):
        (tmp_path / str(thinks)).mkdir()
        run(work(waits, thinks=thinks))


def test_an_outage_of_the_issuer_ends_no_wait_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still, "KNOWN_EVERY", 0.05)

    async def work() -> None:
        async with there(tmp_path) as one:
            call = asyncio.create_task(one.call("auto", OPAQUE, approval_wait=30))
            id = await pending(one.scene)
            _outage(one)
            done, _ = await asyncio.wait([call], timeout=0.5)
            assert not done
            one.idp.behave.clear()
            verifier = one.modes.issuer
            assert verifier is not None
            verifier.issuer._down = float("-inf")
            await one.scene.desk.answer(id, "ann@example.com", True, "operator")
            assert said(await asyncio.wait_for(call, 10)) == "ok"

    run(work())


@pytest.mark.parametrize("revoke", [False, True])
def test_a_token_that_is_revoked_while_the_webhook_answers(tmp_path: Path, revoke: bool) -> None:
    async def work() -> None:
        async with there(tmp_path) as one:

            def respond(asked: dict[str, Any]) -> bytes:
                if revoke:
                    _revoked(one)
                return response(yes(asked))

            async with tcp_server(Receiver(respond).serve) as port:
                one.scene.desk.webhook = Webhook(f"http://127.0.0.1:{port}/approve", SECRET, within=5)
                assert said(await one.call("auto", OURS)) == ("unauthenticated" if revoke else "ok")
            assert one.scene.engine.pulled == (0 if revoke else 1)

    run(work())


def test_an_approval_is_of_no_use_to_a_token_that_was_revoked_since(tmp_path: Path) -> None:
    async def work() -> None:
        async with there(tmp_path) as one:
            asked = (await one.call("auto", OURS))["results"][0]["error"]["details"]["approval_id"]
            await one.scene.desk.answer(asked, "ann@example.com", True, "operator")
            _revoked(one)
            with pytest.raises(MCPError, match="error response"):
                await one.call("auto", OURS, approval_id=asked)
            assert one.scene.engine.pulled == 0 and one.scene.desk.store.get(asked).state == "approved"

    run(work())


def test_a_resource_is_not_read_with_a_token_that_is_revoked_while_the_webhook_answers(tmp_path: Path) -> None:
    """Where policy.yaml wants a yes even for that."""

    async def work() -> None:
        async with there(tmp_path) as one:
            demanding = Approvals(require=(Demand(frozenset(Risk)),))
            one.scene.gateway.policy = replace(one.scene.gateway.policy, approvals=demanding)

            def respond(asked: dict[str, Any]) -> bytes:
                _revoked(one)
                return response(yes(asked))

            async with tcp_server(Receiver(respond).serve) as port, one.client("auto", OURS) as client:
                one.scene.desk.webhook = Webhook(f"http://127.0.0.1:{port}/approve", SECRET, within=5)
                with pytest.raises(MCPError, match="could not be verified"):
                    await client.read_resource("systemmanager://targets")

    run(work())
