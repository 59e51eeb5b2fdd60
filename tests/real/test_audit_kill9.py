"""kill -9 at random points: every effect has its intent, no answered call lost its records, the chain goes on.

SYSTEMMANAGER_TEST_ROUNDS says how often (200 without it).
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from systemmanager.audit.reading import query
from systemmanager.audit.record import Record
from systemmanager.audit.signing import Keys, Signer, new_key
from systemmanager.audit.verify import verify
from tests.real.audit_victim import log_in

ROUNDS = int(os.environ.get("SYSTEMMANAGER_TEST_ROUNDS", "200"))
A_LOG = 20
"""Rounds that share one log: each goes on where the one before was killed."""


@pytest.fixture(scope="module")
def victims() -> Iterator[subprocess.Popen[str]]:
    source = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{source}/src", source])}
    command = [sys.executable, "-m", "tests.real.audit_victim"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def killed(victims: subprocess.Popen[str], folder: Path, round: int, delay: int) -> None:
    assert victims.stdin is not None and victims.stdout is not None
    victims.stdin.write(f"{folder} {round} {delay} {'effect' if round % 4 else 'start'}\n")
    victims.stdin.flush()
    assert victims.stdout.readline() == "killed\n"


def units(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.exists() else set()


def test_after_kill_9_every_effect_is_on_record(victims: subprocess.Popen[str], tmp_path: Path) -> None:
    dice, effects, unknown = random.Random(os.urandom(8)), 0, 0
    for first in range(0, ROUNDS, A_LOG):
        folder = tmp_path / str(first)
        folder.mkdir()
        (folder / "key").write_text(new_key())
        for round in range(first, min(first + A_LOG, ROUNDS)):
            killed(victims, folder, round, dice.randrange(50_000))
        closed = reopened(folder)
        effects, unknown = effects + len(units(folder / "effects")), unknown + closed
    assert effects > ROUNDS // 2 and unknown > ROUNDS // 10, "the rounds did something, and were cut off in the middle"


def reopened(folder: Path) -> int:
    """What the next start finds; how many open intents it and the starts before it closed."""
    log = log_in(folder)
    log.begin_run()
    log.close_ended()
    log.append_now(Record("event", "", "start", "gateway", time=time.time()))
    log.close()
    assert not [one for one in (folder / "audit.runs").iterdir() if one.stat().st_size]
    # A write may be cut at the end of a page: such lines are marked in the chain, and nothing depended on them.
    found = [one for one in query(folder / "audit.jsonl") if "unreadable" not in one]
    intents: dict[tuple[str, str], dict[str, Any]] = {}
    outcomes: dict[tuple[str, str], list[str]] = {}
    for one in found:
        key = (one.get("call_id", ""), one.get("target", ""))
        if one["phase"] == "intent":
            intents[key] = one
        elif one["phase"] == "outcome":
            outcomes.setdefault(key, []).append(one["code"])
    assert outcomes.keys() == intents.keys(), "no intent stays open, and no outcome comes from nowhere"
    assert all(len(codes) == 1 for codes in outcomes.values())
    meant = {one["arguments"]["service_name"]: outcomes[key] for key, one in intents.items()}
    assert units(folder / "effects") <= meant.keys(), "an effect without an intent"
    for unit in units(folder / "answered"):
        assert meant[unit] == ["ok"], "an answered call without its outcome"
    sound = verify(folder / "audit.jsonl", Keys(log_in_signer(folder).public), witness=folder / "witness")
    assert sound.unsigned == 0
    return sum(codes == ["unknown"] for codes in outcomes.values())


def log_in_signer(folder: Path) -> Signer:
    return Signer.of((folder / "key").read_text())
