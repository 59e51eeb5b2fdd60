"""The files of a checkout before Compose reads them: which others they make it read, and the variables of `.env`."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from systemmanager.errors import Denied
from systemmanager.policy.compose.document import Location, Tree, read, refused
from systemmanager.stacks import Document

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PATH = re.compile(r"(?:\./)?(?:\.\./){0,10}[A-Za-z0-9_.][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_.][A-Za-z0-9_.+-]*){0,15}")
_RESERVED = re.compile(
    r"(?i:(?:COMPOSE|DOCKER|BUILDX|BUILDKIT|LD|GIT|SSH|SSL|OTEL|XDG|GO|GOMAX\w*|SYSTEMMANAGER)_.*|\w+_proxy"
    r"|PATH|HOME|USER|SHELL|TMPDIR|GODEBUG|GOMAXPROCS|BASH_ENV|ENV|IFS)"
)
"""What Compose, docker and the programs below them read from their environment."""

MOST_VARIABLES, LONGEST_VALUE = 200, 32 * 1024


def document(name: str, text: str) -> Document:
    """One Compose file, and what it makes Compose read. Raises `Denied`."""
    tree = read(name, text)
    if not isinstance(tree.data, dict):
        raise refused(name, 1, "is no Compose file")
    more, plain = [], []
    for path, at in _included(name, tree):
        more.append(_path(name, tree, path, at))
    for key, value, at in _walk(tree.data, ()):
        if key in ("env_file", "label_file"):
            plain += [_path(name, tree, path, at) for path in _paths(name, tree, value, at)]
        elif key == "extends" and isinstance(value, Mapping) and "file" in value:
            more.append(_path(name, tree, value["file"], at))
        elif key == "project_directory":
            raise refused(name, tree.line(at)[1], "project_directory is not accepted: paths are relative to their file")
    return Document(name, text, tuple(dict.fromkeys(more)), tuple(dict.fromkeys(plain)))


def _included(name: str, tree: Tree) -> Iterator[tuple[Any, Location]]:
    """The Compose files that this one includes."""
    found = tree.data.get("include")
    if found is not None and not isinstance(found, list):
        raise refused(name, tree.line(("include",))[1], "include must be a list")
    for index, one in enumerate(found or ()):
        at: Location = ("include", index)
        paths = one.get("path") if isinstance(one, Mapping) else one
        for path in paths if isinstance(paths, list) else [paths]:
            yield path, at


def _walk(value: Any, at: Location) -> Iterator[tuple[str, Any, Location]]:
    """Every key of a document with its value, at any depth: merge keys put things anywhere."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        if isinstance(key, str):
            yield key, one, (*at, key)
        yield from _walk(one, (*at, key))


def _paths(name: str, tree: Tree, value: Any, at: Location) -> Iterator[Any]:
    for one in value if isinstance(value, list) else [value]:
        if one is not None:
            yield one.get("path") if isinstance(one, Mapping) else one


def _path(name: str, tree: Tree, path: Any, at: Location) -> str:
    """A file's path relative to the checkout's root. Raises `Denied` for one that leads out, or is no plain path."""
    line = tree.line(at)[1]
    field = str(at[-1] if isinstance(at[-1], str) else at[-2])
    if not isinstance(path, str) or not _PATH.fullmatch(path) or path.split("/")[0] == "github.com":
        raise refused(name, line, f"{field} must name a file of the checkout, written out")
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
    if whole == ".." or whole.startswith(("../", "/")):
        raise refused(name, line, f"{field} names a file outside the checkout")
    return whole


def variables(given: Mapping[str, str], text: str) -> dict[str, str]:
    """What `${...}` may stand for. Raises `Denied`."""
    for name, value in given.items():
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise Denied(f"{name[:100]!r} is no variable that a stack may be given", code="variable_not_allowed")
        if "\0" in value or len(value) > LONGEST_VALUE:
            raise Denied(f"the value of {name} is too long or holds a NUL", code="variable_not_allowed")
    own = dict(_dotenv(text))
    if len(own) + len(given) > MOST_VARIABLES:
        raise Denied(f"there are more than {MOST_VARIABLES} variables", code="variable_not_allowed")
    return {name: value for name, value in own.items() if not _RESERVED.fullmatch(name)} | dict(given)


def _dotenv(text: str) -> Iterator[tuple[str, str]]:
    """NAME=value lines, quoted or not; a value is taken as it stands."""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip().removeprefix("export ").strip()
        if not bare or bare.startswith("#"):
            continue
        name, equals, value = bare.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name) or len(value) > LONGEST_VALUE or "\0" in value:
            raise refused(".env", number, "is no NAME=value line")
        quote = value[:1] if value[:1] in ("'", '"') else ""
        if quote:
            value, closed, rest = value[1:].partition(quote)
            if not closed or (rest.strip() and not rest.strip().startswith("#")):
                raise refused(".env", number, "has a quoted value that does not end on its line")
        else:
            value = re.split(r"\s#", value, maxsplit=1)[0].strip()
        if quote != "'" and "$" in value:
            raise refused(".env", number, "refers to another variable: write the value out, or in single quotes")
        yield name, value
