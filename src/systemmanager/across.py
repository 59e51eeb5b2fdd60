"""Answers of several targets that say more together than one by one."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from systemmanager.ports import Result


class Together(Result):
    """The base of such answers."""

    Across: ClassVar[type[Result]]

    @classmethod
    @abstractmethod
    def across(cls, found: Mapping[str, Any]) -> tuple[Mapping[str, Result], Result]:
        """From the answers of at least two targets by id: what of each is still to be told, and an `Across`."""
