"""What an operator has stopped: a small file in the state folder, in force within a second and after every restart.

The command line writes it, whether a gateway runs or not; every process that has this state folder reads it.
"""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkstemp

import structlog

from systemmanager.errors import Denied, UnknownTarget
from systemmanager.policy.rules.freeze import freeze
from systemmanager.request import Answer, Freeze, Request
from systemmanager.selectors import selector
from systemmanager.target import Target

NAME = "frozen.json"

EVERY = 0.25
"""Seconds between two looks for running calls that have to end."""

MOST_BYTES = 64 * 1024

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Frozen:
    """The file's content. `targets` are selectors; `since` is in seconds since 1970, `by` who changed it last."""

    all: bool = False
    writes: bool = False
    egress: bool = False
    targets: tuple[str, ...] = ()
    by: str = ""
    since: float = 0.0

    @property
    def anything(self) -> bool:
        return self.all or self.writes or self.egress or bool(self.targets)

    @property
    def parts(self) -> str:
        """What is stopped, in words."""
        names = [name for name in ("all", "writes", "egress") if getattr(self, name)]
        return ", ".join([*names, *(f"target {one}" for one in self.targets)])

    def on(self, target: Target, via: tuple[Target, ...] = ()) -> Freeze:
        """What of it concerns a target that is reached by way of others."""
        here = next((one for one in self.targets if any(_names(one, part) for part in (target, *via))), None)
        return Freeze(self.all, self.writes, self.egress, here)


def _names(expression: str, target: Target) -> bool:
    """Whether a selector names a target; in doubt it does."""
    try:
        return expression == target.id or selector(expression).matches(target)
    except UnknownTarget:
        return True


NOTHING = Frozen()
UNREADABLE = Frozen(all=True, by="the gateway: its freeze file can't be read")
NEWER = Frozen(all=True, by="the gateway: its freeze file is of a newer version; freeze or thaw again")
VERSION = 1


def read(path: Path) -> Frozen:
    """What is frozen now. A file that can't be read freezes all: somebody wanted to stop something."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MOST_BYTES))
        if found.get("version", VERSION) != VERSION:
            return NEWER
        flags = {name: found[name] for name in ("all", "writes", "egress")}
        targets, by, since = tuple(found["targets"]), found["by"], float(found["since"])
        if not all(isinstance(one, bool) for one in flags.values()) or not all(isinstance(one, str) for one in targets):
            return UNREADABLE
        return Frozen(**flags, targets=targets, by=str(by), since=since)
    except FileNotFoundError:
        return NOTHING
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return UNREADABLE


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """One change at a time, by whichever process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(folder: Path, frozen: Frozen) -> None:
    """Put it in force, whole, durable, and readable by the gateway's user. Raises `OSError`."""
    path = folder / NAME
    if not frozen.anything:
        path.unlink(missing_ok=True)
        return
    descriptor, made = mkstemp(dir=folder, prefix=f".{NAME}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps({"version": VERSION, **asdict(frozen)}) + "\n")
            file.flush()
            if os.geteuid() == 0:
                owner = folder.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        Path(made).replace(path)
    except OSError:
        Path(made).unlink(missing_ok=True)
        raise


@dataclass(eq=False, slots=True)
class Run:
    """One target's part of a call while it runs; `stopped` says why it was ended."""

    request: Request
    deadline: asyncio.Timeout | None = None
    stopped: str | None = None


class Freezer:
    """A gateway's side: what is frozen now, and the end of what runs although it is. Without a folder nothing is."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = None if folder is None else folder / NAME
        self._seen: tuple[int, ...] | None = None
        self._frozen = NOTHING
        self._runs: set[Run] = set()

    def now(self) -> Frozen:
        """What is frozen now: one stat(2), and the file is read when it is another."""
        if self._path is None:
            return NOTHING
        try:
            status = self._path.stat()
            seen: tuple[int, ...] | None = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except FileNotFoundError:
            seen = None
        except OSError:
            return UNREADABLE
        if seen != self._seen:
            self._frozen, self._seen = read(self._path), seen
            log.warning("frozen" if self._frozen.anything else "thawed", parts=self._frozen.parts, by=self._frozen.by)
        return self._frozen

    @contextmanager
    def running(self, request: Request) -> Iterator[Run]:
        """Around each effect. Raises `Denied` when it has been frozen since the gate was asked."""
        run = Run(request)
        if why := self._against(run, self.now()):
            raise Denied(why, code="frozen")
        self._runs.add(run)
        try:
            yield run
        finally:
            self._runs.discard(run)

    def _against(self, run: Run, frozen: Frozen) -> str | None:
        if not frozen.anything:
            return None
        verdict = freeze(replace(run.request, freeze=frozen.on(run.request.target, run.request.via)))
        return verdict.reason if verdict.answer is Answer.DENY else None

    def stop(self) -> None:
        """End the calls that may not run any more; as at a deadline, what they began on targets is ended, too."""
        if not (frozen := self.now()).anything:
            return
        for run in tuple(self._runs):
            if run.stopped or run.deadline is None or run.deadline.expired():
                continue
            if why := self._against(run, frozen):
                run.stopped = f"{why}; what ran was ended"
                run.deadline.reschedule(asyncio.get_running_loop().time())

    async def watch(self) -> None:
        """Look for such calls until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self.stop()


def change(folder: Path, by: str, *, freeze: bool, targets: tuple[str, ...], **switches: bool) -> Frozen:
    """Freeze or thaw parts, or everything when none is named; answers what is frozen then. Raises `OSError`."""
    with changing(folder):
        before = read(folder / NAME)
        whole = switches["all"] or not (targets or any(switches.values()))
        if whole and not freeze:
            after = NOTHING
        else:
            named = [name for name, given in (*switches.items(), ("all", whole)) if given]
            kept = tuple(one for one in before.targets if one not in targets)
            after = replace(
                before,
                **dict.fromkeys(named, freeze),
                targets=(*kept, *targets) if freeze else kept,
                by=by,
                since=time.time(),
            )
        write(folder, after)
        return after
