"""YAML as people meant it: strict loading that keeps the place of every value, for error messages with line and column.

Only plain data: no tags, anchors, aliases or merge keys (an alias bomb needs them), no duplicate keys, at most 4 MiB,
at most 40 levels. Plain words that YAML 1.1 reads as something else than they look like (`no`, `0755`, `22:22`, `.nan`)
are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from systemmanager.errors import ConfigError, Problem, nearest

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))
_UNSURPRISING = {
    f"{_TAG}bool": (re.compile(r"true|false|True|False|TRUE|FALSE"), "write true or false, or quote it as a text"),
    f"{_TAG}int": (re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"), "write a plain decimal number, or quote it as a text"),
    f"{_TAG}float": (
        re.compile(r"[-+]?[0-9]{1,18}(\.[0-9]{0,18})?([eE][-+]?[0-9]{1,2})?"),
        "write a plain decimal number, or quote it as a text",
    ),
}
"""What a plain scalar of a tag may look like, and what to do when it looks otherwise."""

_START = yaml.Mark("", 0, 0, 0, None, 0)
# libyaml where PyYAML was built with it: a file of 500 targets loads in a tenth of the time.
_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Location = tuple[str | int, ...]
Marks = dict[Location, tuple[int, int]]


class _Loader(_Fastest):  # type: ignore[misc]  # one of two loaders with the same interface
    """A safe loader with dates as plain text: no field of ours is a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file's data, where each value stands, and what is wrong so far; values `at_fault` are None in `data`."""

    data: Any
    marks: Marks
    problems: tuple[Problem, ...]
    at_fault: frozenset[Location]
    text: str


