"""YAML as people meant it: strict loading that keeps the place of every value, for error messages with line and column.

Only plain data: no tags, anchors, aliases or merge keys (an alias bomb needs them), no duplicate keys, at most 1 MiB,
at most 40 levels. Scalars follow YAML 1.1 as PyYAML resolves it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from systemmanager.errors import ConfigError, Problem, nearest

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 40
_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))

_START = yaml.Mark("", 0, 0, 0, None, 0)

Location = tuple[str | int, ...]
Marks = dict[Location, tuple[int, int]]


class _Loader(yaml.SafeLoader):
    """SafeLoader with dates as plain text: no field of ours is a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path: Path, name: str | None = None) -> tuple[Any, Marks, str]:
    """Read one file: its data, where each value stands, and its text. Raises `ConfigError`."""
    where = name or str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(where, f"can't be read: {error.strerror}")]) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError([Problem(where, "is larger than 1 MiB")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(where, f"is not UTF-8 (byte {error.start})")]) from error
    data, marks = parse(text, where)
    return data, marks, text


def parse(text: str, where: str) -> tuple[Any, Marks]:
    """Data and places of a YAML text. Raises `ConfigError` naming line and column."""
    try:
        loader = _Loader(text)
        try:
            _refuse_indirection(text, where)
            root = loader.get_single_node()
            marks: Marks = {}
            problems: list[Problem] = []
            data = None if root is None else _construct(loader, root, (), marks, problems, where)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError([Problem(where, f"is not valid YAML: {error.problem}", line, column)]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([Problem(where, f"is not valid YAML: {str(error).splitlines()[0]}")]) from error
    if problems:
        raise ConfigError(problems)
    return data, marks


def _refuse_indirection(text: str, where: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark or _START
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(
                [
                    Problem(
                        where,
                        "anchors and aliases are not accepted: write the value out",
                        mark.line + 1,
                        mark.column + 1,
                    )
                ]
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError([Problem(where, f"is nested deeper than {MAX_DEPTH}", mark.line + 1, mark.column + 1)])


def _construct(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    location: Location,
    marks: Marks,
    problems: list[Problem],
    where: str,
) -> Any:
    marks[location] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, child, (*location, index), marks, problems, where)
            for index, child in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key_node.tag != "tag:yaml.org,2002:str":
                problems.append(Problem(where, f"key {key!r} must be a text; quote it", *place))
                continue
            if key in result:
                problems.append(Problem(where, f"key {key!r} stands twice", *place))
            result[key] = _construct(loader, value_node, (*location, key), marks, problems, where)
            marks[(*location, key)] = place
        return result
    if node.tag not in _PLAIN_TAGS:
        problems.append(Problem(where, f"tag {node.tag!r} is not accepted", *marks[location]))
        return None
    return loader.construct_object(node, deep=True)


def place_of(location: Sequence[str | int], marks: Marks) -> tuple[int, int]:
    """Line and column of the value at `location`, or of the nearest thing around it."""
    for end in range(len(location), -1, -1):
        if (found := marks.get(tuple(location[:end]))) is not None:
            return found
    return 0, 0


def problems_of(error: ValidationError, model: type[BaseModel], marks: Marks, where: str) -> list[Problem]:
    """A pydantic error as problems with places and near names; values are not repeated, they may be secret."""
    return [_problem(details, model, marks, where) for details in error.errors(include_url=False, include_input=False)]


def _problem(details: ErrorDetails, model: type[BaseModel], marks: Marks, where: str) -> Problem:
    # Locations name the variant of a union too ("ssh"), which is no key of the file.
    location: list[str | int] = []
    for part in details["loc"]:
        if (*location, part) in marks or part == details["loc"][-1]:
            location.append(part)
    path = ".".join(map(str, location))
    line, column = place_of(location, marks)
    if details["type"] == "extra_forbidden":
        near = nearest(str(location[-1]), _fields_at(model, details["loc"][:-1]))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return Problem(where, f"{path}: unknown key{hint}", line, column)
    message = details["msg"].removeprefix("Value error, ")
    message = "is missing" if details["type"] == "missing" else message[:1].lower() + message[1:]
    return Problem(where, f"{path}: {message}" if path else message, line, column)


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
