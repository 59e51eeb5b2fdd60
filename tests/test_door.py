"""Who is let in over HTTP: one credential, judged by one mode, with the rights of the policy of this moment."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.auth.utils import (
    build_protected_resource_metadata_discovery_urls,
    extract_field_from_www_auth,
    extract_resource_metadata_from_www_auth,
)
from mcp.shared.auth import ProtectedResourceMetadata
from mcp.shared.auth_utils import check_resource_allowed

from systemmanager.gateway import Gateway
from systemmanager.policy.grants import GrantRule
from systemmanager.policyfile import Policy
from systemmanager.request import Grant
from systemmanager.scopes import expand
from systemmanager.server import standing
from systemmanager.server.auth import authentication
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.resource import Resource
from systemmanager.server.auth.tokens import Keys
from tests.idp import BASE, OPAQUE, Idp, jwt, provider, tsidp_claims, verifier
from tests.serving import ACCEPT, AUDIENCE, ERAS, INITIALIZE, OTHER_SECRET, SECRET, Era, Served, by_token, served, token
from tests.support import fake_gateway, records, run, target

ALICE = "alice@example.com"
METADATA = "/.well-known/oauth-protected-resource"


def granting(*scopes: str, targets: str | None = None, subject: str = ALICE) -> Policy:
    return Policy((GrantRule(frozenset({subject}), frozenset(), frozenset(), Grant(expand(scopes), targets)),))


@dataclass
class There:
    """A gateway with tokens and an issuer, over HTTP, and the issuer."""

    served: Served
    gateway: Gateway
    authentication: Authentication
    idp: Idp

    async def ask(self, credential: str | None = OPAQUE, **fields: Any) -> Any:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        async with httpx.AsyncClient() as client:
            return await client.post(self.served.url, json=INITIALIZE, headers=ACCEPT | headers, **fields)

    async def get(self, path: str, method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.served.origin) as client:
            return await client.request(method, path)

    def client(self, era: Era, credential: str = OPAQUE) -> Client[Any]:
        headers = {"Authorization": f"Bearer {credential}"}
        return Client(StreamableHttpTransport(self.served.url, headers=headers), mode=era)


@asynccontextmanager
async def gateway(tmp_path: Path, *, tokens: bool = True, issuer: bool = True) -> AsyncIterator[There]:
    targets = target("web-01", metadata={"tags": ["web"]}), target("db-01")
    one, now = fake_gateway(tmp_path, lambda *_: None, *targets, policy=granting("readonly")), int(time.time())
    modes = by_token(one) if tokens else Authentication()
    async with provider(Idp()) as idp, verifier(idp, time.time, subject_claim="username") as oidc:
        idp.tokens[OPAQUE] = tsidp_claims(idp.url, iat=now, nbf=now - 300, exp=now + 300)
        modes.issuer, modes.resource = (oidc, Resource(BASE, idp.url)) if issuer else (None, None)
        async with served(one, modes) as there:
            yield There(there, one, modes, idp)
    one.journal.log.close()


# --- The challenge, and where it leads --------------------------------------------------------------------------------


def test_a_client_finds_the_issuer_from_the_challenge(tmp_path: Path) -> None:
    """By the MCP SDK's own client code, for the address that the client was given."""

    async def work() -> None:
        async with gateway(tmp_path) as there:
            refused = await there.ask(None)
            assert refused.status_code == 401 and "error" not in refused.headers["www-authenticate"]
            found = extract_resource_metadata_from_www_auth(refused)
            assert found == f"{BASE}{METADATA}/mcp"
            assert extract_field_from_www_auth(refused, "scope") == "openid email profile"
            for url in build_protected_resource_metadata_discovery_urls(found, f"{BASE}/mcp"):
                answer = await there.get(url.removeprefix(BASE))
                metadata = ProtectedResourceMetadata.model_validate_json(answer.content)
                assert answer.json()["authorization_servers"] == [there.idp.url], "to the letter, no slash added"
                assert check_resource_allowed(f"{BASE}/mcp", str(metadata.resource))
                assert answer.json()["resource"] in there.authentication.resource.audiences  # type: ignore[union-attr]

    run(work())


