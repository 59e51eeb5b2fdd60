"""The tie between a long command on a target and the job that it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Following:
    """What ties a long command to its job.

    `id` names its spool on the target; `heard` gets its output as it comes; `kept` holds what earlier runs of the same
    job remembered, `keep` makes a value durable; with `leaving` a cancelled command goes on, to be taken up later.
    """

    id: str
    heard: Callable[[str], None]
    kept: Mapping[str, Any]
    keep: Callable[[str, Any], None]
    leaving: Callable[[], bool]
