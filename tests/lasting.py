"""Detached commands in tests: what ties one to a job, and what it leaves behind."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from systemmanager.following import Following


@dataclass
class Follower:
    """A job that only lives in memory. Set `leaving` and it leaves its command alone when it is cancelled."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    heard: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    leaving: bool = False

    def follow(self, shell: Any) -> Any:
        """The shell, as the runner hands it to the operation of this job."""
        shell.following = Following(self.id, self.heard.append, self.kept, self.kept.__setitem__, lambda: self.leaving)
        return shell

    @property
    def text(self) -> str:
        return "".join(self.heard)

    @property
    def spools(self) -> list[Path]:
        """What it has left on this machine."""
        return sorted(base().glob(f"{self.id}.*"))


def base() -> Path:
    """Where the spools of this account are."""
    if os.geteuid() == 0:
        return Path("/var/lib/systemmanager/jobs")
    return Path.home() / ".local/state/systemmanager/jobs"


@contextmanager
def following() -> Iterator[Follower]:
    """One job; what it left on this machine goes with it."""
    follower = Follower()
    try:
        yield follower
    finally:
        for spool in follower.spools:
            shutil.rmtree(spool)
