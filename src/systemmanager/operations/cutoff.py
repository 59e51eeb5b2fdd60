"""Changes that may cut the gateway off from the target: it takes them back by itself, unless we are heard again.

Before the change a timer of systemd's is set on the target; it is taken away only when a new connection gets there.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from systemmanager.errors import CommandFailed, CommandMissing, ConnectionLost, CutOff, PrivilegeRequired, Unreachable
from systemmanager.ports import Shell

T = TypeVar("T")

REVERT_AFTER, CHANGE_WITHIN, REACH_WITHIN = 90, 30, 60
"""Seconds from the setting of the timer: until the target takes the change back, for the change itself, and for a new
connection to get there."""

_WAYS_IN = frozenset((
    "ssh", "sshd", "dropbear", "networking", "network", "NetworkManager", "systemd-networkd", "dhcpcd",
    "wpa_supplicant", "tailscaled", "wg-quick", "openvpn",
))  # fmt: skip
_FIREWALLS = frozenset(("nftables", "iptables", "ip6tables", "netfilter-persistent", "ufw", "firewalld", "shorewall"))


@dataclass(frozen=True, slots=True)
class Revert:
    """One timer on the target, and what it would do."""

    name: str
    command: str


def way_back(action: str, unit: str) -> str | None:
    """The systemctl command that takes a change back that may cut us off; None where that is not to be feared.

    Whatever a firewall does, it lets us in when it is stopped. What is only changed for the next boot cuts nothing now.
    """
    name = unit.rpartition(".")[0].partition("@")[0] if "." in unit else unit
    if name in _FIREWALLS and action in ("start", "restart"):
        return "stop"
    if name in _WAYS_IN | _FIREWALLS and action in ("stop", "restart"):
        return "start" if action == "stop" else "restart"
    return None


async def guarded(
    shell: Shell, action: str, unit: str, change: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T]]
) -> T:
    """Do a change; where it may cut us off, with a way back. `look` is the answer where the change's own was lost.

    Raises `CutOff`, and `CommandFailed` where no way back can be made; nothing is changed then.
    """
    back = way_back(action, unit)
    if back is None or (reached := await shell.anew()) is None:
        return await change()
    if not reached:
        raise CommandFailed(f"no new connection gets to the target: {action} {unit} might be the last that it hears")
    revert = await _armed(shell, back, unit)
    return await _watched(shell, f"{action} {unit}", revert, change, look)


async def _armed(shell: Shell, back: str, unit: str) -> Revert:
    revert = Revert(f"systemmanager-revert-{secrets.token_hex(8)}", f"systemctl {back} {unit}")
    timer = (f"--on-active={REVERT_AFTER}", "--timer-property=AccuracySec=1s", "--collect", f"--unit={revert.name}")
    hint = "Allow systemd-run in the target's sudoers (sudo_policy), or do it from the target's console."
    why = f"{unit} may be the way by which the gateway gets there, and no way back can be made"
    try:
        await shell.run("systemd-run", "--quiet", *timer, "systemctl", back, "--", unit, privileged=True)
    except (CommandFailed, CommandMissing, PrivilegeRequired) as error:
        raise CommandFailed(f"{why}: {error.message}", hint=hint, details=error.details) from error
    return revert


async def _watched(
    shell: Shell, what: str, revert: Revert, change: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T]]
) -> T:
    """Do it, and take the way back away when a new connection gets to the target, within `REACH_WITHIN` of now."""
    error: CommandFailed | PrivilegeRequired | None = None
    answer: T | None = None
    try:
        async with asyncio.timeout(REACH_WITHIN):
            try:
                async with asyncio.timeout(CHANGE_WITHIN):
                    answer = await change()
            except (ConnectionLost, Unreachable, TimeoutError):
                pass  # it may have been done all the same
            except (CommandFailed, PrivilegeRequired) as failed:
                error = failed
            while not await _disarmed(shell, revert):
                await asyncio.sleep(1)
    except (TimeoutError, CommandFailed, PrivilegeRequired) as lost:
        raise CutOff(
            f"after systemctl {what} no new connection was seen to get to the target: it takes that back itself, "
            f"{REVERT_AFTER} s after it began ({revert.command}, by {revert.name}.timer)",
            details=error.details if error else None,
        ) from lost
    if error:
        raise error
    return await look() if answer is None else answer


async def _disarmed(shell: Shell, revert: Revert) -> bool:
    """Whether a new connection got there and took the way back away."""
    try:
        if not await shell.anew():
            return False
        await shell.run("systemctl", "stop", "--", f"{revert.name}.timer", privileged=True)
    except (ConnectionLost, Unreachable):  # of the old connection, perhaps: the next look makes another one
        return False
    return True
