"""The gateway's own files: keys, tokens, configuration, audit log. No file tool reads them, wherever they lie."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from systemmanager.errors import Unsupported

_MOST = 100_000
"""Names that are compared with a file of several names."""


def not_a_file(path: str, mode: int) -> Unsupported:
    """Told of what is not even opened to be read: a pipe would wait for somebody to write."""
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFLNK: "link"}
    what = kinds.get(stat.S_IFMT(mode), "device")
    return Unsupported(f"{path} is a {what}", hint="Only regular files are read; list shows a directory.")


class OwnFiles:
    """Folders with all below them, and files with what stands beside them under like names: segments, backups.

    What was added once stays closed: a key is a secret also when a reload has dropped it.
    """

    def __init__(self, *paths: Path) -> None:
        self._places: set[str] = set()
        self._beside: dict[str, set[str]] = {}
        self.add(paths)

    def add(self, paths: Iterable[Path]) -> None:
        for path in paths:
            written = os.path.normpath(path.expanduser().absolute())
            for place in {written, os.path.realpath(written)} - self._places:
                self._places.add(place)
                folder, _, name = place.rpartition("/")
                if not Path(place).is_dir():
                    self._beside.setdefault(folder, set()).add(name)

    def holds(self, place: str) -> bool:
        """Whether a path without links is one of them."""
        at = place
        while at:
            if at in self._places:
                return True
            folder, _, name = at.rpartition("/")
            if any(_like(name, own) for own in self._beside.get(folder, ())):
                return True
            at = folder
        return False

    def is_one(self, status: os.stat_result) -> bool:
        """Whether a file is one of them under another name: a hard link."""
        return any(os.path.samestat(own, status) for own in islice(self._statuses(), _MOST))

    def _statuses(self) -> Iterator[os.stat_result]:
        for place in tuple(self._places):
            with suppress(OSError):
                own = os.lstat(place)
                yield own
                if stat.S_ISDIR(own.st_mode):
                    yield from _below(Path(place))


def _below(folder: Path) -> Iterator[os.stat_result]:
    for path in folder.rglob("*"):
        with suppress(OSError):
            yield path.lstat()


def _like(name: str, own: str) -> bool:
    stem, dot, suffix = own.rpartition(".")
    return name.startswith(own) or (bool(dot and stem) and name.startswith(f"{stem}-") and name.endswith(f".{suffix}"))
