"""Attacks that take several steps: approvals, configuration that changes meanwhile, values on their way to a shell."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from systemmanager import freezing
from systemmanager.approvals.desk import Desk
from systemmanager.approvals.store import ApprovalStore
from systemmanager.errors import ApprovalRefused, NotFound
from systemmanager.gateway import Gateway
from systemmanager.policyfile import Policy
from systemmanager.request import Principal
from systemmanager.server.app import Running, running
from systemmanager.server.auth.identity import Identity, principal_of
from systemmanager.settings import read
from tests.attacks.arena import Arena
from tests.attacks.attackers import GOOD_POLICY, Attacker, Told, call, environment, watch_of
from tests.attacks.catalogue import Case, filled
from tests.attacks.shells import SHELLS
from tests.attacks.watch import watching
from tests.fakes import Engine
from tests.support import fake_gateway, principal, registry, target

PULL = {"targets": ["a"], "image_name": "nginx"}


def _codes(reply: Mapping[str, Any]) -> list[str | int]:
    if "error" in reply:
        return [reply["error"]["code"]]
    return [one["error"]["code"] if "error" in one else "ok" for one in reply["results"]]


class Counter:
    """A gateway with a desk over an engine that counts, and a clock of its own. The steps of a case are its methods."""

    def __init__(self, arena: Arena, told: Told) -> None:
        self.engine, self.told, self.now, self.ids = Engine(), told, 1_000_000.0, list[str]()
        two = target("two", "docker", constraints={"dual_approval": True})
        self.fleet = [target("a", "docker"), target("b", "docker"), two]
        self.gateway: Gateway = fake_gateway(
            arena.state, lambda permit, name: self.engine, *self.fleet, clock=lambda: self.now
        )
        store = ApprovalStore(arena.state / "approvals.sqlite", lambda: self.now)
        self.gateway.desk = Desk(store, self.gateway.journal)

    def who(self, step: Mapping[str, Any]) -> Principal:
        given = step.get("as", {})
        return principal(*given.get("scopes", ["admin"]), subject=given.get("subject", "claude"))

    async def call(self, step: Mapping[str, Any]) -> None:
        """Ask, or with `id` (the number of an earlier request, or a text) redeem."""
        arguments = dict(step.get("arguments", PULL))
        if "id" in step:
            id = step["id"]
            arguments["approval_id"] = self.ids[id] if isinstance(id, int) else id
        tool = step.get("tool", "pull_docker_image")
        reply = (await self.gateway.call(self.who(step), tool, arguments)).as_dict()
        self.told.codes, self.told.decisions = (
            _codes(reply),
            self.told.decisions + max(1, len(reply.get("results", []))),
        )
        self.told.said.append(str(reply).encode())
        for one in reply.get("results", []):
            details = one.get("error", {}).get("details") or {}
            if "id" not in step and "approval_id" in details and details["approval_id"] not in self.ids:
                self.ids.append(details["approval_id"])

    async def answer(self, step: Mapping[str, Any]) -> None:
        desk = self.gateway.desk
        assert desk is not None
        id = self.ids[step.get("id", 0)] if isinstance(step.get("id", 0), int) else step["id"]
        person, approved = step.get("by", "ann@example.com"), step.get("approved", True)
        try:
            await desk.answer(id, person, approved, "operator", digest=step.get("digest"))
            self.told.codes = ["answered"]
        except (ApprovalRefused, NotFound) as error:
            self.told.codes = [error.code]
            self.told.decisions += isinstance(error, ApprovalRefused)

    async def later(self, seconds: float) -> None:
        self.now += seconds

    async def policy(self, version: str) -> None:
        self.gateway.policy = replace(Policy(), version=version)

    async def targets(self, version: str) -> None:
        self.gateway.replace_registry(registry(*self.fleet, version=version))


async def desk(case: Case, arena: Arena) -> Told:
    """Steps at the approval desk; the last answer counts. `pulled`: how often the engine may have pulled, default 0."""
    told = Told(watch=watch_of(arena))
    scene = Counter(arena, told)
    assert told.watch is not None
    with watching(told.watch):
        for step in case.given["steps"]:
            ((verb, given),) = step.items()
            for number in range(given.pop("times", 1) if isinstance(given, dict) else 1):
                await getattr(scene, verb)(_numbered(given, number))
    scene.gateway.journal.log.close()
    if scene.engine.pulled != case.given.get("pulled", 0):
        told.effects.append(f"{scene.engine.pulled} pulls, not {case.given.get('pulled', 0)}")
    return told


def _numbered(given: Any, number: int) -> Any:
    return filled(given, {"n": str(number)})


# --- configuration that changes --------------------------------------------------------------------------------------

TARGETS = """\
version: "1.0"
targets:
  local:
    id: local
    executor: local
    capabilities: [admin]
    constraints: {paths: [<root>], hosts: ["127.0.0.1"], sudo_policy: limited}
    connection: {socket_path: <socket>}
