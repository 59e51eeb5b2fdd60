"""`targets.yaml` as one frozen registry: loading, selectors, and what a reload changed."""

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from systemmanager import yamlfile
from systemmanager.errors import ConfigError, Problem, UnknownTarget, did_you_mean
from systemmanager.target import Document, LocalTarget, Target

NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Registry:
    """All targets, by id. `faults`: why a declared target can't be used; `secrets`: values to redact."""

    targets: Mapping[str, Target]
    faults: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    version: str = "built-in"
    source: str = "built-in"

    def select(self, expressions: Iterable[str]) -> list[Target]:
        """The targets that any of the expressions names, in the registry's order.

        An expression is an id, a glob (`web-*`, `*`), `tag:`, `env:`, `role:` or `kind:` with a value, joined by
        `and`, `or`, `not` and parentheses. Raises `UnknownTarget` when one of them names nothing.
        """
        chosen: set[str] = set()
        for expression in expressions:
            if expression in self.targets:
                chosen.add(expression)
                continue
            found = {id for id, target in self.targets.items() if matches(expression, target)}
            if not found:
                raise self._unknown(expression)
            chosen |= found
        if not chosen:
            raise self._unknown("")
        return [target for id, target in self.targets.items() if id in chosen]

    def route(self, target: Target) -> tuple[Target, ...]:
        """The jump hosts on the way to `target`, the first one to connect to first."""
        jump = getattr(target.connection, "jump", None)
        return () if jump is None else (*self.route(self.targets[jump]), self.targets[jump])

    def _unknown(self, expression: str) -> UnknownTarget:
        prefix, colon, _ = expression.partition(":")
        known = {f"{prefix}:{word}" for t in self.targets.values() for word in _words(t).get(prefix, ())}
        names = known if colon and known else set(self.targets)
        what = f"no target matches {expression!r}" if expression else "no target is named"
        return UnknownTarget(what, hint=did_you_mean(expression, names) or "The registry holds no target.")

    def changes(self, newer: "Registry") -> dict[str, list[str]]:
        """Ids that `newer` adds, changes and removes."""
        return {
            "added": sorted(newer.targets.keys() - self.targets.keys()),
            "changed": sorted(
                id for id in newer.targets.keys() & self.targets.keys() if newer.targets[id] != self.targets[id]
            ),
            "removed": sorted(self.targets.keys() - newer.targets.keys()),
        }


def builtin() -> Registry:
    """The registry of a gateway without configuration: its own host, readable."""
    readable = ("system:read", "container:read", "network:read", "file:read")
    target = LocalTarget(id="local", executor="local", capabilities=readable)
    return Registry({"local": target})


def load(path: Path, environment: Mapping[str, str] | None = None) -> Registry:
    """Read and check a `targets.yaml`. Raises `ConfigError` with every problem and its place."""
    data, marks, text = yamlfile.load(path)
    where = str(path)
    if not isinstance(data, dict):
        raise ConfigError([Problem(where, "must hold `version` and `targets`", 1, 1)])
    resolver = _Resolver(os.environ if environment is None else environment)
    declared = data.get("targets")
    if isinstance(declared, dict):
        data = {**data, "targets": {id: resolver.target(id, body) for id, body in declared.items()}}
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        raise ConfigError(yamlfile.problems_of(error, Document, marks, where)) from None
    if problems := _cross_check(document, marks, where):
        raise ConfigError(problems)
    return Registry(
        targets=document.targets,
        faults=resolver.faults,
        secrets=frozenset(resolver.secrets | _secrets_of(document)),
        version=hashlib.sha256(text.encode()).hexdigest()[:12],
        source=where,
    )


class _Resolver:
    """Puts `${NAME}` in `connection` values: a systemd credential of that name, else the environment variable."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.faults: dict[str, str] = {}
        self.secrets: set[str] = set()

    def target(self, id: str, body: Any) -> Any:
        if not isinstance(body, dict) or "connection" not in body:
            return body
        return {**body, "connection": self._resolve(id, body["connection"])}

    def _resolve(self, id: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._resolve(id, child) for key, child in value.items()}
        if not isinstance(value, str):
            return value
        return NAME.sub(lambda match: self._lookup(id, match), value)

    def _lookup(self, id: str, match: re.Match[str]) -> str:
        name = match[1]
        if folder := self._environment.get("CREDENTIALS_DIRECTORY"):
            try:
                secret = Path(folder, name).read_text().rstrip("\n")
            except (OSError, UnicodeDecodeError):
                pass
            else:
                self.secrets.add(secret)
                return secret
        if (found := self._environment.get(name)) is not None:
            return found
        self.faults[id] = f"${{{name}}} is neither a credential in $CREDENTIALS_DIRECTORY nor set in the environment"
        return match[0]


def _secrets_of(document: Document) -> set[str]:
    """Values of every SecretStr field, for redaction."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
        elif hasattr(value, "__pydantic_fields__"):
            for name in type(value).__pydantic_fields__:
                walk(getattr(value, name))

    for target in document.targets.values():
        walk(target.connection)
    return found