@pytest.mark.parametrize(("path", "resource"), [(METADATA, BASE), (f"{METADATA}/mcp", f"{BASE}/mcp")])
def test_each_resource_has_metadata_at_its_own_address(path: str, resource: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            answer = await there.get(path)
            assert answer.status_code == 200 and answer.json()["resource"] == resource
            assert (await there.get(path, "HEAD")).status_code == 200
            assert (await there.get(path, "POST")).status_code == 405
            for other in (f"{path}/", f"{path}/x", f"{METADATA}x"):
                assert (await there.get(other)).status_code == 404

    run(work())


def test_behind_a_path_the_metadata_stands_in_front_of_it() -> None:
    resource = Resource("https://proxy.test/fleet", "https://idp.test")
    assert resource.challenge[0] == f'resource_metadata="https://proxy.test{METADATA}/fleet/mcp"'
    assert resource.documents[f"{METADATA}/fleet/mcp"]["resource"] == "https://proxy.test/fleet/mcp"
    assert resource.documents[f"{METADATA}/fleet"]["resource"] == "https://proxy.test/fleet"


def test_without_an_issuer_nothing_leads_to_one(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path, issuer=False) as there:
            assert (await there.ask(None)).headers["www-authenticate"] == "Bearer"
            assert (await there.get(METADATA)).status_code == 404

    run(work())


# --- One credential, one mode -----------------------------------------------------------------------------------------

BAD: dict[str, str] = {
    "unknown to the issuer": "f" * 32,
    "signed by a stranger": jwt("https://evil.test"),
    "ours, by another key": token(keys=Keys(AUDIENCE, OTHER_SECRET)),
    "ours, for another gateway": token(keys=Keys("https://other.test", SECRET)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_401_and_the_answer_does_not_say_why(name: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            answer = await there.ask(BAD[name])
            assert answer.status_code == 401
            assert extract_field_from_www_auth(answer, "error") == "invalid_token"
            assert answer.json() == {"error": {"code": "unauthorized", "message": "the credential is not accepted"}}
            assert there.idp.times("/introspect") == (1 if name == "unknown to the issuer" else 0)

    run(work())
    (told,) = [one for one in records(tmp_path) if one["tool"] == "credential refused"]
    assert told["arguments"]["why"] and BAD[name] not in str(told)


def test_tokens_of_both_modes_are_accepted_where_both_are_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            assert (await there.ask(OPAQUE)).status_code == (await there.ask(token())).status_code == 200

    run(work())


@pytest.mark.parametrize(("tokens", "issuer", "bad"), [(False, True, token()), (True, False, OPAQUE)])
def test_a_mode_that_is_off_accepts_nothing(tokens: bool, issuer: bool, bad: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path, tokens=tokens, issuer=issuer) as there:
            assert (await there.ask(bad)).status_code == 401
            assert there.idp.asked == [], "a token of ours was shown to the issuer"

    run(work())


def test_an_outage_of_the_issuer_is_401_and_told_apart_in_the_log(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            there.idp.behave["/introspect"] = lambda: (503, b"", {})
            assert (await there.ask(OPAQUE)).status_code == 401

    run(work())
    (told,) = [one for one in records(tmp_path) if one["tool"] == "credential refused"]
    assert "answered status 503" in told["arguments"]["why"]


def test_a_token_is_verified_once_in_a_few_seconds(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            for _ in range(10):
                assert (await there.ask(OPAQUE)).status_code == 200
            assert there.idp.times("/introspect") == 1
            there.authentication.clock = lambda: time.time() + 5
            there.idp.tokens.clear()
            assert (await there.ask(OPAQUE)).status_code == 401

    run(work())


def test_what_was_verified_does_not_outlive_the_token(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            there.idp.tokens[OPAQUE] = {**there.idp.tokens[OPAQUE], "exp": int(time.time()) + 3}
            assert (await there.ask(OPAQUE)).status_code == 200
            there.authentication.clock = lambda: time.time() + 3.5
            there.authentication.issuer._clock = there.authentication.clock  # type: ignore[union-attr]
            assert (await there.ask(OPAQUE)).status_code == 401

    run(work())


def test_remembered_tokens_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "MOST_REMEMBERED", 3)

    async def work() -> None:
        async with gateway(tmp_path) as there:
            for number in range(6):
                assert (await there.ask(token(subject=f"agent-{number}"))).status_code == 200
            assert len(there.authentication._remembered) == 3

    run(work())


# --- Rights of the moment ---------------------------------------------------------------------------------------------


async def listed(client: Client[Any]) -> set[str]:
    return {tool.name for tool in await client.list_tools()}


@pytest.mark.parametrize("era", ERAS)
def test_rights_are_those_of_the_policy_of_this_moment(era: Era, tmp_path: Path) -> None:
    """In one session: what is granted, what is taken away again, and what nobody grants."""

    async def work() -> None:
        async with gateway(tmp_path) as there, there.client(era) as client:
            assert "get_system_status" in await listed(client)
            assert "manage_service" not in await listed(client)
            there.gateway.policy = replace(granting("service:write", targets="tag:web"), version="2")
            assert "manage_service" in await listed(client) and "get_system_status" not in await listed(client)
            there.gateway.policy = Policy(version="3")
            assert not {"manage_service", "get_system_status"} & await listed(client)
            answer = await client.call_tool("get_system_status", {"target": "web-01"}, raise_on_error=False)
            assert answer.is_error and "target_not_granted" in str(answer.content)

    run(work())


def test_a_session_belongs_to_who_opened_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as there:
            session = (await there.ask(OPAQUE)).headers["mcp-session-id"]
            body = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
            for credential, status in ((token(subject=ALICE), 404), (token(), 404), (OPAQUE, 200)):
                bearing = {"Authorization": f"Bearer {credential}", "Mcp-Session-Id": session}
                async with httpx.AsyncClient() as client:
                    answer = await client.post(there.served.url, json=body, headers=ACCEPT | bearing)
                assert answer.status_code == status

    run(work())


@pytest.mark.parametrize("credential", [OPAQUE, token()])
def test_a_stream_ends_when_its_credential_counts_no_more(
    credential: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "TOKEN_EVERY", 0.05)
    monkeypatch.setattr(standing, "OTHER_EVERY", 0.05)

    async def work() -> None:
        async with gateway(tmp_path) as there, httpx.AsyncClient(timeout=20) as client:
            session = (await there.ask(credential)).headers["mcp-session-id"]
            headers = {"Authorization": f"Bearer {credential}", "Mcp-Session-Id": session}
            async with client.stream("GET", there.served.url, headers=ACCEPT | headers) as stream:
                assert stream.status_code == 200
                reading = asyncio.create_task(stream.aread())
                done, _ = await asyncio.wait([reading], timeout=0.5)
                assert not done, "it stands as long as the credential does"
                there.idp.tokens.clear()
                there.authentication.clock = lambda: time.time() + 4000
                await asyncio.wait_for(reading, 10)

    run(work())
