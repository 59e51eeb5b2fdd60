from collections.abc import Callable
from dataclasses import dataclass

from systemmanager.request import Principal
from systemmanager.still import Still


@dataclass(frozen=True, slots=True)
class Caller:
    """Names who makes the call being served. `still` asks their credential once more, after the call has waited; None
    where there is none that could end."""

    now: Callable[[], Principal]
    still: Still | None

    def __call__(self) -> Principal:
        return self.now()
