"""Whoever can write to the audit log's files changes them afterwards; `audit verify` with the witness has to see it."""

import asyncio
from collections.abc import Callable

from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog
from systemmanager.audit.signing import Signer, new_key
from systemmanager.audit.verify import Broken, verify
from tests.attacks.arena import Arena
from tests.attacks.attackers import Told, watch_of
from tests.attacks.catalogue import Case
from tests.support import run
from tests.test_audit_verify import EVERY, KEYS, SIGNER, lines, record, reforged

LIMITS = Limits(checkpoint_records=EVERY)
Lines = list[bytes]

EDITS: dict[str, Callable[[Lines, Lines], Lines]] = {
    "byte": lambda own, other: [*own[:9], own[9].replace(b'"me"', b'"no"'), *own[10:]],
    "phase": lambda own, other: [*own[:9], own[9].replace(b'"intent"', b'"refused"'), *own[10:]],
    "delete": lambda own, other: [*own[:9], *own[10:]],
    "delete the first": lambda own, other: own[1:],
    "swap": lambda own, other: [*own[:9], own[10], own[9], *own[11:]],
    "insert": lambda own, other: [*own[:9], b"{}\n", *own[9:]],
    "blank": lambda own, other: [*own[:9], b"\n", *own[9:]],
    "repeat": lambda own, other: [*own[:9], own[8], *own[9:]],
    "splice": lambda own, other: [*own[:9], *other[9:]],
    "whole": lambda own, other: other,
    "cut": lambda own, other: own[:-10],
    "torn": lambda own, other: [*own[:-10], own[-10][:40]],
    "empty": lambda own, other: [],
    "rechain": lambda own, other: reforged(own, 3, lambda fields: fields.update(subject="nobody"), ""),
}


def _made(arena: Arena, name: str, signer: Signer, count: int) -> Lines:
    path = arena.folder / name / "audit.jsonl"
    path.parent.mkdir()
    log = AuditLog(path, limits=LIMITS, signer=signer, witness=path.with_name("witness"), clock=lambda: 1000.0)

    async def work() -> None:
        for number in range(count):
            await log.append([record(number)], durable=False)
        await log.tend()
        log.close()

    run(work())
    return lines(path)


def tampered(case: Case, arena: Arena) -> Told:
    own, path = _made(arena, "log", SIGNER, 40), arena.folder / "log" / "audit.jsonl"
    verify(path, KEYS, witness=path.with_name("witness"))
    foreign = _made(arena, "other", Signer.of(new_key()), 45)
    path.write_bytes(b"".join(EDITS[case.given["edit"]](own, foreign)))
    told = Told(watch=watch_of(arena))
    try:
        verify(path, KEYS, witness=path.with_name("witness"))
        told.codes = ["sound"]
    except Broken as error:
        told.codes, told.said = ["broken"], [str(error).encode()]
    return told


async def tamper(case: Case, arena: Arena) -> Told:
    """The log is edited as `edit` says, and verified."""
    return await asyncio.to_thread(tampered, case, arena)