"""


def _text(given: Mapping[str, Any], name: str, base: str, arena: Arena) -> str:
    """A file's text: `<name>` whole, or the base with `<name>_edit: [old, new]`."""
    text = given.get(name, base)
    if edit := given.get(f"{name}_edit"):
        assert edit[0] in text, f"{edit[0]!r} is not in the file"
        text = text.replace(*edit)
    return str(filled(text, arena.names))


def _write(arena: Arena, given: Mapping[str, Any]) -> None:
    (arena.folder / "targets.yaml").write_text(_text(given, "targets", TARGETS, arena))
    (arena.folder / "policy.yaml").write_text(_text(given, "policy", GOOD_POLICY.replace("readonly", "admin"), arena))


async def race(case: Case, arena: Arena) -> Told:
    """A call by ann after the files changed and a reload, freeze or thaw; `before` is called first and must go well."""
    given, told = case.given, Told(watch=watch_of(arena))
    _write(arena, given.get("first", {}))
    assert told.watch is not None
    async with running(read(environment(arena))) as gateway:
        arguments = filled(given.get("arguments", {}), arena.names)
        if given.get("before", True):
            before = await gateway.gateway.call(_ann(gateway), given["tool"], arguments)
            told.decisions += 1
            assert _codes(before.as_dict()) not in (["unknown_target"], ["scope_missing"], ["target_not_granted"])
        arena.forget()
        _write(arena, given.get("then", {}))
        with suppress(FileNotFoundError), watching(told.watch):
            if "freeze" in given:
                _freeze(arena, given["freeze"])
            for _ in range(given.get("reloads", 1)):
                await gateway.reload()
            reply = await gateway.gateway.call(_ann(gateway), given["tool"], arguments)
        told.codes, told.decisions = _codes(reply.as_dict()), told.decisions + 1
        told.decisions += given.get("refused_reloads", 0)
        told.said.append(str(reply.as_dict()).encode())
    return told


def _freeze(arena: Arena, what: Mapping[str, Any] | str) -> None:
    """As `systemmanager freeze` does it, beside the running gateway; a text is the file as somebody else wrote it."""
    if isinstance(what, str):
        (arena.state / freezing.NAME).write_text(what)
    else:
        freezing.write(arena.state, freezing.Frozen(**{**what, "targets": tuple(what.get("targets", ()))}))


def _ann(gateway: Running) -> Principal:
    identity = Identity("ann@example.com", "person", "test")
    return principal_of(identity, gateway.gateway.policy)


# --- values on their way to a shell -----------------------------------------------------------------------------------


async def argv(case: Case, arena: Arena) -> Told:
    """A value as a unit's name, which is refused, and as an argument over SSH, where it arrives as it is."""
    told = await call(case, arena)
    assert len(arena.arrived[case.id]) == len(SHELLS)
    for shell, came in arena.arrived[case.id].items():
        if came is not None:
            told.effects.append(f"{shell}: {came}")
    return told


SEQUENCES: dict[str, Attacker] = {"desk": desk, "race": race, "argv": argv}
