"""Access tokens of a certified provider (npm oidc-provider): opaque and signed ones, and all that must not pass."""

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from systemmanager.request import Grant
from systemmanager.server.auth.identity import Identity, Refused
from tests.conftest import need
from tests.idp import BASE, CLIENT, Idp, verifier
from tests.real.test_mcp_conformance import HERE, INSTALLED, NODE
from tests.serving import AUDIENCE, serving
from tests.support import run

pytestmark = pytest.mark.mcp

BACK = "http://127.0.0.1/back"
SIGNED = ("RS256", "ES256", "EdDSA")
BASIC = ("opaque", "cl%3Aent%20s3cret%2F")
READ = Grant(frozenset({"system:read"}))


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """A provider of its own process, by its issuer."""
    ready = (INSTALLED / ".ready").exists() and (INSTALLED / "node_modules/oidc-provider").exists()
    need("mcp", None if ready else f"the provider is not installed: run {HERE.relative_to(HERE.parents[2])}/install")
    program = Path(__file__).with_name("provider.mjs")
    with subprocess.Popen(
        [NODE, program, INSTALLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(20)


def tokens(issuer: str, client: str, resource: str | None = BASE, scope: str = "openid system:read") -> dict[str, Any]:
    """What a person gets who logs in at a client: the whole way through the provider's own pages."""
    wanted = {"resource": resource} if resource else {}
    asked = {"client_id": client, "response_type": "code", "redirect_uri": BACK, "prompt": "consent"}
    with httpx.Client(base_url=issuer) as browser:
        answer = browser.get("/auth", params={**asked, **wanted, "scope": f"{scope} offline_access"})
        while not (place := answer.headers["location"]).startswith(BACK):
            answer = browser.get(place)
            if answer.status_code == 200:
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert prompt, answer.text
                answer = browser.post(place, data={"prompt": prompt[1], "login": "alice", "password": "x"})
        code = httpx.URL(place).params["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, **wanted}
        given = browser.post("/token", data=form, auth=(client, BASIC[1]))
        assert given.status_code == 200, given.text
        return dict(given.json())


def identify(issuer: str, *given: str, at: float = 0.0) -> Identity:
    """Who the last of some tokens names; the earlier ones are only asked about."""

    async def work() -> Identity:
        async with verifier(Idp(issuer), lambda: time.time() + at) as oidc:
            found = [(await oidc.identify(token))[0] for token in given]
            return found[-1]

    return run(work())


def refused(issuer: str, token: str, **fields: Any) -> str:
    with pytest.raises(Refused) as caught:
        identify(issuer, token, **fields)
    assert type(caught.value) is Refused, f"not for what it is: {caught.value}"
    return str(caught.value)


@pytest.mark.parametrize("client", ["opaque", *SIGNED])
def test_an_access_token_for_this_gateway_names_its_person(client: str, issuer: str) -> None:
    given = tokens(issuer, client)
    assert (given["access_token"].count(".") == 2) is (client in SIGNED)
    found = identify(issuer, given["access_token"])
    assert (found.subject, found.kind, found.limits) == ("oidc:alice", "person", (READ,))
    assert found.expires_at is not None and 290 < found.expires_at - time.time() <= 300


@pytest.mark.parametrize("client", ["opaque", *SIGNED])
@pytest.mark.parametrize("resource", ["https://other.test", f"{BASE}.evil.test", f"{BASE}/mcp/x", None])
def test_an_access_token_for_anything_else_is_refused(resource: str | None, client: str, issuer: str) -> None:
    refused(issuer, tokens(issuer, client, resource)["access_token"])


@pytest.mark.parametrize("client", ["opaque", *SIGNED])
def test_an_id_token_and_a_refresh_token_are_refused(client: str, issuer: str) -> None:
    given = tokens(issuer, client)
    refused(issuer, given["id_token"])
    refused(issuer, given["refresh_token"])


@pytest.mark.parametrize("client", ["opaque", *SIGNED])
def test_an_access_token_is_refused_once_it_has_expired(client: str, issuer: str) -> None:
    assert "expired" in refused(issuer, tokens(issuer, client)["access_token"], at=301)


@pytest.mark.parametrize("client", SIGNED)
def test_a_signed_token_with_one_letter_changed_is_refused(client: str, issuer: str) -> None:
    token = tokens(issuer, client)["access_token"]
    for place in (10, token.index(".") + 20, token.rindex(".") + 20):
        other = "A" if token[place] != "A" else "B"
        refused(issuer, token[:place] + other + token[place + 1 :])


def test_a_token_that_the_provider_has_revoked_is_refused(issuer: str) -> None:
    token = tokens(issuer, "opaque")["access_token"]
    assert identify(issuer, token)
    done = httpx.post(f"{issuer}/token/revocation", data={"token": token}, auth=BASIC)
    assert done.status_code == 200
    assert "not active" in refused(issuer, token)


def test_a_token_of_a_client_alone_is_no_person(issuer: str) -> None:
    form = {"grant_type": "client_credentials", "resource": BASE}
    given = httpx.post(f"{issuer}/token", data=form, auth=BASIC).json()
    assert "without a usable sub" in refused(issuer, given["access_token"])


POLICY = """\
version: "1.0"
grants:
  - subjects: ["oidc:alice"]
    scopes: [admin]
"""


@pytest.mark.parametrize("client", ["opaque", "ES256"])
def test_a_gateway_lets_a_person_of_the_provider_use_what_policy_and_token_give(
    client: str, issuer: str, tmp_path: Path
) -> None:
    """`serve` with the variables that the README names: listed is what is granted, called is what is listed."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    settings = {
        "SYSTEMMANAGER_AUTH_MODE": "oidc", "SYSTEMMANAGER_POLICY_CONFIG": str(tmp_path / "policy.yaml"),
        "TSIDP_URL": issuer, "TSIDP_CLIENT_ID": CLIENT[0], "TSIDP_CLIENT_SECRET": CLIENT[1],
    }  # fmt: skip
    bearer = tokens(issuer, client, f"{AUDIENCE}/mcp")["access_token"]

    async def work(url: str) -> tuple[set[str], bool, bool]:
        transport = StreamableHttpTransport(url, headers={"Authorization": f"Bearer {bearer}"})
        async with Client(transport) as there:
            names = {tool.name for tool in await there.list_tools()}
            seen = await there.call_tool("get_system_status", {}, raise_on_error=False)
            changed = await there.call_tool("manage_container", {"name": "x", "action": "stop"}, raise_on_error=False)
            return names, seen.is_error, changed.is_error

    with serving(tmp_path, settings) as gateway:
        names, seen, changed = asyncio.run(work(gateway.url))
        assert httpx.post(gateway.url).status_code == 401
        assert httpx.get(f"{gateway.url.removesuffix('/mcp')}/.well-known/oauth-protected-resource").is_success
        subjects = {one["subject"] for one in gateway.records() if one["phase"] == "outcome"}
    assert "get_system_status" in names and "get_container_list" not in names
    assert not seen and changed and subjects == {"oidc:alice"}
