"""A Compose file as data with places, before Compose itself reads it.

Compose reads `env_file`, `include` and `extends` while it parses, so what they name is judged here, on a document that
is bounded: anchors and merge keys are usual in Compose files and are read, but what they expand to is counted first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from systemmanager.errors import Denied
from systemmanager.policy.compose.findings import shown

MOST_BYTES = 256 * 1024
MOST_NODES = 20_000
DEEPEST = 50

_CORE = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
)
# What line-counting readers disagree on, and what nobody sees.
_HIDDEN = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Location = tuple[str | int, ...]


@dataclass(slots=True)
class Tree:
    """A document's data; `lines` has the line (from 1) of each value, by its location."""

    data: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> tuple[int, int]:
        """How many parts of the location are there, and the line of the last of them."""
        for end in range(len(location), 0, -1):
            if (found := self.lines.get(location[:end])) is not None:
                return end, found
        return 0, 1


def read(name: str, text: str) -> Tree:
    """The data of one Compose file. Raises `Denied` for what is not plain, small YAML of one document."""
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise refused(name, 0, f"is larger than {MOST_BYTES // 1024} KiB")
    if hidden := _HIDDEN.search(text):
        line = text.count("\n", 0, hidden.start()) + 1
        raise refused(name, line, f"holds the character U+{ord(hidden[0]):04X}")
    try:
        _check_events(name, text)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refused(name, mark.line + 1 if mark else 0, f"is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise refused(name, 0, "is not valid YAML") from error
    if root is None:
        raise refused(name, 0, "is empty")
    _weigh(name, root, {}, ())
    tree = Tree(None)
    tree.data = _data(name, root, (), tree)
    return tree


def refused(name: str, line: int, why: str) -> Denied:
    place = f"{name}:{line}" if line else name
    return Denied(f"{place}: {why}", code="compose_refused", hint="Change the Compose file in the repository.")


def _check_events(name: str, text: str) -> None:
    """Depth and number of nodes as they are written, before anything is built of them."""
    depth = nodes = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        documents += isinstance(event, yaml.DocumentStartEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise refused(name, line, "holds more than one document")
        if depth > DEEPEST or nodes > MOST_NODES:
            raise refused(name, line, "is nested too deeply" if depth > DEEPEST else "holds too many values")


def _weigh(name: str, node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many nodes one stands for when every alias is written out."""
    line = node.start_mark.line + 1
    if id(node) in above:
        raise refused(name, line, "holds an alias of what it stands in")
    if node.tag not in _CORE:
        raise refused(name, line, f"holds the tag {shown(node.tag)[:60]!r}")
    if (weight := known.get(id(node))) is None:
        weight = 1
        for child in _children(node):
            weight += _weigh(name, child, known, (*above, id(node)))
            if weight > MOST_NODES or len(above) > DEEPEST:
                raise refused(name, line, "expands to too many values")
        known[id(node)] = weight
    return weight


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _data(name: str, node: yaml.Node, location: Location, tree: Tree) -> Any:
    tree.lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_data(name, child, (*location, index), tree) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(name, node, location, tree)
    return None if node.tag.endswith(":null") else str(node.value)


def _mapping(name: str, node: yaml.MappingNode, location: Location, tree: Tree) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise refused(name, key.start_mark.line + 1, "holds a key that is no text")
        text = str(key.value)
        if key.tag.endswith(":merge"):
            found = _data(name, value, (*location, "<<"), tree)
            for one in found if isinstance(found, list) else [found]:
                merged = {**(one if isinstance(one, dict) else {}), **merged}
            continue
        if text in own:
            raise refused(name, key.start_mark.line + 1, f"holds the key {shown(text)[:60]!r} twice")
        tree.lines[(*location, text)] = key.start_mark.line + 1
        own[text] = _data(name, value, (*location, text), tree)
    return {**merged, **own}
