"""Counting what a flood repeats: the first few are told, the rest is one number, memory stays bounded."""

from systemmanager.tally import MOST_KEYS, Tally, Untold


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_few_are_told_and_the_rest_is_one_number() -> None:
    clock = Clock()
    tally: Tally[str] = Tally(clock, each=2, overall=3)
    assert [tally.tell("a") for _ in range(4)] == [True, True, False, False]
    assert [tally.tell("b") for _ in range(2)] == [True, False], "three of all keys together"
    assert tally.untold() == [], "the window is not over"
    clock.now = 60
    assert tally.untold() == [Untold("a", 2), Untold("b", 1)]
    assert tally.untold(now=True) == [] and tally.tell("a"), "a new window"


def test_made_up_keys_cost_no_memory() -> None:
    tally: Tally[int] = Tally(Clock(), each=1, overall=1)
    for number in range(MOST_KEYS * 4):
        tally.tell(number)
    found = tally.untold(now=True)
    assert len(found) == MOST_KEYS + 1 and sum(one.times for one in found) == MOST_KEYS * 4 - 1
    assert found[-1].key is None


def test_a_clock_that_is_set_back_does_not_hold_the_numbers_back() -> None:
    clock = Clock()
    tally: Tally[str] = Tally(clock, each=0, overall=9)
    tally.tell("a")
    clock.now = -3600
    assert tally.untold() == [Untold("a", 1)]
