"""`targets.yaml` as one frozen registry: loading, selection, and what a reload changed."""

import base64
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from systemmanager import yamlfile
from systemmanager.errors import ConfigError, Problem, UnknownTarget, did_you_mean, nearest
from systemmanager.request import Grant
from systemmanager.selectors import selector, words_of
from systemmanager.target import BasicAuth, Document, LocalTarget, Target, host_of

NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_JUMPS = 8


@dataclass(frozen=True, slots=True)
class Registry:
    """All targets, by id. `faults`: why a declared target can't be used; `secrets`: values to redact."""

    targets: Mapping[str, Target]
    faults: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    version: str = "built-in"
    source: str = "built-in"
    _granted: dict[str, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)
    _hosts: dict[frozenset[str | None], frozenset[str]] = field(default_factory=dict, compare=False, repr=False)

    def select(self, expressions: Iterable[str], within: Collection[str] | None = None) -> list[Target]:
        """The targets that any of the expressions names, in the registry's order.

        An expression is an id, a glob (`web-*`, `*`), `tag:`, `env:`, `role:` or `kind:` with a value, joined by
        `and`, `or`, `not` and parentheses. Raises `UnknownTarget` when an expression, or one word of it, names
        nothing: a misspelt `not tag:porduction` must not mean everything. `within` are the ids that whoever asks
        may know of: outside of them globs find nothing and hints name nothing; a plain id is left to the gate to deny.
        """
        within = self.targets.keys() if within is None else within
        chosen: set[str] = set()
        for expression in expressions:
            if expression in self.targets:
                chosen.add(expression)
                continue
            if not (plain := expression.strip()) or plain.endswith(":"):
                raise self._unknown(plain, within)
            asked = selector(expression)
            pool = [target for id, target in self.targets.items() if id in within]
            for word, test in asked.words.items():
                if not any(map(test, pool)):
                    raise self._unknown(word, within)
            found = {target.id for target in pool if asked.matches(target)}
            if not found:
                raise self._unknown(expression, within)
            chosen |= found
        if not chosen:
            raise self._unknown("", within)
        return [target for id, target in self.targets.items() if id in chosen]

    def within(self, grants: Iterable[Grant]) -> Collection[str]:
        """Ids of the targets on which any of the grants holds."""
        return frozenset().union(*map(self.granted, grants))

    def granted(self, grant: Grant) -> Collection[str]:
        """Ids of the targets on which a grant holds; none when its selector can't be read."""
        expression = grant.targets
        if expression is None:
            return self.targets.keys()
        if (known := self._granted.get(expression)) is None:
            if len(self._granted) >= 256:
                self._granted.clear()
            try:
                test = selector(expression).matches
            except UnknownTarget:
                known = frozenset()
            else:
                known = frozenset(id for id, target in self.targets.items() if test(target))
            self._granted[expression] = known
        return known

    def hosts(self, grants: Iterable[Grant]) -> frozenset[str]:
        """Names and addresses under which the targets that any of the grants holds on are reached."""
        grants = tuple(grants)
        key = frozenset(grant.targets for grant in grants)
        if (known := self._hosts.get(key)) is None:
            if len(self._hosts) >= 256:
                self._hosts.clear()
            found = {host_of(self.targets[id]) for id in self.within(grants)}
            known = self._hosts[key] = frozenset(host for host in found if host)
        return known

    def route(self, target: Target) -> tuple[Target, ...]:
        """The jump hosts on the way to `target`, the first one to connect to first."""
        jump = getattr(target.connection, "jump", None)
        return () if jump is None else (*self.route(self.targets[jump]), self.targets[jump])

    def _unknown(self, expression: str, within: Iterable[str]) -> UnknownTarget:
        pool = [self.targets[id] for id in within]
        # Only one word can be a slip of the pen; many that together name nothing are not.
        word = "" if " " in expression else expression[:100]
        prefix, colon, _ = word.partition(":")
        known = {word for target in pool for word in words_of(target) if word.startswith(f"{prefix}:")} if colon else ()
        what = f"no target matches {expression[:100]!r}" if expression else "no target is named"
        hint = did_you_mean(word, known or {target.id for target in pool})
        return UnknownTarget(what, hint=hint or "The registry holds no target.")

    def changes(self, newer: "Registry") -> dict[str, list[str]]:
        """Ids that `newer` adds, changes and removes."""
        both = newer.targets.keys() & self.targets.keys()
        changed = (id for id in both if newer.targets[id] != self.targets[id] or _fault(newer, id) != _fault(self, id))
        return {
            "added": sorted(newer.targets.keys() - self.targets.keys()),
            "changed": sorted(changed),
            "removed": sorted(self.targets.keys() - newer.targets.keys()),
        }


