"""How a machine is: load, memory, disks, processes."""

from typing import Literal

from pydantic import Field

from systemmanager.operation import Risk, operation
from systemmanager.params import Limit
from systemmanager.ports import Facts, Page, Process, SystemStatus


@operation(scope="system:read", capability="system:read", risk=Risk.LOW, timeout=15)
async def get_system_status(facts: Facts) -> SystemStatus:
    """CPU, load, memory, swap, disks and uptime of a machine. Start here when something is slow or full."""
    return await facts.status()


class TopProcesses(Page):
    processes: list[Process] = Field(description="Busiest first.")


@operation(scope="system:read", capability="system:read", risk=Risk.LOW, timeout=15)
async def get_top_processes(facts: Facts, limit: Limit = 10, sort_by: Literal["cpu", "memory"] = "cpu") -> TopProcesses:
    """The processes that use most CPU (of one core, over a short sample) or memory."""
    found = await facts.processes()
    ranked = sorted(found, key=lambda process: (-getattr(process, sort_by), -process.rss, process.pid))
    return TopProcesses(processes=ranked[:limit], total=len(found), truncated=len(found) > limit)
