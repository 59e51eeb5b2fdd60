"""Changes that may cut the gateway off from the target: it takes them back by itself, unless we are heard again.

Before the change a timer of systemd's is set on the target; it is taken away only when a new connection gets there.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from systemmanager.errors import (
    CommandFailed,
    CommandMissing,
    ConnectionLost,
    CutOff,
    PrivilegeRequired,
    TargetError,
    Unreachable,
)
from systemmanager.operations.uncut import to_the_end
from systemmanager.ports import Shell

T = TypeVar("T")

REVERT_AFTER, CHANGE_WITHIN, REACH_WITHIN = 90, 30, 60
"""Seconds from the setting of the timer: until the target takes the change back, for the change itself, and for a new
connection to get there."""

_SSH = frozenset(("ssh", "sshd"))
_NETWORKS = frozenset((
    "networking", "network", "ifup", "NetworkManager", "systemd-networkd", "dhcpcd", "dhclient", "connman", "iwd",
    "wpa_supplicant", "tailscaled", "wg-quick", "openvpn", "openvpn-client", "openvpn-server", "strongswan",
    "strongswan-starter", "ipsec", "zerotier-one", "netbird", "nebula", "cloudflared", "frr", "bird",
))  # fmt: skip
"""What brings addresses, routes and tunnels: starting one, too, may lead our packets elsewhere."""

_OTHERS = frozenset(("dropbear", "dbus", "dbus-broker", "sssd", "nslcd", "winbind"))
"""What a login needs beside."""

_FIREWALLS = frozenset((
    "nftables", "iptables", "ip6tables", "netfilter-persistent", "ufw", "firewalld", "shorewall", "shorewall6", "ferm",
    "firehol", "pve-firewall", "proxmox-firewall",
))  # fmt: skip
_WAYS_IN = _SSH | _NETWORKS | _OTHERS

_EVERYTHING = frozenset(("-.slice", "system.slice", "init.scope", "sysinit.target", "basic.target"))
"""All else goes down with them, and the timer, too."""


@dataclass(frozen=True, slots=True)
class Revert:
    """One timer on the target, and what it would do. `again`: that is the same once more, as nothing undoes it."""

    name: str
    command: str
    again: bool

    @property
    def told(self) -> str:
        what = (
            "it does that once more itself, as a restart can't be taken back," if self.again else "it takes that back"
        )
        return f"{what} {REVERT_AFTER} s after it began ({self.command}, by {self.name}.timer)"


def way_back(action: str, unit: str, active: str = "active") -> str | None:
    """The systemctl command that takes a change back that may cut us off; None where that is not to be feared.

    `active` is the unit's state before. Whatever a firewall does, it lets us in when it is stopped. What is only
    changed for the next boot, or is as it is to be already, cuts nothing now.
    """
    name, runs = _name(unit), active not in ("inactive", "failed")
    if action in ("start", "restart") and name in _FIREWALLS:
        return None if runs and action == "start" else "stop"
    if action == "start" or (action == "restart" and not runs):
        return "stop" if name in _NETWORKS and not runs else None
    if name in _WAYS_IN | _FIREWALLS and action in ("stop", "restart") and runs:
        return "start" if action == "stop" else "restart"
    return None


def _name(unit: str) -> str:
    return unit.rpartition(".")[0].partition("@")[0] if "." in unit else unit


async def guarded(
    shell: Shell,
    action: str,
    unit: str,
    active: str,
    change: Callable[[], Awaitable[T]],
    look: Callable[[], Awaitable[T]],
) -> T:
    """Do a change; where it may cut us off, with a way back. `look` is the answer where the change's own was lost.

    Raises `CutOff`, and `CommandFailed` where no way back can be made; nothing is changed then. Once begun it goes on
    to its end, even when the caller is cancelled: a way back that nobody takes away would undo what is well.
    """
    if unit in _EVERYTHING and action in ("stop", "restart"):
        raise CommandFailed(
            f"{action} {unit} would take everything down, and the way back with it",
            hint="Do it from the target's console.",
        )
    back = way_back(action, unit, active)
    if back is None or (reached := await shell.anew()) is None:
        return await change()
    if not reached:
        raise CommandFailed(f"no new connection gets to the target: {action} {unit} might be the last that it hears")
    await _would_come_back(shell, action, unit)
    return await to_the_end(_undone_unless_heard(shell, action, unit, back, change, look))


async def _would_come_back(shell: Shell, action: str, unit: str) -> None:
    """Raises `CommandFailed` when sshd can't read its settings: stopped, it would not start again, by no timer."""
    if _name(unit) not in _SSH or not unit.endswith(".service"):
        return
    with suppress(CommandMissing, PrivilegeRequired):
        output = await shell.run("sshd", "-t", privileged=True, check=False)
        if output.status == 255:  # sshd's own for settings that it refuses
            raise CommandFailed(
                f"{action} {unit} is not done: sshd does not accept its settings, and would not start again",
                hint="Mend sshd_config first; `sshd -t` tells whether it is well.",
                details={"stderr": output.stderr[-1000:]},
            )


async def _undone_unless_heard(
    shell: Shell,
    action: str,
    unit: str,
    back: str,
    change: Callable[[], Awaitable[T]],
    look: Callable[[], Awaitable[T]],
) -> T:
    revert = await _armed(shell, back, unit)
    return await _watched(shell, f"{action} {unit}", revert, change, look)


async def _armed(shell: Shell, back: str, unit: str) -> Revert:
    name = f"systemmanager-revert-{secrets.token_hex(8)}"
    revert = Revert(name, f"systemctl {back} {unit}", again=back == "restart")
    timer = (f"--on-active={REVERT_AFTER}", "--timer-property=AccuracySec=1s", "--collect", f"--unit={revert.name}")
    hint = "Allow systemd-run in the target's sudoers (sudo_policy), or do it from the target's console."
    why = f"{unit} may be the way by which the gateway gets there, and no way back can be made"
    try:
        await shell.run("systemd-run", "--quiet", *timer, "systemctl", back, "--", unit, privileged=True)
    except (CommandFailed, CommandMissing, PrivilegeRequired) as error:
        raise CommandFailed(f"{why}: {error.message}", hint=hint, details=error.details) from error
    except (ConnectionLost, Unreachable):
        with suppress(TargetError):  # it may be set all the same, and would undo what was never done
            await _disarmed(shell, revert)
        raise
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
    except TimeoutError as lost:
        why = f"after systemctl {what} no new connection was seen to get to the target: {revert.told}"
        raise CutOff(f"{why}; before that: {error.message}" if error else why, details=_of(error)) from lost
    except (CommandFailed, PrivilegeRequired) as stuck:
        why = f"after systemctl {what} a new connection got to the target, but the way back stays: {stuck.message}"
        raise CutOff(f"{why}; {revert.told}", details=_of(error)) from stuck
    if error:
        raise error
    return await look() if answer is None else answer


def _of(error: TargetError | None) -> dict[str, object] | None:
    return error.details if error else None


async def _disarmed(shell: Shell, revert: Revert) -> bool:
    """Whether a new connection got there and took the way back away."""
    try:
        if not await shell.anew():
            return False
        await shell.run("systemctl", "stop", "--", f"{revert.name}.timer", privileged=True)
    except (ConnectionLost, Unreachable):  # of the old connection, perhaps: the next look makes another one
        return False
    return True
