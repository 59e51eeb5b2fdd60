"""Files below a target's allowed paths: list, inspect, read, show the end, search. No file is read whole."""

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from systemmanager.operation import Risk, operation
from systemmanager.operations import text_files
from systemmanager.params import AbsolutePath, LineCount, NotBoolean, Pattern
from systemmanager.ports import FileInfo, FileKind, Files, ForeignText, FreeText, Result, Shown

MAX_PAGE = 1000
MAX_LISTED = 10_000
"""What the Files port lists at most."""
_MAX_FOLDERS, _MAX_SEEN, _MAX_DEPTH = 2_000, 50_000, 12


class FileEntry(Result):
    name: ForeignText
    kind: FileKind
    size: int | None = Field(default=None, description="Bytes, of files.")
    modified: str
    mode: str
    owner: str
    group: str | None = None
    link_target: ForeignText | None = None
    links: int | None = Field(default=None, description="Names of this file, where more than one.")


class MatchingLine(Result):
    line: int
    text: FreeText


class FileAnswer(Result):
    """One shape for every action; what an action does not say is left out."""

    path: str
    info: FileEntry | None = None
    entries: list[FileEntry] | None = Field(default=None, description="list and search; names relative to path.")
    text: FreeText | None = None
    matches: list[MatchingLine] | None = None
    first_line: int | None = Field(default=None, description="Lines count from 1.")
    size: int | None = Field(default=None, description="Bytes of the whole file.")
    content: str | None = Field(default=None, description="Why there is no text: gzip, binary ...")
    total: int | None = None
    truncated: bool | None = None
    next: str | None = Field(default=None, description="Pass as `offset` to go on.")
    note: str | None = None


@operation(
    scope="file:read",
    capability="file:read",
    risk=Risk.HIGH,
    roles={"path": "path"},
)
async def file_operations(
    files: Files,
    action: Literal["list", "info", "read", "tail", "search"],
    path: AbsolutePath,
    lines: LineCount = 100,
    offset: Annotated[
        int, Field(ge=0, description="Lines or entries to skip; for tail, from the end."), NotBoolean
    ] = 0,
    pattern: Annotated[
        Pattern,
        Field(description="For list and search, ignoring case: a glob of names; in a file, text with * for anything."),
    ] = "*",
    *,
    shown: Shown = str,
) -> FileAnswer:
    """List a folder, read a file or its end, or search: names below a folder, or lines of a file that hold a text."""
    match action:
        case "info":
            return FileAnswer(path=path, info=_entry(await files.info(path), path, full=True))
        case "list":
            return await _list(files, path, lines, offset, _Names(pattern, shown))
        case "search" if (await files.info(path)).kind == "directory":
            return await _search_names(files, path, lines, offset, _Names(pattern, shown))
        case _:
            return await _lines(files, path, action, lines, offset, pattern, shown)


async def _list(files: Files, path: str, count: int, offset: int, wanted: "_Names") -> FileAnswer:
    listed = await files.list(path)
    named = [(_relative(info.path, path), info) for info in listed]
    matching = [(name, info) for name, info in named if wanted.match(name)]
    note = f"Only the first {MAX_LISTED} names of the folder were looked at." if len(listed) >= MAX_LISTED else None
    return _page(path, matching, count, offset, note)


def _page(path: str, found: list[tuple[str, FileInfo]], count: int, offset: int, note: str | None) -> FileAnswer:
    """One page; `note` says why there may be more than was found."""
    end = offset + min(count, MAX_PAGE)
    more = end < len(found)
    return FileAnswer(
        path=path,
        entries=[_entry(info, name) for name, info in found[offset:end]],
        total=len(found),
        truncated=True if more or note else None,
        next=str(end) if more else None,
        note=note,
    )


async def _search_names(files: Files, path: str, count: int, offset: int, wanted: "_Names") -> FileAnswer:
    """Names below a folder, breadth first; links are listed but not followed."""
    found: list[tuple[str, FileInfo]] = []
    folders, seen, skipped, cut = [(path, 0)], 0, 0, False
    clock = text_files.Budget()
    for visited, (folder, depth) in enumerate(folders):
        if visited >= _MAX_FOLDERS or seen >= _MAX_SEEN or clock.spent:
            cut = True
            break
        listed = await _listed(files, folder, top=not depth)
        skipped += listed is None
        cut = cut or len(listed or ()) >= MAX_LISTED
        for info in listed or ():
            seen += 1
            name = _relative(info.path, path)
            if wanted.match(name, below=True):
                found.append((name, info))
            if info.kind == "directory" and depth < _MAX_DEPTH:
                folders.append((info.path, depth + 1))
    notes = (
        f"Stopped after {seen} names: search a smaller folder." if cut else None,
        f"{skipped} folders could not be read." if skipped else None,
    )
    return _page(path, found, count, offset, " ".join(filter(None, notes)) or None)


async def _listed(files: Files, folder: str, *, top: bool) -> "list[FileInfo] | None":
    try:
        return list(await files.list(folder))
    except text_files.NOT_READABLE:
        if top:
            raise
        return None


async def _lines(
    files: Files,
    path: str,
    action: Literal["read", "tail", "search"],
    count: int,
    offset: int,
    pattern: str,
    shown: Shown,
) -> FileAnswer:
    info = await files.info(path)
    reader = text_files.Reader(files, path)
    if kind := await reader.binary(max(0, info.size - text_files.SAMPLE) if action == "tail" else 0):
        return FileAnswer(path=path, size=info.size, content=kind)
    if action == "read":
        part = await text_files.lines_from(reader, offset, count)
    elif action == "tail":
        part = await text_files.last_lines(reader, info.size, count, offset)
    else:
        part = await text_files.matching_lines(reader, pattern, offset, min(count, MAX_PAGE), shown)
    names = f"The file has {info.links} names (hard links)." if info.links > 1 else None
    found = [MatchingLine(line=number + 1, text=text) for number, text in part.lines]
    return FileAnswer(
        path=path,
        text=part.text if action != "search" else None,
        matches=found if action == "search" else None,
        first_line=offset + 1 if action == "read" else None,
        size=info.size,
        truncated=part.more or None,
        next=str(part.next) if part.more else None,
        note=" ".join(filter(None, (part.note, names))) or None,
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """A glob of names, ignoring case; one with a slash is of paths below the folder."""

    pattern: str
    shown: Shown

    def match(self, name: str, *, below: bool = False) -> bool:
        if self.pattern == "*":
            return True
        name = name.rpartition("/")[2] if below and "/" not in self.pattern else name
        wanted = self.pattern.lower()
        return fnmatchcase(name.lower(), wanted) and fnmatchcase(self.shown(name).lower(), wanted)


def _relative(path: str, folder: str) -> str:
    return path.removeprefix(folder.rstrip("/") + "/")


def _one_line(name: str) -> str:
    """A name of several lines could pass for several names."""
    return name.replace("\n", "\\n").replace("\t", "\\t")


def _entry(info: FileInfo, name: str, *, full: bool = False) -> FileEntry:
    modified = datetime.fromtimestamp(min(max(info.modified, 0), 253402300799), UTC)
    return FileEntry(
        name=_one_line(name),
        kind=info.kind,
        size=info.size if info.kind == "file" else None,
        modified=modified.isoformat(timespec="seconds").replace("+00:00", "Z"),
        mode=stat.filemode(info.mode),
        owner=info.owner,
        group=info.group if full else None,
        link_target=info.link_target and _one_line(info.link_target),
        links=info.links if info.links > 1 and info.kind == "file" else None,
    )
