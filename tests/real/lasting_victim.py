"""Rounds in which whoever runs a detached command is killed at random points, until one is left to finish.

Says, as JSON, of each round: how often the command ran, whether its output was whole, and how many were killed.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from systemmanager.executors.local import LocalShell
from systemmanager.request import Permit
from tests.lasting import Follower
from tests.support import target

LINES = 40
PROGRAM = f"echo ran >>$0/canary; n=0; while [ $n -lt {LINES} ]; do echo $n; n=$((n+1)); sleep 0.01; done"


def attempt(folder: Path, id: str) -> None:
    follower = Follower(id)
    shell = follower.follow(LocalShell(Permit("call", target(), (), None, 10)))  # type: ignore[arg-type]
    output = asyncio.run(shell.detached("apply", "sh", "-c", PROGRAM, str(folder)))
    (folder / "output").write_text(output.stdout)
    (folder / "heard").write_text(follower.text)


def child(folder: Path, id: str) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            attempt(folder, id)
        finally:
            os._exit(0)
    return pid


def kill(pid: int, scripts: bool) -> None:
    """The process, and in half of the rounds what it runs at that moment: as a lost connection would end that."""
    groups = [one.pid for one in psutil.Process(pid).children()] if scripts else []
    os.kill(pid, signal.SIGKILL)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    os.waitpid(pid, 0)


def one_round(folder: Path, number: int) -> dict[str, object]:
    folder.mkdir()
    follower = Follower()
    chance = random.Random(number)
    killed = chance.randint(1, 4)
    for _ in range(killed):
        pid = child(folder, follower.id)
        time.sleep(chance.choice([0.02, 0.1, 0.4]) * chance.random())
        kill(pid, chance.random() < 0.5)
    os.waitpid(child(folder, follower.id), 0)
    wanted = "".join(f"{line}\n" for line in range(LINES))
    told = (folder / "heard").exists() and (folder / "heard").read_text() == wanted
    whole = (folder / "output").exists() and (folder / "output").read_text() == wanted
    return {"ran": (folder / "canary").read_text(), "whole": whole and told, "killed": killed, "id": follower.id}


if __name__ == "__main__":
    print(json.dumps([one_round(Path(sys.argv[1], str(number)), number) for number in range(int(sys.argv[2]))]))
