"""SIGHUP before the gateway is ready."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.serving import READY_WITHIN, SECRET, environment


def blocked(pid: int) -> bool:
    """Whether a process lets SIGHUP wait (proc(5): SigBlk)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
    return False


def test_a_hangup_during_the_start_is_a_reload_after_it(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "systemmanager", "serve"],
            env=environment(tmp_path, SYSTEMMANAGER_SHARED_SECRET=SECRET),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while not blocked(process.pid):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        process.send_signal(signal.SIGHUP)
        while not ("ready" in log.read_text() and "targets.yaml reloaded" in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
