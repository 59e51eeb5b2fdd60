"""What runs now and what ran within the last minute: the numbers that the policy's load rules judge."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from systemmanager.operation import Risk
from systemmanager.target import Target

MINUTE = 60.0
MOST_CALLERS = 10_000


class Recent:
    """Calls per principal and risk within the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[tuple[str, Risk], deque[float]] = {}

    def counts(self, subject: str) -> dict[Risk, int]:
        horizon, counts = self._clock() - MINUTE, {}
        for risk in Risk:
            if times := self._times.get((subject, risk)):
                while times and times[0] <= horizon:
                    times.popleft()
                counts[risk] = len(times)
        return counts

    def take_back(self, subject: str, risk: Risk) -> None:
        """Forget the newest call: it is made again."""
        if times := self._times.get((subject, risk)):
            times.pop()

    def add(self, subject: str, risk: Risk) -> None:
        key, now = (subject, risk), self._clock()
        if key not in self._times and len(self._times) >= MOST_CALLERS:
            self._times = {kept: times for kept, times in self._times.items() if times and times[-1] > now - MINUTE}
            while len(self._times) >= MOST_CALLERS:
                self._times.pop(next(iter(self._times)))
        self._times.setdefault(key, deque(maxlen=1000)).append(now)


class Readers:
    """Who has read untrusted text, and when. It forgets with the process.

    When there are too many, the one who read longest ago is forgotten; from then on nobody unknown counts as clean
    since a later time than that.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read: dict[str, float] = {}
        self._forgotten: float | None = None

    def add(self, subject: str) -> None:
        self._read.pop(subject, None)
        self._read[subject] = self._clock()
        if len(self._read) > MOST_CALLERS:
            self._forgotten = self._read.pop(next(iter(self._read)))

    def ago(self, subject: str) -> float | None:
        """Seconds since the principal last read; None when it has not."""
        read = self._read.get(subject, self._forgotten)
        return None if read is None else self._clock() - read


@dataclass(slots=True)
class Slots:
    """A target's places for calls; `running` counts those that wait, too."""

    limit: asyncio.Semaphore
    size: int
    running: int = 0


class AllSlots:
    """The slots of every target that was called."""

    def __init__(self) -> None:
        self._by_id: dict[str, Slots] = {}

    def running(self, id: str) -> int:
        slots = self._by_id.get(id)
        return slots.running if slots else 0

    def of(self, target: Target) -> Slots:
        size = target.constraints.concurrency
        slots = self._by_id.get(target.id)
        if slots is None or slots.size != size:
            slots = self._by_id[target.id] = Slots(asyncio.Semaphore(size), size)
        return slots

    def keep(self, ids: Iterable[str]) -> None:
        """Forget targets that are gone and idle."""
        known = set(ids)
        self._by_id = {id: slots for id, slots in self._by_id.items() if slots.running or id in known}


class Shares:
    """Slots that principals share: a free one goes to the next principal in turn, first come first served within one.

    So a principal with a thousand calls in line delays another one's by a single slot.
    """

    def __init__(self, slots: int) -> None:
        self.free = slots
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, subject: str) -> AsyncIterator[None]:
        """One slot, for as long as the block lasts."""
        if self.free:
            self.free -= 1
        else:
            await self._turn(subject)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, subject: str) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(subject, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # the slot came just as the wait was given up
            elif mine in (line := self._waiting.get(subject, deque())):
                line.remove(mine)
                if not line:
                    del self._waiting[subject]
            raise

    def _pass_on(self) -> None:
        """Give a slot that has become free to the principal whose turn it is."""
        while self._waiting:
            subject = next(iter(self._waiting))
            line = self._waiting.pop(subject)
            next_one = line.popleft()
            if line:
                self._waiting[subject] = line  # at the end: the others first
            if not next_one.done():
                next_one.set_result(None)
                return
        self.free += 1
