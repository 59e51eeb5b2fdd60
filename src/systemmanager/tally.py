"""Happenings that a flood repeats: the first few of each minute are told one by one, the rest as one number."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

WINDOW = 60.0
MOST_KEYS = 512

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Untold(Generic[Key]):
    """So often it happened without being told; `key` is None for those that came when there were too many keys."""

    key: Key | None
    times: int


class Tally(Generic[Key]):
    """Within `WINDOW` seconds `each` happenings of one key are told and `overall` of all keys; the others are counted.

    Its memory is bounded: whoever makes up new keys gets one number for all of them.
    """

    def __init__(self, clock: Callable[[], float], *, each: int, overall: int) -> None:
        self._clock, self._each, self._overall = clock, each, overall
        self._begin()

    def _begin(self) -> None:
        self._began = self._clock()
        self._told: dict[Key, int] = {}
        self._all_told = 0
        self._untold: dict[Key | None, int] = {}

    def tell(self, key: Key) -> bool:
        """Count one; whether it is to be told by itself."""
        told = self._told.get(key, 0)
        if told < self._each and self._all_told < self._overall:
            self._told[key] = told + 1
            self._all_told += 1
            return True
        self.keep(key)
        return False

    def keep(self, key: Key) -> None:
        """Count one that was not told."""
        counted = key if key in self._untold or len(self._untold) < MOST_KEYS else None
        self._untold[counted] = self._untold.get(counted, 0) + 1

    def untold(self, *, now: bool = False) -> list[Untold[Key]]:
        """What was not told, once the window is over or `now`: then a new one begins. Before that: nothing."""
        if not now and abs(self._clock() - self._began) < WINDOW:
            return []
        found = [Untold(key, times) for key, times in self._untold.items()]
        self._begin()
        return found
