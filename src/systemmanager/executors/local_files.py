"""Files of the gateway's own machine: a walk from `/`, one component at a time, that never trusts a link.

Every component is opened relative to the folder before it and without following links; a link is read and its text
walked like a path of its own. So what was judged is what is opened: there is no moment in which a rename or a new link
could change it, and `/proc`'s magic links lead nowhere. Where the kernel has openat2 it must agree in the end, by one
step of its own from the allowed root to the file.
"""

import asyncio
import errno
import grp
import heapq
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

from systemmanager.errors import NotFound, PathOutside, PrivilegeRequired, TargetError, Unsupported, did_you_mean
from systemmanager.executors.beneath import open_beneath
from systemmanager.executors.own_files import OwnFiles, not_a_file
from systemmanager.ports import FileInfo, FileKind
from systemmanager.request import Permit

T = TypeVar("T")

MAX_ENTRIES = 10_000
_MAX_NAMES = 1_000_000
_MAX_LINKS = 40
_THREADS = ThreadPoolExecutor(8, "files")
"""Its own threads: a dead network mount may hold them all, and the audit log must not wait for it."""


class LocalFiles:
    """Reads below `constraints.paths`, but never the gateway's own files.

    `/proc` is never read either: it holds the environment and memory of every process, the gateway's too.
    """

    def __init__(self, permit: Permit, own: OwnFiles) -> None:
        self._roots = permit.target.constraints.paths
        self._own = own

    async def info(self, path: str) -> FileInfo:
        return await _in_thread(lambda: self._info(path))

    async def list(self, path: str) -> Sequence[FileInfo]:
        return await _in_thread(lambda: self._list(path))

    async def read(self, path: str, offset: int, size: int) -> bytes:
        return await _in_thread(lambda: self._read(path, offset, size))

    def _info(self, path: str) -> FileInfo:
        with self._opened(path) as (descriptor, real):
            led = real if real != path else None
            return _describe(path, os.fstat(descriptor), led)

    def _list(self, path: str) -> Sequence[FileInfo]:
        with self._opened(path) as (found, real):
            if not stat.S_ISDIR(os.fstat(found).st_mode):
                raise Unsupported(f"{path} is not a directory", hint="Use info or read on it.")
            with _reopened(found, os.O_DIRECTORY, path) as directory:
                names = heapq.nsmallest(MAX_ENTRIES, islice(_names(directory), _MAX_NAMES))
                return [entry for name in names if (entry := _entry(directory, real, name))]

    def _read(self, path: str, offset: int, size: int) -> bytes:
        with self._opened(path) as (found, _):
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                raise not_a_file(path, status.st_mode)
            if status.st_nlink > 1 and self._own.is_one(status):
                raise _own(path)
            with _reopened(found, os.O_NONBLOCK | os.O_NOCTTY, path) as file:
                return _pread(file, path, offset, size)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor that only names (O_PATH) what `path` leads to, and where that really is."""
        roots, on_the_way = _resolved(self._roots)

        def judge(place: str) -> None:
            """Whether the walk may look at `place`; whether it may end there is asked at the end."""
            if _inside(place, ("/proc",)) or self._own.holds(place):
                raise _own(path)
            if not _inside(place, roots) and place not in on_the_way:
                raise _outside(path)

        try:
            descriptor, real = _walk(path, judge, roots)
        except OSError as error:
            raise _reason(path, error) from error
        except UnicodeEncodeError as error:
            raise NotFound("the path is no text that a file's name can be") from error
        try:
            if not _inside(real, roots):
                raise _outside(path)
            _agrees(descriptor, real, roots, path)
            if os.fstat(descriptor).st_dev == _proc_device():
                raise _own(path)
            yield descriptor, real
        finally:
            os.close(descriptor)


def _agrees(descriptor: int, real: str, roots: Sequence[str], path: str) -> None:
    """The kernel finds the same thing below the same root, in one step and without a link. Raises `PathOutside`."""
    root = max((one for one in roots if _inside(real, (one,))), key=len)
    steps = (root.strip("/"), real[len(root.rstrip("/")) :].strip("/"))
    opened = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for below in filter(None, steps):  # nothing is below a root that is a file
            found = open_beneath(opened[-1], below)
            if found is None:
                return
            opened.append(found)
        if os.path.samestat(os.fstat(opened[-1]), os.fstat(descriptor)):
            return
    except OSError:
        pass  # it went away, or became a link
    finally:
        for one in opened:
            os.close(one)
    raise PathOutside(f"{path} changed while it was opened", hint="Try again.")


def _resolved(configured: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Where the allowed roots really are, and every place that the walk to them comes by."""
    real: list[str] = []
    passed: set[str] = {"/"}

    for root in configured:
        try:
            descriptor, place = _walk(root, passed.add)
        except (OSError, TargetError):
            real.append(root)
        else:
            os.close(descriptor)
            real.append(place)
    return tuple(real), frozenset(passed)


