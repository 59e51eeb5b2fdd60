"""Changes that may cut the gateway off: what is done on the target, step by step, whatever happens in between."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from systemmanager.errors import CommandFailed, CommandMissing, ConnectionLost, CutOff, PrivilegeRequired, Unreachable
from systemmanager.operations import cutoff
from systemmanager.operations.cutoff import guarded, way_back
from systemmanager.ports import Output
from tests.support import run


@dataclass
class Target:
    """A target whose sshd answers new connections as `reached` says, one after the other, and then for ever the last.

    `fails` are commands by their first two words, with what they raise, the first time only where `once` names them;
    `happened` is all that was done, in order.
    """

    reached: list[bool | None] = field(default_factory=lambda: [True])
    fails: dict[str, Exception] = field(default_factory=dict)
    once: tuple[str, ...] = ()
    settings: int = 0
    happened: list[str] = field(default_factory=list)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    async def anew(self) -> bool | None:
        self.happened.append("new connection")
        return self.reached.pop(0) if len(self.reached) > 1 else self.reached[0]

    async def run(self, *argv: str, privileged: bool = False, check: bool = True) -> Output:
        assert privileged
        words = " ".join(argv[:2])
        said = f"{argv[0]} {argv[-1]}" if argv[1] == "stop" else " ".join([argv[0], *argv[-4:]])
        self.commands.append(argv)
        self.happened.append("sshd -t" if words == "sshd -t" else said.partition("revert-")[0])
        if words in self.fails:
            raise self.fails.pop(words) if words in self.once else self.fails[words]
        return Output(argv, self.settings if words == "sshd -t" else 0, "", "line 7: Nonsense")

    async def change(self) -> str:
        self.happened.append("change")
        if "change" in self.fails:
            raise self.fails["change"]
        return "changed"

    async def look(self) -> str:
        return "looked"

    def guarded(
        self, action: str = "restart", unit: str = "ssh.service", active: str = "active"
    ) -> Coroutine[Any, Any, str]:
        shell: Any = self
        return guarded(shell, action, unit, active, self.change, self.look)


ARMED = "systemd-run systemctl restart -- ssh.service"
DISARMED = "systemctl systemmanager-"
WELL = ["new connection", "sshd -t", ARMED, "change", "new connection", DISARMED]


REAL = (cutoff.REACH_WITHIN, cutoff.CHANGE_WITHIN)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutoff, "REACH_WITHIN", 0.2)
    monkeypatch.setattr(cutoff, "CHANGE_WITHIN", 0.1)


def test_the_way_back_is_there_before_the_change_and_gone_after_a_new_connection() -> None:
    there = Target()
    assert run(there.guarded()) == "changed" and there.happened == WELL


def test_the_timer_is_short_exact_and_leaves_nothing() -> None:
    there = Target()
    run(there.guarded())
    armed = next(one for one in there.commands if one[0] == "systemd-run")
    (unit,) = (word.removeprefix("--unit=") for word in armed if word.startswith("--unit="))
    assert armed == (
        "systemd-run", "--quiet", f"--on-active={cutoff.REVERT_AFTER}", "--timer-property=AccuracySec=1s", "--collect",
        f"--unit={unit}", "systemctl", "restart", "--", "ssh.service",
    )  # fmt: skip
    assert there.commands[-1] == ("systemctl", "stop", "--", f"{unit}.timer")
    assert REAL[0] + 20 < cutoff.REVERT_AFTER, "an answer is there before the target acts"


@pytest.mark.parametrize(("action", "unit"), [("restart", "nginx.service"), ("start", "ssh.service")])
def test_what_is_not_to_be_feared_costs_no_connection(action: str, unit: str) -> None:
    there = Target()
    assert run(there.guarded(action, unit)) == "changed" and there.happened == ["change"]


def test_what_no_connection_leads_to_is_just_done() -> None:
    there = Target([None])
    assert run(there.guarded()) == "changed" and there.happened == ["new connection", "change"]


def test_where_nobody_gets_in_before_nothing_is_changed() -> None:
    there = Target([False])
    with pytest.raises(CommandFailed, match="might be the last"):
        run(there.guarded())
    assert there.happened == ["new connection"]


def test_where_nobody_gets_in_afterwards_the_way_back_stays() -> None:
    there, began = Target([True, False]), time.monotonic()
    with pytest.raises(CutOff, match=r"does that once more itself.*restart ssh.service"):
        run(there.guarded())
    assert DISARMED not in there.happened and time.monotonic() - began < 2
    assert there.happened.count("new connection") <= 3, "it does not hammer at the door"
    there = Target([True, False])
    with pytest.raises(CutOff, match=r"takes that back.*start ssh.service"):
        run(there.guarded("stop"))


def test_a_change_that_does_not_end_is_looked_at() -> None:
    there = Target()

    async def for_ever() -> str:
        await asyncio.Event().wait()
        return ""

    there.change = for_ever  # type: ignore[method-assign]
    assert run(there.guarded()) == "looked" and there.happened[-1] == DISARMED


@pytest.mark.parametrize("error", [ConnectionLost("lost"), Unreachable("away")], ids=["lost", "away"])
def test_an_old_connection_that_breaks_is_no_sign_that_nobody_gets_in(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutoff, "REACH_WITHIN", 5)
    there = Target(fails={"systemctl stop": error}, once=("systemctl stop",))
    assert run(there.guarded()) == "changed" and there.happened == [*WELL, "new connection", DISARMED]


ERRORS = [ConnectionLost("lost"), Unreachable("away"), TimeoutError()]


@pytest.mark.parametrize("error", ERRORS, ids=["lost", "away", "slow"])
def test_a_change_whose_answer_is_lost_is_looked_at(error: Exception) -> None:
    there = Target(fails={"change": error})
    assert run(there.guarded()) == "looked" and there.happened == WELL


@pytest.mark.parametrize("error", [CommandFailed("no such device"), PrivilegeRequired("no such device")])
def test_a_change_that_fails_and_lets_us_in_is_told_as_it_failed(error: Exception) -> None:
    there = Target(fails={"change": error})
    with pytest.raises(type(error), match="no such device") as caught:
        run(there.guarded())
    assert there.happened == WELL and not isinstance(caught.value, CutOff)


def test_a_change_that_fails_and_lets_nobody_in_says_both() -> None:
    there = Target([True, False], {"change": CommandFailed("no such device", details={"journal": "x"})})
    with pytest.raises(CutOff, match="no such device") as caught:
        run(there.guarded())
    assert caught.value.details == {"journal": "x"}


@pytest.mark.parametrize("error", [CommandFailed("not loaded"), PrivilegeRequired("not loaded")])
def test_a_way_back_that_stays_though_we_get_in_is_told_as_that(error: Exception) -> None:
    there = Target(fails={"systemctl stop": error})
    with pytest.raises(CutOff, match=r"got to the target, but the way back stays: not loaded"):
        run(there.guarded())


@pytest.mark.parametrize("error", [CommandFailed("no"), CommandMissing("no"), PrivilegeRequired("no")])
def test_without_a_way_back_nothing_is_changed(error: Exception) -> None:
    there = Target(fails={"systemd-run --quiet": error})
    with pytest.raises(CommandFailed, match="no way back"):
        run(there.guarded())
    assert "change" not in there.happened


def test_a_way_back_that_may_be_set_is_taken_away_when_its_answer_was_lost() -> None:
    there = Target(fails={"systemd-run --quiet": ConnectionLost("lost")})
    with pytest.raises(ConnectionLost):
        run(there.guarded())
    assert there.happened == ["new connection", "sshd -t", ARMED, "new connection", DISARMED]


@pytest.mark.parametrize("action", ["restart", "stop"])
def test_an_sshd_that_would_not_start_again_is_left_alone(action: str) -> None:
    there = Target(settings=255)
    with pytest.raises(CommandFailed, match="would not start again") as caught:
        run(there.guarded(action))
    assert there.happened == ["new connection", "sshd -t"] and "Nonsense" in str(caught.value.details)


@pytest.mark.parametrize("error", [CommandMissing("no sshd here"), PrivilegeRequired("no such right")])
def test_settings_that_can_not_be_tried_hold_nothing_up(error: Exception) -> None:
    there = Target(fails={"sshd -t": error})
    assert run(there.guarded()) == "changed" and there.happened == WELL
    socket = Target(settings=255)
    assert run(socket.guarded(unit="ssh.socket")) == "changed" and "sshd -t" not in socket.happened
    network = Target(settings=255)
    assert run(network.guarded(unit="systemd-networkd.service")) == "changed" and "sshd -t" not in network.happened


@pytest.mark.parametrize("unit", ["system.slice", "-.slice", "basic.target", "sysinit.target"])
@pytest.mark.parametrize("action", ["stop", "restart"])
def test_what_would_take_the_way_back_along_is_not_done(unit: str, action: str) -> None:
    there = Target()
    with pytest.raises(CommandFailed, match="take everything down"):
        run(there.guarded(action, unit))
    assert there.happened == []


@pytest.mark.parametrize("reached", [True, False])
def test_a_call_that_is_cancelled_still_takes_its_way_back_away(reached: bool) -> None:
    """A client that goes, or a target's own short timeout, must not leave a timer that undoes what is well."""
    there, begun = Target([True, reached]), asyncio.Event()
    change: Callable[[], Awaitable[str]] = there.change

    async def slow() -> str:
        begun.set()
        await asyncio.sleep(0.02)
        return await change()

    there.change = slow  # type: ignore[method-assign]

    async def work() -> None:
        task = asyncio.ensure_future(there.guarded())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError if reached else CutOff):
            await task

    run(work())
    assert (DISARMED in there.happened) == reached and "change" in there.happened


