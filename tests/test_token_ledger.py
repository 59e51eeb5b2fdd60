"""Minted tokens: listed, revoked, rotated; what the ledger says counts in a running gateway within seconds."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager import settings
from systemmanager.errors import NotFound
from systemmanager.server import app
from systemmanager.server.auth import modes
from systemmanager.server.auth.identity import Refused, Unavailable
from systemmanager.server.auth.ledger import Ledger, Minted
from systemmanager.server.auth.tokens import BadToken, Keys, mint, verify
from systemmanager.settings import Settings
from tests.serving import ACCEPT, AUDIENCE, INITIALIZE, KEYS, OTHER_SECRET, SECRET, served, serving
from tests.support import OPERATOR, run
from tests.test_cli import systemmanager

NOW = 1_800_000_000.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def minted(id: str = "00000000000000aa", subject: str = "agent", expires: float = NOW + 3600) -> Minted:
    return Minted(id, subject, "system:read", None, NOW, expires)


def ledgers(path: Path) -> tuple[Ledger, Ledger, Clock]:
    """The ledger of the command line and that of a running gateway, over one file."""
    clock = Clock()
    return Ledger(path, clock, clock), Ledger(path, clock, clock), clock


def test_a_revoked_token_is_refused_by_the_other_process_a_second_later(tmp_path: Path) -> None:
    ours, theirs, clock = ledgers(tmp_path / "t.sqlite")
    ours.add(minted())
    assert not theirs.check("00000000000000aa")
    ours.revoke("00000000000000aa", NOW + 3600)
    clock.now += 1
    assert theirs.check("00000000000000aa") and not theirs.check("00000000000000bb")


def test_a_token_of_another_gateway_can_be_revoked_and_stays_so(tmp_path: Path) -> None:
    ours, theirs, clock = ledgers(tmp_path / "t.sqlite")
    assert ours.revoke("00000000000000cc", NOW + 90 * 86_400).subject == ""
    clock.now += 80 * 86_400
    ours.add(minted(expires=clock.now + 60))
    assert theirs.check("00000000000000cc")


def test_all_tokens_of_an_agent_are_revoked_together(tmp_path: Path) -> None:
    ours, theirs, clock = ledgers(tmp_path / "t.sqlite")
    for id, subject in (("00000000000000a1", "lost"), ("00000000000000a2", "lost"), ("00000000000000a3", "kept")):
        ours.add(minted(id, subject))
    assert [one.id for one in ours.revoke_subject("lost")] == ["00000000000000a1", "00000000000000a2"]
    clock.now += 1
    assert [theirs.check(f"00000000000000a{n}") for n in (1, 2, 3)] == [True, True, False]
    with pytest.raises(NotFound):
        ours.revoke_subject("lost")
    with pytest.raises(NotFound):
        ours.revoke_subject("stranger")


def test_what_has_expired_is_forgotten(tmp_path: Path) -> None:
    ours, _, clock = ledgers(tmp_path / "t.sqlite")
    ours.add(minted("00000000000000a1"))
    clock.now += 3601
    assert ours.all() == []
    ours.add(minted("00000000000000a2", expires=clock.now + 60))
    with sqlite3.connect(tmp_path / "t.sqlite") as database:
        assert database.execute("SELECT id FROM token").fetchall() == [("00000000000000a2",)]
    database.close()


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(b"x" * 8192),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_a_ledger_that_can_t_be_read_lets_nobody_in_after_5_seconds(how: str, tmp_path: Path) -> None:
    path, clock, degraded = tmp_path / "t.sqlite", Clock(), dict[str, str]()
    ours, theirs = Ledger(path, clock, clock), Ledger(path, clock, clock, degraded)
    ours.revoke("00000000000000a1", NOW + 3600)
    assert theirs.check("00000000000000a1")
    kept = path.read_bytes()
    BREAKAGES[how](path)
    clock.now += 4
    assert theirs.check("00000000000000a1") and not theirs.check("00000000000000a2"), "what was read still counts"
    assert str(path) in degraded["tokens"] and "SYSTEMMANAGER_SHARED_SECRET" in degraded["tokens"]
    clock.now += 1
    with pytest.raises(Unavailable):
        theirs.check("00000000000000a2")
    path.write_bytes(kept)
    clock.now += 1
    assert theirs.check("00000000000000a1") and not theirs.check("00000000000000a2") and degraded == {}


def test_health_says_that_tokens_can_t_be_judged_and_nobody_gets_in_with_one(tmp_path: Path) -> None:
    """As the gateway is made from its settings."""
    given = {"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"), "SYSTEMMANAGER_SHARED_SECRET": SECRET}

    async def work() -> dict[str, Any]:
        async with app.running(Settings.model_validate(given)) as running:
            degraded = running.gateway.degraded
            async with modes.authentication(running.settings, running.state, degraded) as authentication:
                (running.state.folder / "tokens.sqlite").unlink()
                token, _ = mint(modes.keys_of(running.settings, running.state), "agent", ["readonly"], 3600)
                async with served(running.gateway, authentication) as there:
                    assert await asyncio.to_thread(status, there.url, token) == 401
                reply = await running.gateway.call(OPERATOR, "health_check", {})
        return reply.as_dict()

    data = run(work())["results"][0]["data"]
    assert data["status"] == "degraded" and "put back from a backup" in data["problems"]["tokens"]


def test_a_ledger_that_was_never_read_lets_nobody_in(tmp_path: Path) -> None:
    _, theirs, _ = ledgers(tmp_path / "t.sqlite")
    (tmp_path / "t.sqlite").unlink()
    with pytest.raises(Refused):
        theirs.check("00000000000000a2")


def test_a_ledger_of_a_newer_version_stops_the_start(tmp_path: Path) -> None:
    Ledger(tmp_path / "t.sqlite")
    with sqlite3.connect(tmp_path / "t.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="newer version"):
        Ledger(tmp_path / "t.sqlite")


# --- Keys that rotate -------------------------------------------------------------------------------------------------


def test_a_token_of_the_previous_key_is_accepted_and_none_is_signed_with_it() -> None:
    rotated = Keys(AUDIENCE, OTHER_SECRET, SECRET)
    old, _ = mint(KEYS, "agent", ["readonly"], 3600)
    new, _ = mint(rotated, "agent", ["readonly"], 3600)
    assert verify(rotated, old).subject == verify(rotated, new).subject == "agent"
    assert new.partition(".")[0] != old.partition(".")[0]
    for keys, token in ((KEYS, new), (Keys(AUDIENCE, OTHER_SECRET), old)):
        with pytest.raises(BadToken, match="key that is not ours"):
            verify(keys, token)


def test_the_previous_key_is_the_one_of_the_settings(tmp_path: Path) -> None:
    given = {"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"), "SYSTEMMANAGER_BASE_URL": AUDIENCE}

    def keys(**more: str) -> Keys:
        made = settings.read({**given, **more})
        return modes.keys_of(made, settings.prepare_state(made))

    first = keys(SYSTEMMANAGER_SHARED_SECRET=SECRET)
    old, _ = mint(first, "agent", ["readonly"], 3600)
    rotated = keys(SYSTEMMANAGER_SHARED_SECRET=OTHER_SECRET, SYSTEMMANAGER_SHARED_SECRET_PREVIOUS=SECRET)
    assert verify(rotated, old).subject == "agent"
    new, _ = mint(rotated, "agent", ["readonly"], 3600)
    over = keys(SYSTEMMANAGER_SHARED_SECRET=OTHER_SECRET)
    assert verify(over, new).subject == "agent"
    with pytest.raises(BadToken, match="key that is not ours"):
        verify(over, old)


def test_gateways_that_share_their_secret_share_tokens_only_where_they_share_their_url() -> None:
    token, _ = mint(KEYS, "agent", ["readonly"], 3600)
    assert verify(Keys(AUDIENCE, SECRET), token)
    with pytest.raises(BadToken, match="for this gateway"):
        verify(Keys("http://other.test:8080", SECRET), token)


# --- The command line, and a running gateway --------------------------------------------------------------------------


def run_cli(folder: Path, *words: str, check: int = 0, stdin: str = "") -> str:
    settings = {"SYSTEMMANAGER_SHARED_SECRET": SECRET, "SYSTEMMANAGER_BASE_URL": AUDIENCE}
    done = systemmanager(folder, "token", *words, check=check, settings=settings, stdin=stdin)
    return done.stdout if check == 0 else done.stderr


def listed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run_cli(folder, "list").splitlines()]


def status(url: str, token: str) -> int:
    return httpx.post(url, json=INITIALIZE, headers=ACCEPT | {"Authorization": f"Bearer {token}"}).status_code


def test_a_running_gateway_refuses_a_revoked_token_within_5_seconds(tmp_path: Path) -> None:
    with serving(tmp_path) as gateway:
        kept = run_cli(tmp_path, "mint", "--agent", "kept").strip()
        lost = run_cli(tmp_path, "mint", "--agent", "lost", "--targets", "tag:web").strip()
        assert status(gateway.url, kept) == status(gateway.url, lost) == 200
        (row,) = [row for row in listed(tmp_path) if row["subject"] == "lost"]
        assert row["targets"] == "tag:web" and row["revoked"] is None
        run_cli(tmp_path, "revoke", row["id"])
        began = time.monotonic()
        while status(gateway.url, lost) == 200:
            assert time.monotonic() - began < 5
        assert status(gateway.url, lost) == 401 and status(gateway.url, kept) == 200
        said = [record for record in gateway.records() if record["phase"] == "event"]
    done = [(record["tool"], record["arguments"].get("agent")) for record in said]
    assert ("token mint", "lost") in done and ("token revoke", "lost") in done
    assert not any(token in json.dumps(said) for token in (kept, lost))


def test_a_token_itself_is_inspected_and_revoked_from_standard_input(tmp_path: Path) -> None:
    token = run_cli(tmp_path, "mint", "--agent", "claude")
    claims = json.loads(run_cli(tmp_path, "inspect", stdin=token))
    assert claims["sub"] == "claude" and claims["aud"] == AUDIENCE
    assert claims["jti"] in run_cli(tmp_path, "revoke", "--stdin", stdin=token)
    assert "is revoked" in run_cli(tmp_path, "inspect", token.strip(), check=1)
    assert "not ours" in run_cli(tmp_path, "inspect", "x.y.z", check=1)


@pytest.mark.parametrize(
    ("words", "status"), [((), 2), (("tester",), 1), (("../../etc",), 1), (("--agent", "nobody"), 1)]
)
def test_a_revocation_that_names_nothing_is_an_error(words: tuple[str, ...], status: int, tmp_path: Path) -> None:
    assert run_cli(tmp_path, "revoke", *words, check=status)


def test_no_token_is_minted_that_the_gateway_would_not_accept(tmp_path: Path) -> None:
    settings = {"SYSTEMMANAGER_AUTH_MODE": "tailscale"}
    done = systemmanager(tmp_path, "token", "mint", "--agent", "claude", check=1, settings=settings)
    assert "SYSTEMMANAGER_AUTH_MODE" in done.stderr and done.stdout == ""
