"""The audit log as the gateway uses it: append, make durable, look after it."""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from systemmanager.audit import runs, witness
from systemmanager.audit.chain import Chain, Limits
from systemmanager.audit.record import Record
from systemmanager.audit.segments import BLOCK
from systemmanager.audit.signing import Keys, Signer

T = TypeVar("T")

LOCK_WITHIN = 0.5
"""Seconds that another process may keep the log to itself."""

SYNC_WITHIN = 5.0
"""Seconds that the disk may take to make records durable."""


CLOSE_WITHIN = 2.0
"""Seconds that the witness may take when the gateway stops."""


class NotDurable(OSError):
    """The records are in the file, but the disk may not have them."""


class AuditLog:
    """Appends Records to one chain that only its owner may read.

    A write is one `write(2)` under the file's lock. `durable` writes are on the disk when `append` returns; those that
    come together share one `fdatasync`. All errors are `OSError`: the gateway decides what they mean for a call.
    With a `signer` the chain gets checkpoints, and the latest of them goes to the `witness` file.
    """

    def __init__(
        self,
        path: Path,
        *,
        signer: Signer | None = None,
        witness: Path | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.error: str | None = None
        self.troubles: dict[str, str] = {}
        """What is wrong with the log beside `error`, by name."""
        limits = limits or Limits()
        self._chain = Chain(path, signer, limits, clock)
        self._limits, self._clock, self._witness = limits, clock, witness
        self._keys = Keys(signer.public) if signer else Keys()
        self._witnessed: bytes | None = None
        self._sync_file = sync or (lambda descriptor: os.fdatasync(descriptor))
        self._disk, self._second = _Worker("the disk"), _Worker("it")
        self._trouble_with_witness: str | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._written = self._durable = 0
        self._sure: tuple[tuple[int, int], int] = ((0, 0), 0)
        self._doubtful: OSError | None = None
        self._run: runs.Run | None = None
        self._open: dict[tuple[str, str | None], int] = {}

    # --- Writing ------------------------------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, durable: bool) -> None:
        """Write the records, in order. Raises `OSError`; after that nothing of them may be relied upon."""
        try:
            deadline = 0.0
            while not self._write(records, deadline):
                deadline = deadline or time.monotonic() + LOCK_WITHIN
                await asyncio.sleep(0.001)
        except OSError as error:
            raise self._said(error) from error
        if durable:
            try:
                await self._synced()
            except OSError as error:
                raise NotDurable(*self._said(error).args) from error
        self.error = None

    def note(self, record: Record) -> None:
        """Write one record, not durably, without waiting for anything. Raises `OSError`."""
        try:
            if not self._write([record], 0.0):
                raise OSError(errno.EAGAIN, "another process writes just now")
        except OSError as error:
            raise self._said(error) from error

    def append_now(self, *records: Record) -> None:
        """Write records without an event loop, durably: for the command line. Raises `OSError`."""
        try:
            deadline = time.monotonic() + LOCK_WITHIN
            while not self._write(records, deadline):
                time.sleep(0.001)
            self._sync_now()
        except OSError as error:
            raise self._said(error) from error

    def _said(self, error: OSError) -> OSError:
        self.error = f"{error.strerror or error}"
        return error

    def _write(self, records: Sequence[Record], deadline: float) -> bool:
        """Whether they could be written; another process's turn may last until `deadline` (0: not known yet)."""
        n = self._chain.place.n
        try:
            if self._run is not None and not self._run.begun:
                self._run.begin(n)
                self._chain.run = self._run.id
            self._chain.write(records)
        except BlockingIOError as error:
            if deadline and time.monotonic() >= deadline:
                raise OSError(errno.EAGAIN, "another process keeps it locked") from error
            return False
        self._written += 1
        if self._run is not None:
            for record in records:
                if record.phase == "intent" and not record.dry_run:
                    self._open[record.call_id, record.target] = n
                elif record.phase == "outcome":
                    self._open.pop((record.call_id, record.target), None)
        return True

    # --- Durable ------------------------------------------------------------------------------------------------------

    async def _synced(self) -> None:
        """Wait until all that is written so far is on the disk."""
        mine = self._written
        while self._durable < mine:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.ensure_future(self._sync_once())
                # When all who wait are cancelled, nobody else takes its exception.
                self._syncing.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(self._syncing)

    async def _sync_once(self) -> None:
        sync = self._sync()
        await self._disk.do(sync.work)
        self._sync_done(sync)

    def _sync_now(self) -> None:
        sync = self._sync()
        sync.work()
        self._sync_done(sync)

    def _sync(self) -> "_Sync":
        chain = self._chain
        if chain.place.file != self._sure[0]:
            self._sure = (chain.place.file, 0)
        growing = None if chain.descriptor is None else os.dup(chain.descriptor)
        folder = self.path.parent if chain.folder_changed else None
        again = self._sure[1] if self._doubtful else None
        return _Sync(self._written, [*chain.retired], growing, folder, chain.place.end, again, self._sync_file)

    def _sync_done(self, sync: "_Sync") -> None:
        chain = self._chain
        self._doubtful = sync.failed
        if sync.failed is not None:
            raise sync.failed
        self._durable = max(self._durable, sync.covers)
        self._sure = (self._sure[0], sync.end)
        for descriptor in sync.retired:
            if descriptor in chain.retired:
                chain.retired.remove(descriptor)
                os.close(descriptor)
        if sync.folder is not None:
            chain.folder_changed = False

    # --- Looking after it ---------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """From now on this process's intents are known to be its own: the next start closes what a crash leaves."""
        self._run = self._run or runs.Run(self.path)

    def close_ended(self, handed_over: Collection[str] = ()) -> int:
        """Close the open intents of processes that are gone as `unknown`, those of calls that go on elsewhere as
        `handed_over`; so many there were. Raises `OSError`."""
        closed = 0
        for run in runs.ended(self.path):
            try:
                records = run.closings(self._clock(), handed_over)
                if records:
                    self.append_now(*records)
            except OSError:
                run.leave()
                raise
            run.forget()
            closed += len(records)
        return closed

    async def tend(self) -> None:
        """Write the checkpoint that is due, and tell the witness. Raises `OSError`."""
        place, most = self._chain.place, self._limits.checkpoint_seconds
        try:
            if place.unsigned and not 0 <= self._clock() - place.since < most:
                self._checkpoint()
            if self._chain.latest is not self._witnessed:
                await self._settled()
        except BlockingIOError:
            return  # another process writes; there is another second
        except OSError as error:
            raise self._said(error) from error
        trouble = self._chain.trouble
        self.troubles = {"audit segments": trouble} if trouble else {}
        if self._trouble_with_witness:
            self.troubles["audit witness"] = self._trouble_with_witness

    def _checkpoint(self) -> None:
        self._written += self._chain.checkpoint()

    async def _settled(self) -> None:
        """Make the latest checkpoint durable here and at the witness."""
        latest, settled = self._chain.latest, min(self._open.values(), default=self._chain.place.n)
        await self._synced()
        if self._run is not None:
            self._run.settled(settled)
        if self._witness is not None and latest is not None:
            path, line = self._witness, latest
            try:
                spoiled = await self._second.do(lambda: witness.add(path, line, self._keys))
            except OSError as error:
                self._trouble_with_witness = f"{path} can't be written: {error.strerror or error}"
                return
            self._trouble_with_witness = spoiled
        self._witnessed = latest

    def close(self) -> None:
        """Sign and make durable what is written, as far as that can be done."""
        with suppress(OSError):
            self._checkpoint()
            if self._durable < self._written:
                self._sync_now()
        if self._witness is not None and (line := self._chain.latest) is not None and line is not self._witnessed:
            path = self._witness
            with suppress(OSError):
                self._second.do_now(lambda: witness.add(path, line, self._keys))
        if self._run is not None:
            self._run.end(clean=not self._open)
        self._chain.close()
        self._disk.close()
        self._second.close()
        self._disk, self._second = _Worker("the disk"), _Worker("it")


@dataclass(slots=True)
class _Sync:
    """What makes all durable that is written up to `covers`; `work` may run in a thread.

    `growing` is a descriptor of its own: the log's may be closed meanwhile. After a sync that failed, the kernel takes
    what it could not write for written: everything from `again` on is written once more before it is relied upon.
    """

    covers: int
    retired: list[int]
    growing: int | None
    folder: Path | None
    end: int
    again: int | None
    sync: Callable[[int], None]
    failed: OSError | None = None

    def work(self) -> None:
        try:
            if self.again is not None and self.growing is not None:
                _write_again(self.growing, self.again, self.end)
            for descriptor in (*self.retired, *(() if self.growing is None else (self.growing,))):
                self.sync(descriptor)
            if self.folder is not None:
                runs.sync_folder(self.folder)
        except OSError as error:
            self.failed = error
        finally:
            if self.growing is not None:
                os.close(self.growing)


def _write_again(descriptor: int, begin: int, end: int) -> None:
    """Write the same bytes to the same place. Raises `OSError`."""
    # On a descriptor that appends, pwrite would append, too.
    plain = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        while begin < end and (part := os.pread(descriptor, min(BLOCK, end - begin), begin)):
            begin += os.pwrite(plain, part, begin)
    finally:
        os.close(plain)


class _Worker:
    """One thread that nothing else in the process can keep busy; it begins with its first work."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._threads = ThreadPoolExecutor(1, "audit")
        self._working: Future[Any] | None = None

    async def do(self, work: Callable[[], T]) -> T:
        """Do it within `SYNC_WITHIN`. Raises `OSError`."""
        if self._working is not None and not self._working.done():
            raise OSError(errno.EBUSY, f"{self._what} does not answer")
        self._working = future = self._threads.submit(work)
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((answer,), timeout=SYNC_WITHIN)
        if not answer.done():
            raise OSError(errno.ETIMEDOUT, f"{self._what} took longer than {SYNC_WITHIN:g} s")
        return answer.result()

    def do_now(self, work: Callable[[], object]) -> None:
        """Do it within `CLOSE_WITHIN`, without an event loop. Raises `OSError`, also `TimeoutError`."""
        self._threads.submit(work).result(CLOSE_WITHIN)

    def close(self) -> None:
        self._threads.shutdown(wait=False)
