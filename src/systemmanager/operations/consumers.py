"""Who uses the CPU and the memory of many machines: one ranking over all of them."""

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from systemmanager.across import Together
from systemmanager.operation import Risk, operation
from systemmanager.params import Limit
from systemmanager.ports import Facts, ForeignText, Process, Result


class Consumer(Result):
    target: str | None = None
    pid: int
    name: ForeignText
    user: str
    cpu: float = Field(description="Percent of one core.")
    rss: int = Field(description="Resident bytes.")
    command: ForeignText


class Ranking(Result):
    by_cpu: list[Consumer]
    by_memory: list[Consumer]


class Consumers(Together):
    """One machine, and its busiest processes when it is asked alone."""

    cpu: float = Field(description="Busy, percent of all cores.")
    cores: int
    load: float = Field(description="Over the last minute.")
    memory: float = Field(description="Used, percent.")
    by_cpu: list[Consumer] | None = None
    by_memory: list[Consumer] | None = None

    Across: ClassVar = Ranking

    @classmethod
    def across(cls, found: Mapping[str, "Consumers"]) -> tuple[dict[str, "Consumers"], Ranking]:
        most = max(len(one.by_cpu or ()) for one in found.values())
        cpu = [row.model_copy(update={"target": id}) for id, one in found.items() for row in one.by_cpu or ()]
        memory = [row.model_copy(update={"target": id}) for id, one in found.items() for row in one.by_memory or ()]
        ranking = Ranking(
            by_cpu=sorted(cpu, key=lambda row: -row.cpu)[:most],
            by_memory=sorted(memory, key=lambda row: -row.rss)[:most],
        )
        return {id: one.model_copy(update={"by_cpu": None, "by_memory": None}) for id, one in found.items()}, ranking


@operation(scope="system:read", capability="system:read", risk=Risk.LOW, selection="required")
async def top_consumers(facts: Facts, limit: Limit = 10) -> Consumers:
    """What uses the CPU and the memory across machines: each machine's load, and one ranking of processes over all."""
    status, processes = await asyncio.gather(facts.status(), facts.processes())
    return Consumers(
        cpu=status.cpu.percent,
        cores=status.cpu.cores,
        load=status.cpu.load[0],
        memory=status.memory.percent,
        by_cpu=[_row(one) for one in sorted(processes, key=lambda one: (-one.cpu, one.pid))[:limit]],
        by_memory=[_row(one) for one in sorted(processes, key=lambda one: (-one.rss, one.pid))[:limit]],
    )


def _row(one: Process) -> Consumer:
    return Consumer(pid=one.pid, name=one.name, user=one.user, cpu=one.cpu, rss=one.rss, command=one.command)