WAYS: list[tuple[str, str, str, str | None]] = [
    ("stop", "ssh.service", "active", "start"),
    ("stop", "sshd", "active", "start"),
    ("restart", "ssh.socket", "active", "restart"),
    ("restart", "systemd-networkd.service", "active", "restart"),
    ("restart", "systemd-networkd.service", "inactive", "stop"),
    ("start", "systemd-networkd.service", "inactive", "stop"),
    ("start", "systemd-networkd.service", "failed", "stop"),
    ("start", "systemd-networkd.service", "active", None),
    ("stop", "ifup@eth0.service", "active", "start"),
    ("start", "wg-quick@wg0.service", "inactive", "stop"),
    ("stop", "wg-quick@wg0.service", "active", "start"),
    ("restart", "openvpn-client@office.service", "active", "restart"),
    ("stop", "tailscaled.service", "active", "start"),
    ("stop", "tailscaled.service", "inactive", None),
    ("start", "nftables.service", "inactive", "stop"),
    ("start", "nftables.service", "active", None),
    ("restart", "ufw.service", "active", "stop"),
    ("restart", "ufw.service", "inactive", "stop"),
    ("stop", "firewalld.service", "active", "start"),
    ("stop", "firewalld.service", "failed", None),
    ("stop", "dbus.service", "active", "start"),
    ("start", "ssh.service", "inactive", None),
    ("restart", "ssh.service", "failed", None),
    ("disable", "ssh.service", "active", None),
    ("enable", "ufw.service", "active", None),
    ("restart", "nginx.service", "active", None),
    ("stop", "ssh-agent.service", "active", None),
]


@pytest.mark.parametrize(("action", "unit", "active", "back"), WAYS)
def test_each_change_has_its_way_back(action: str, unit: str, active: str, back: str | None) -> None:
    assert way_back(action, unit, active) == back