def _walk(path: str, judge: Callable[[str], None], roots: Sequence[str] = ()) -> tuple[int, str]:
    """Open what `path` leads to. Raises `OSError`, and what `judge` raises before it looks at a place.

    Names near a missing one are told below `roots` only.
    """
    folders, names, links = [os.open("/", os.O_PATH | os.O_DIRECTORY)], [""], 0
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                if len(folders) > 1:
                    os.close(folders.pop())
                    names.pop()
                continue
            place = "/".join([*names, name])
            judge(place)
            try:
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folders[-1])
            except FileNotFoundError as error:
                shown = _inside("/".join(names) or "/", roots)
                raise _missing(path, name, folders[-1] if shown else None) from error
            folders.append(found)
            names.append(name)
            if stat.S_ISLNK(os.fstat(found).st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, "too many links")
                text = os.readlink("", dir_fd=found)
                leave = len(folders) - 1 if text.startswith("/") else 1
                for _ in range(leave):
                    os.close(folders.pop())
                    names.pop()
                todo += [part for part in reversed(text.split("/")) if part not in ("", ".")]
        return folders.pop(), "/".join(names) or "/"
    finally:
        for folder in folders:
            os.close(folder)


@contextmanager
def _reopened(descriptor: int, flags: int, path: str) -> Iterator[int]:
    """The very thing that an O_PATH descriptor names, opened for reading."""
    try:
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise _reason(path, error) from error
    try:
        yield opened
    finally:
        os.close(opened)


def _pread(file: int, path: str, offset: int, size: int) -> bytes:
    chunks: list[bytes] = []
    try:
        while size > 0 and (chunk := os.pread(file, size, offset)):
            chunks.append(chunk)
            offset += len(chunk)
            size -= len(chunk)
    except BlockingIOError as error:
        raise Unsupported(f"{path} is a stream that never ends, not a file") from error
    except OSError as error:
        raise _reason(path, error) from error
    return b"".join(chunks)


def _names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _entry(directory: int, parent: str, name: str) -> FileInfo | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        led = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None
    except OSError:
        return None  # it went away in between
    return _describe(f"{parent.rstrip('/')}/{name}", status, led)


def _describe(path: str, status: os.stat_result, link_target: str | None) -> FileInfo:
    return FileInfo(
        path=_text(path),
        kind=_kind(status.st_mode),
        size=status.st_size,
        mode=status.st_mode,
        modified=status.st_mtime,
        owner=_user(status.st_uid),
        group=_group(status.st_gid),
        link_target=None if link_target is None else _text(link_target),
        links=status.st_nlink,
    )


def _text(name: str) -> str:
    """A name that is not UTF-8 comes as lone surrogates, which no JSON may hold: such a byte is written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _inside(place: str, roots: Sequence[str]) -> bool:
    return any(place == root or place.startswith(root.rstrip("/") + "/") for root in roots)


def _outside(path: str) -> PathOutside:
    return PathOutside(f"{path} leads out of the target's allowed paths", hint="constraints.paths names them.")


def _own(path: str) -> PathOutside:
    return PathOutside(f"{path} belongs to the gateway itself or to /proc, which file tools never read")


def _missing(path: str, name: str, folder: int | None) -> NotFound:
    near = ""
    if folder is not None:
        with suppress(OSError, TargetError), _reopened(folder, os.O_DIRECTORY, path) as directory:
            near = did_you_mean(_text(name), map(_text, islice(_names(directory), 2000)))
    return NotFound(f"there is no {path}", hint=near or None)


def _reason(path: str, error: OSError) -> TargetError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PrivilegeRequired(
            f"the gateway's user may not read {path}",
            hint="Add it to the group that may (adm for /var/log), or set an ACL.",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return NotFound(f"there is no {path}: {(error.strerror or 'not found').lower()}")
    return Unsupported(f"{path} can't be read: {(error.strerror or str(error)).lower()}")


@lru_cache(maxsize=1024)
def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@lru_cache(maxsize=1024)
def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@lru_cache(maxsize=1)
def _proc_device() -> int:
    device = Path("/proc").stat().st_dev
    return -1 if device == Path("/").stat().st_dev else device


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