def load(path: Path, name: str | None = None) -> Loaded:
    """Read one file. Raises `ConfigError` when it can't be read as YAML at all."""
    where = name or str(path)
    try:
        if not path.is_file():
            raise ConfigError([Problem(where, "is no regular file" if path.exists() else "does not exist")])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(where, f"can't be read: {error.strerror}")]) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError([Problem(where, "is larger than 4 MiB")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise ConfigError([Problem(where, "is not UTF-8", line, column)]) from error
    return parse(text, where)


def parse(text: str, where: str) -> Loaded:
    """Data and places of a YAML text. Raises `ConfigError` naming line and column."""
    reading = _Reading(where)
    try:
        _refuse_indirection(text, where)
        root = yaml.compose(text, Loader=_Loader)
        data = None if root is None else reading.construct(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError([Problem(where, f"is not valid YAML: {error.problem}", line, column)]) from error
    except yaml.reader.ReaderError as error:
        place = _place_of_character(text, error)
        raise ConfigError([Problem(where, f"is not valid YAML: {error.reason}", *place)]) from error
    return Loaded(data, reading.marks, tuple(reading.problems), frozenset(reading.at_fault), text)


def _place_of_character(text: str, error: yaml.reader.ReaderError) -> tuple[int, int]:
    """Line and column of a character that YAML does not take; libyaml counts bytes, PyYAML characters."""
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    position = found.start() if found else min(error.position, len(text))
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _refuse_indirection(text: str, where: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = event.start_mark or _START
        place = (mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError([Problem(where, "anchors and aliases are not accepted: write the value out", *place)])
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError([Problem(where, f"is nested deeper than {MAX_DEPTH} levels", *place)])


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


@dataclass(slots=True)
class _Reading:
    """The nodes of one file on their way to data. No message repeats a value: it may be a secret."""

    where: str
    marks: Marks = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    at_fault: set[Location] = field(default_factory=set)

    def construct(self, node: yaml.Node, location: Location) -> Any:
        self.marks[location] = _place(node)
        if node.tag not in _PLAIN_TAGS:
            self._wrong(f"tag {node.tag.removeprefix(_TAG)[:80]!r} is not accepted", node)
            self.at_fault.add(location)
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.construct(child, (*location, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        return self._scalar(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong("a key must be a text", key_node)
                continue
            key = key_node.value
            if key_node.tag != f"{_TAG}str":
                merge = key_node.tag == f"{_TAG}merge"
                hint = "merge keys are not accepted: write the values out" if merge else "quote it"
                self._wrong(f"key {key[:80]!r} is no text; {hint}", key_node)
                continue
            if key in result:
                self._wrong(f"key {key[:80]!r} stands twice", key_node)
            result[key] = self.construct(value_node, (*location, key))
            self.marks[(*location, key)] = _place(key_node)
        return result

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        looks, advice = _UNSURPRISING.get(node.tag, (None, ""))
        if looks is not None and not looks.fullmatch(node.value):
            self._wrong(f"YAML reads this value as {node.tag.removeprefix(_TAG)}: {advice}", node)
            self.at_fault.add(location)
            return None
        if node.tag == f"{_TAG}bool":
            return node.value.lower() == "true"
        if node.tag == f"{_TAG}null":
            return None
        return {f"{_TAG}int": int, f"{_TAG}float": float}.get(node.tag, str)(node.value)

    def _wrong(self, message: str, node: yaml.Node) -> None:
        self.problems.append(Problem(self.where, message, *_place(node)))


def place_of(location: Sequence[str | int], marks: Marks) -> tuple[int, int]:
    """Line and column of the value at `location`, or of the nearest thing around it."""
    for end in range(len(location), -1, -1):
        if (found := marks.get(tuple(location[:end]))) is not None:
            return found
    return 0, 0


def problems_of(errors: Sequence[ErrorDetails], model: type[BaseModel], loaded: Loaded, where: str) -> list[Problem]:
    """Pydantic's errors as problems with places and near names; values are not repeated, they may be secret."""
    found: dict[Location, list[str]] = {}
    for details in errors:
        location = _in_file(details, loaded.marks)
        if location in loaded.at_fault or _is_short_for_faults(details, errors):
            continue
        messages = found.setdefault(location, [])
        if (message := _message(details, location, model)) not in messages:
            messages.append(message)
    return [
        Problem(
            where, f"{path}: {' or '.join(messages)}" if (path := ".".join(map(str, location))) else messages[0], *at
        )
        for location, messages in found.items()
        for at in (place_of(location, loaded.marks),)
    ]


def _is_short_for_faults(details: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether a list only seems to be too short since its items are at fault: pydantic does not count those."""
    own = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(own)] == own for other in errors if other is not details
    )


def _in_file(details: ErrorDetails, marks: Marks) -> Location:
    """An error's location as keys of the file; pydantic names variants of unions too ("ssh"), which are none."""
    location: list[str | int] = []
    for part in details["loc"]:
        if (*location, part) in marks:
            location.append(part)
    if details["type"] == "missing":
        location.append(details["loc"][-1])
    elif details["type"].startswith("union_tag"):
        location.append(str(details["ctx"]["discriminator"]).strip("'"))
    return tuple(location)


def _message(details: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = [name for name in _fields_at(model, details["loc"][:-1]) if name != location[-1]]
        near = nearest(str(location[-1]), known)
        return f"unknown key{f'; did you mean {near[0]!r}?' if near else ''}"
    if kind == "union_tag_invalid":
        expected = str(context["expected_tags"])
        near = nearest(str(context["tag"]), expected.replace("'", "").split(", "))
        return f"must be one of {expected}{f'; did you mean {near[0]!r}?' if near else ''}"
    if kind in ("missing", "union_tag_not_found"):
        return "is missing"
    if kind in _SHAPES:
        return "must map ids to targets" if location == ("targets",) else _SHAPES[kind]
    if kind == "too_short":
        return f"must have at least {context['min_length']}"
    message = details["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


_SHAPES = dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "must be a list") | dict.fromkeys(
    ("dict_type", "model_type", "model_attributes_type"), "must hold keys with values"
)
"""What pydantic calls after Python's types."""


def _fields_at(model: Any, location: Sequence[str | int]) -> list[str]:
    """The keys that are known where `location` points, following models, dicts, lists and unions by their tag."""
    candidates = [model]
    for part in location:
        candidates = [
            deeper for candidate in candidates for shape in _shapes(candidate) for deeper in _step(shape, part)
        ]
    models = [shape for candidate in candidates for shape in _shapes(candidate) if _is_model(shape)]
    return sorted({name for shape in models for name in shape.model_fields})


def _is_model(shape: Any) -> bool:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def _shapes(annotation: Any) -> list[Any]:
    """A type with `Annotated` and unions taken apart."""
    if _is_model(annotation) or get_origin(annotation) in (dict, tuple, list):
        return [annotation]
    return [shape for argument in get_args(annotation) for shape in _shapes(argument)]


def _step(shape: Any, part: str | int) -> list[Any]:
    if _is_model(shape):
        if part in shape.model_fields:
            return [shape.model_fields[str(part)].annotation]
        # The tag of a discriminated union stands in the location: it selects the variant and consumes no key.
        tagged = [field.annotation for field in shape.model_fields.values() if part in get_args(field.annotation)]
        return [shape] if tagged else []
    arguments = get_args(shape)
    return [arguments[1]] if get_origin(shape) is dict else [arguments[0]] if arguments else []
