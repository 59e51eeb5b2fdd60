"""Pieces of the benchmarks: interleaved timing, a process's CPU and memory, one table of ratios."""

import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One claim: what was measured, against what, and the ratio that was promised. `least` turns the promise round."""

    what: str
    ours: float
    theirs: float
    unit: str
    promise: float
    least: bool = False

    @property
    def ratio(self) -> float:
        pair = (self.theirs, self.ours) if self.least else (self.ours, self.theirs)
        return pair[0] / pair[1] if pair[1] else float("inf")

    @property
    def kept(self) -> bool:
        return self.ratio >= self.promise if self.least else self.ratio <= self.promise


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table; a promise that was not kept is red."""
    table = Table("what", "ours", "other", "ratio", "promise", title=title, title_justify="left")
    for row in rows:
        style = "green" if row.kept else "red"
        sign = ">=" if row.least else "<="
        table.add_row(
            row.what,
            f"{row.ours:.4g} {row.unit}",
            f"{row.theirs:.4g} {row.unit}",
            f"[{style}]{row.ratio:.2f}[/]",
            f"{sign} {row.promise:g}",
        )
    Console(width=130).print(table)


async def interleaved(works: Mapping[str, Callable[[], Awaitable[object]]], rounds: int) -> dict[str, float]:
    """Median seconds of each work, run in turns so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            await work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def python(*words: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A Python process in the background; ended on leaving."""
    process = subprocess.Popen(
        [sys.executable, *words], env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