def _fault(registry: Registry, id: str) -> str | None:
    return registry.faults.get(id)


def builtin() -> Registry:
    """The registry of a gateway without configuration: its own host, readable."""
    readable = ("system:read", "container:read", "network:read", "file:read")
    target = LocalTarget(id="local", executor="local", capabilities=readable)
    return Registry({"local": target})


def load(path: Path, environment: Mapping[str, str] | None = None) -> Registry:
    """Read and check a `targets.yaml`. Raises `ConfigError` with every problem and its place."""
    loaded = yamlfile.load(path)
    where, data = str(path), loaded.data
    if not isinstance(data, dict):
        raise ConfigError(loaded.problems or [Problem(where, "must hold `version` and `targets`", 1, 1)])
    resolver = _Resolver(os.environ if environment is None else environment)
    declared = data.get("targets")
    if isinstance(declared, dict):
        data = {**data, "targets": {id: resolver.target(id, body) for id, body in declared.items()}}
    problems = [*loaded.problems, *_cross_check(data, loaded.marks, where)]
    document, wrong = _validated(data, resolver)
    problems += yamlfile.problems_of(wrong, Document, loaded, where)
    if problems or document is None:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return Registry(
        targets=document.targets,
        faults=_with_jumps(document, resolver.faults),
        secrets=frozenset(resolver.secrets | (_secrets_of(document) - resolver.unresolved)),
        version=hashlib.sha256(loaded.text.encode()).hexdigest()[:12],
        source=where,
    )


# What stands in for the connection of a target whose own can't be known; nothing ever opens it.
_STAND_IN: dict[str, dict[str, str]] = {
    "local": {},
    "ssh": {"host": "unresolved.invalid", "username": "unresolved"},
    "docker": {"socket_path": "/unresolved"},
    "http": {"base_url": "http://unresolved.invalid"},
}


def _validated(data: dict[str, Any], resolver: "_Resolver") -> tuple[Document | None, list[ErrorDetails]]:
    """The document, or what is wrong; what is wrong only for want of a `${NAME}` is that target's fault alone."""
    try:
        return Document.model_validate(data), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    if kept := [details for details in found if not resolver.explains(details["loc"])]:
        hidden = [more for details in kept for more in _behind(details, data) if not resolver.explains(more["loc"])]
        return None, [*kept, *hidden]
    at_fault = {details["loc"][1] for details in found}
    targets = {id: _stood_in(body) if id in at_fault else body for id, body in data["targets"].items()}
    return Document.model_validate({**data, "targets": targets}), []


def _behind(details: ErrorDetails, data: dict[str, Any]) -> list[ErrorDetails]:
    """What else is wrong with a target whose `executor` is missing or misspelt: its mistakes as the nearest kind."""
    if not details["type"].startswith("union_tag") or len(details["loc"]) != 2:
        return []
    id = details["loc"][1]
    body = data["targets"][id]
    key = next(iter(nearest("executor", body, 1)), "executor")
    given = str(body.get(key, ""))
    tries = [_mistakes(id, {**body, "executor": kind}) for kind in nearest(given, _STAND_IN) or _STAND_IN]
    return min(tries, key=len)


def _mistakes(id: Any, body: dict[str, Any]) -> list[ErrorDetails]:
    try:
        Document.model_validate({"version": "1.0", "targets": {id: body}})
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return []


def _stood_in(body: dict[str, Any]) -> dict[str, Any]:
    jump = {"jump": body["connection"]["jump"]} if "jump" in body["connection"] else {}
    return {**body, "connection": {**_STAND_IN[body["executor"]], **jump}}