def _cross_check(document: Document, marks: yamlfile.Marks, where: str) -> list[Problem]:
    problems = []
    for id, target in document.targets.items():
        if target.id != id:
            place = yamlfile.place_of(("targets", id, "id"), marks)
            problems.append(Problem(where, f"targets.{id}.id: is {target.id!r}, but its key is {id!r}", *place))
        jump = getattr(target.connection, "jump", None)
        if jump is not None:
            place = yamlfile.place_of(("targets", id, "connection", "jump"), marks)
            if jump not in document.targets or document.targets[jump].executor != "ssh":
                ssh = [name for name, other in document.targets.items() if other.executor == "ssh" and name != id]
                hint = did_you_mean(jump, ssh)
                problems.append(Problem(where, f"targets.{id}.connection.jump: no SSH target {jump!r}. {hint}", *place))
            elif _loops(document, id):
                problems.append(Problem(where, f"targets.{id}.connection.jump: leads back to itself", *place))
    return problems


def _loops(document: Document, start: str) -> bool:
    seen: set[str] = set()
    id: str | None = start
    while id is not None and id in document.targets:
        if id in seen:
            return True
        seen.add(id)
        id = getattr(document.targets[id].connection, "jump", None)
    return False


# --- Selectors -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")


def _words(target: Target) -> dict[str, tuple[str, ...]]:
    """What `tag:`, `env:`, `role:` and `kind:` compare with."""
    metadata = target.metadata
    return {
        "tag": metadata.tags,
        "env": (metadata.environment,) if metadata.environment else (),
        "role": (metadata.role,) if metadata.role else (),
        "kind": (target.executor,),
    }


def matches(expression: str, target: Target) -> bool:
    """Whether a selector expression names `target`. Raises `UnknownTarget` when the expression can't be read."""
    tokens = [match[1] for match in _TOKEN.finditer(expression)]
    if not tokens or len(tokens) > 100:
        raise UnknownTarget(f"selector {expression[:80]!r} is {'empty' if not tokens else 'too long'}", hint=_GRAMMAR)
    result, rest = _either(tokens, target)
    if rest:
        raise UnknownTarget(f"selector {expression!r} can't be read at {rest[0]!r}", hint=_GRAMMAR)
    return result


_GRAMMAR = "Use ids, globs, tag:web, env:prod, role:db, kind:ssh, joined by and, or, not and parentheses."


def _either(tokens: list[str], target: Target) -> tuple[bool, list[str]]:
    result, rest = _both(tokens, target)
    while rest and rest[0] == "or":
        right, rest = _both(rest[1:], target)
        result = result or right
    return result, rest


def _both(tokens: list[str], target: Target) -> tuple[bool, list[str]]:
    result, rest = _one(tokens, target)
    while rest and rest[0] == "and":
        right, rest = _one(rest[1:], target)
        result = result and right
    return result, rest


def _one(tokens: list[str], target: Target) -> tuple[bool, list[str]]:
    if not tokens:
        raise UnknownTarget("the selector ends where a target is expected", hint=_GRAMMAR)
    head, rest = tokens[0], tokens[1:]
    if head == "not":
        result, rest = _one(rest, target)
        return not result, rest
    if head == "(":
        result, rest = _either(rest, target)
        if not rest or rest[0] != ")":
            raise UnknownTarget("the selector lacks a ')'", hint=_GRAMMAR)
        return result, rest[1:]
    if head in ("and", "or", ")"):
        raise UnknownTarget(f"the selector has {head!r} where a target is expected", hint=_GRAMMAR)
    return _atom(head, target), rest


def _atom(word: str, target: Target) -> bool:
    prefix, colon, value = word.partition(":")
    if not colon:
        return fnmatch.fnmatchcase(target.id, word)
    words = _words(target)
    if prefix not in words:
        raise UnknownTarget(f"selector {word!r}: there is no {prefix!r}:", hint=_GRAMMAR)
    return any(fnmatch.fnmatchcase(candidate, value) for candidate in words[prefix])
