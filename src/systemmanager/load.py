"""What runs now and what ran within the last minute: the numbers that the policy's load rules judge."""

import asyncio
import resource
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from systemmanager.errors import TooManyCalls
from systemmanager.operation import Risk
from systemmanager.target import Target

MINUTE = 60.0
MOST_CALLERS = 10_000
MOST_CALLS = 64
"""Calls of one principal at a time; a call on a thousand targets is one."""

PATIENCE = 1.0
"""Seconds for which a call keeps its slot while others wait for one."""

MOST_ASIDE = 4096


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
        key = (subject, risk)
        times = self._times.pop(key, None) or deque(maxlen=1000)
        times.append(self._clock())
        self._times[key] = times  # at the end: whoever called longest ago is forgotten first
        if len(self._times) > MOST_CALLERS:
            del self._times[next(iter(self._times))]


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


class InFlight:
    """How many calls each principal has under way; those that wait for a slot or for a person count, too."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._of)

    @contextmanager
    def one_more(self, subject: str) -> Iterator[None]:
        """Room for one call, for as long as the block lasts. Raises `TooManyCalls`."""
        if self._of[subject] >= self._most:
            raise TooManyCalls(f"{self._most} calls of {subject!r} are under way, and no more are taken at a time")
        self._of[subject] += 1
        try:
            yield
        finally:
            self._of[subject] -= 1
            if not self._of[subject]:
                del self._of[subject]


@dataclass(slots=True, eq=False)
class _Held:
    """One slot that somebody holds, since when, and whether the call has gone aside."""

    subject: str
    since: float
    aside: bool = False


class Shares:
    """Slots that principals share: a free one goes to the next principal in turn, first come first served within one.

    So a principal with a thousand calls in line delays another one's by a single slot. Nor can targets that hang keep
    the slots: who holds one for `PATIENCE` seconds while others wait goes on beside them, as one of at most `aside`,
    and the slot is free. It goes to no principal that has half of the room aside already, so that there is some
    left whenever another one waits.
    """

    def __init__(self, slots: int, aside: int = 0) -> None:
        self.free, self.aside = slots, aside
        self._share = aside // 2
        self._held: dict[_Held, None] = {}
        self._gone_aside: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._looking: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def hold(self, subject: str) -> AsyncIterator[None]:
        """One slot, for as long as the block lasts."""
        if self.free:
            self.free -= 1
        else:
            await self._turn(subject)
        held = _Held(subject, asyncio.get_running_loop().time())
        self._held[held] = None
        try:
            yield
        finally:
            if held.aside:
                self._come_back(subject)
            else:
                del self._held[held]
                self._pass_on()

    async def _turn(self, subject: str) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(subject, deque()).append(mine)
        if self._looking is None and self._share:
            self._look_later()
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

    def _pass_on(self, next_one: str | None = None) -> None:
        """Give a slot that has become free to the principal whose turn it is, or to the one that is named."""
        while self._waiting:
            subject = next_one if next_one in self._waiting else next(iter(self._waiting))
            line = self._waiting.pop(subject)
            waits = line.popleft()
            if line:
                self._waiting[subject] = line  # at the end: the others first
            if not waits.done():
                waits.set_result(None)
                return
        self.free += 1

    def _look_later(self) -> None:
        """Look again when the next of those that hold a slot has held it for long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = next((held.since + PATIENCE for held in self._held if held.since + PATIENCE > now), now + PATIENCE)
        self._looking = loop.call_at(due, self._look)

    def _look(self) -> None:
        self._looking = None
        now = asyncio.get_running_loop().time()
        for held in tuple(self._held):  # the oldest first
            if not self._waiting or held.since + PATIENCE > now:
                break
            next_one = next((waits for waits in self._waiting if self._gone_aside[waits] < self._share), None)
            if next_one is None or not self.aside:
                break
            held.aside = True
            del self._held[held]
            self.aside -= 1
            self._gone_aside[held.subject] += 1
            self._pass_on(next_one)
        if self._waiting:
            self._look_later()

    def _come_back(self, subject: str) -> None:
        self.aside += 1
        self._gone_aside[subject] -= 1
        if not self._gone_aside[subject]:
            del self._gone_aside[subject]


def room_aside() -> int:
    """How many calls may be aside at a time: each may need several of the process's file descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_ASIDE if most == resource.RLIM_INFINITY else min(MOST_ASIDE, most // 4)