class _Resolver:
    """Puts `${NAME}` in `connection` values: a systemd credential of that name, else the environment variable."""

    # A credential that names a place is no secret: to mask it would make answers unreadable.
    _PLACES = frozenset({"host", "port", "username", "jump", "known_hosts", "host_key", "socket_path", "docker_socket"})

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._open: set[tuple[Any, ...]] = set()
        self.faults: dict[str, str] = {}
        self.secrets: set[str] = set()
        self.unresolved: set[str] = set()

    def target(self, id: str, body: Any) -> Any:
        if not isinstance(body, dict) or "connection" not in body:
            return body
        return {**body, "connection": self._resolve((id, "connection"), body["connection"])}

    def explains(self, place: tuple[Any, ...]) -> bool:
        """Whether pydantic's complaint about `place` stands where a name is not resolved."""
        if len(place) < 4 or place[0] != "targets":
            return False
        # The third part names the executor; variants of `auth` stand in between, too.
        id, keys = place[1], place[3:]
        return any(
            open[0] == id and (keys == open[1:] or (keys[0], keys[-1]) == (open[1], open[-1])) for open in self._open
        )

    def _resolve(self, place: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._resolve((*place, key), child) for key, child in value.items()}
        if not isinstance(value, str):
            return value
        resolved = NAME.sub(lambda match: self._lookup(place, match), value)
        if place in self._open:
            # It holds a name and no value: to mask it would hide which one to set.
            self.unresolved.add(resolved)
        return resolved

    def _lookup(self, place: tuple[Any, ...], match: re.Match[str]) -> str:
        name = match[1]
        if secret := self._credential(name):
            if place[-1] not in self._PLACES:
                self.secrets.add(secret)
            return secret
        if found := self._environment.get(name):
            return found
        self._open.add(place)
        self.faults[place[0]] = (
            f"${{{name}}} is neither a credential in $CREDENTIALS_DIRECTORY nor set in the environment"
        )
        return match[0]

    def _credential(self, name: str) -> str | None:
        folder = self._environment.get("CREDENTIALS_DIRECTORY")
        if not folder:
            return None
        try:
            return Path(folder, name).read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError):
            return None


def _secrets_of(document: Document) -> set[str]:
    """Values of every SecretStr field and keys given as text, for redaction."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
        elif isinstance(value, str) and "PRIVATE KEY" in value:
            found.add(value)
        elif hasattr(value, "__pydantic_fields__"):
            for name in type(value).__pydantic_fields__:
                walk(getattr(value, name))
        if isinstance(value, BasicAuth):
            pair = f"{value.username}:{value.password.get_secret_value()}"
            found.add(base64.b64encode(pair.encode()).decode())

    for target in document.targets.values():
        walk(target.connection)
    return found


def _with_jumps(document: Document, faults: Mapping[str, str]) -> dict[str, str]:
    """The faults, with the targets that can only be reached through one at fault."""
    found = dict(faults)
    for id in document.targets:
        way = id
        while (next_one := getattr(document.targets[way].connection, "jump", None)) is not None:
            if next_one in faults:
                found.setdefault(id, f"its jump host {next_one!r} can't be used: {faults[next_one]}")
            way = next_one
    return found


def _cross_check(data: dict[str, Any], marks: yamlfile.Marks, where: str) -> list[Problem]:
    """What no model of one target can see: ids that differ from their keys, jumps that lead nowhere."""
    declared = data.get("targets")
    bodies = {id: body for id, body in declared.items() if isinstance(body, dict)} if isinstance(declared, dict) else {}
    problems = []
    for id, body in bodies.items():
        own = body.get("id")
        if isinstance(own, str) and own != id:
            place = yamlfile.place_of(("targets", id, "id"), marks)
            problems.append(Problem(where, f"targets.{id}.id: is {own[:80]!r}, but its key is {id!r}", *place))
        if isinstance(jump := _jump(body), str) and (wrong := _wrong_jump(id, jump, bodies)):
            place = yamlfile.place_of(("targets", id, "connection", "jump"), marks)
            problems.append(Problem(where, f"targets.{id}.connection.jump: {wrong}", *place))
    return problems


def _jump(body: Mapping[str, Any]) -> Any:
    connection = body.get("connection")
    return connection.get("jump") if isinstance(connection, dict) else None


def _wrong_jump(id: str, jump: str, bodies: Mapping[str, Any]) -> str | None:
    if NAME.search(jump):
        return "must be written out, ${NAME} is not accepted here"
    if jump not in bodies or bodies[jump].get("executor") != "ssh":
        others = [name for name, body in bodies.items() if body.get("executor") == "ssh" and name != id]
        return f"no SSH target {jump!r}. {did_you_mean(jump, others)}".rstrip()
    way: Any = id
    for _ in range(MAX_JUMPS + 1):
        way = _jump(bodies[way]) if way in bodies else None
        if not isinstance(way, str):
            return None
        if way == id:
            return "leads back to itself"
    return f"leads over more than {MAX_JUMPS} jump hosts, or in a circle"
