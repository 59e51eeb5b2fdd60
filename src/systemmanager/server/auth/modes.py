"""The modes of authentication that the settings switch on, and what each is made of.

What a mode needs is imported when it is on: HTTP clients and cryptography cost memory and a slower start.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from systemmanager.errors import ConfigError, Problem
from systemmanager.server.auth.authentication import Authentication, Tokens
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.resource import Resource
from systemmanager.server.auth.tokens import Keys
from systemmanager.settings import Settings, State

if TYPE_CHECKING:
    from systemmanager.server.auth.oidc import Oidc
    from systemmanager.server.auth.tailnet import Tailnet


def keys_of(settings: Settings, state: State) -> Keys:
    """The keys of the gateway's own tokens. Raises `ConfigError`."""
    return Keys(state.audience(settings), *state.secrets(settings))


def ledger_of(state: State, degraded: dict[str, str] | None = None) -> Ledger:
    """The minted tokens. Raises `ConfigError`."""
    path = state.folder / "tokens.sqlite"
    try:
        return Ledger(path, degraded=degraded)
    except (sqlite3.Error, OSError) as error:
        raise ConfigError([Problem(str(path), f"can't be used: {error}")]) from None


@asynccontextmanager
async def authentication(settings: Settings, state: State, degraded: dict[str, str]) -> AsyncIterator[Authentication]:
    """How HTTP clients prove who they are, by every mode that is switched on. Raises `ConfigError`."""
    modes = Authentication()
    if "token" in settings.auth_modes:
        modes.tokens = Tokens(keys_of(settings, state), ledger_of(state, degraded))
    async with AsyncExitStack() as stack:
        if "oidc" in settings.auth_modes:
            modes.issuer, modes.resource = await _oidc(settings, degraded, stack)
        if "tailscale" in settings.auth_modes:
            modes.tailnet = await _tailnet(settings, degraded, stack)
        yield modes


async def _tailnet(settings: Settings, degraded: dict[str, str], stack: AsyncExitStack) -> "Tailnet":
    from systemmanager.server.auth import tailnet

    client = await stack.enter_async_context(tailnet.client(settings.tailscale_socket))
    made = tailnet.Tailnet(settings.tailscale_socket, client, settings.tailscale_capability, degraded)
    stack.push_async_callback(made.close)
    return made


async def _oidc(settings: Settings, degraded: dict[str, str], stack: AsyncExitStack) -> "tuple[Oidc, Resource]":
    """The verifier of an issuer's tokens, and what leads a client to one."""
    from systemmanager.server.auth import issuer, oidc

    secret, id = settings.oidc_client_secret, settings.oidc_client_id
    assert settings.oidc_issuer is not None and settings.base_url is not None
    own = None if secret is None or id is None else (id, secret.get_secret_value())
    resource = Resource(settings.base_url, settings.oidc_issuer)
    client = await stack.enter_async_context(issuer.client())
    asked = issuer.Issuer(settings.oidc_issuer, client, own, degraded)
    made = oidc.Oidc(asked, resource.audiences, client_id=id, subject_claim=settings.oidc_subject_claim)
    stack.push_async_callback(made.close)
    return made, resource
