"""Waves: a canary first, more only when it is well, and a stop that says what is left."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import CommandFailed
from systemmanager.gateway import Gateway
from systemmanager.plans.store import PlanStore
from systemmanager.ports import Output
from systemmanager.request import Permit
from systemmanager.waves import Strategy, sizes
from tests.fakes import codes
from tests.support import OPERATOR, fake_gateway, records, registry, run, target

SIZES: list[tuple[str, int, list[int]]] = [
    ("1,10%,50%,100%", 100, [1, 9, 40, 50]),
    ("1,10%,50%,100%", 20, [1, 1, 8, 10]),
    ("1,10%,50%,100%", 3, [1, 1, 1]),
    ("1,10%,50%,100%", 1, [1]),
    ("1,10%,50%,100%", 0, []),
    ("100%", 7, [7]),
    ("10%", 11, [2]),
    ("1%", 1, [1]),
    ("2,4,6", 5, [2, 2, 1]),
    ("5", 9, [5]),
    ("50%,1,100%", 4, [2, 2]),
    ("3,3,3", 4, [3]),
]


@pytest.mark.parametrize(("batch", "total", "wanted"), SIZES, ids=lambda value: str(value))
def test_the_sizes_of_waves(batch: str, total: int, wanted: list[int]) -> None:
    assert sizes(batch, total) == wanted


def test_no_wave_is_empty_and_none_goes_beyond_its_step() -> None:
    """Of 5,000 random strategies."""
    dice = random.Random(7)
    for _ in range(5000):
        steps = [f"{dice.randint(1, 120)}{dice.choice(['', '%'])}" for _ in range(dice.randint(1, 8))]
        total = dice.randint(0, 300)
        found = sizes(",".join(steps), total)
        reach = [min(total, -(-int(one[:-1]) * total // 100) if one[-1] == "%" else int(one)) for one in steps]
        assert all(size > 0 for size in found) and sum(found) == max(reach) <= total
        assert set(itertools.accumulate(found)) <= {*reach} and len(found) <= len(steps)


BAD = [
    "",
    "0",
    "0%",
    "1,",
    "-1",
    "1.5",
    "x",
    "1;2",
    ",".join(["1"] * 21),
    "100000",
    "101%",
    "500%",
    0,
    1.5,
    True,
    [],
    None,
]


@pytest.mark.parametrize("batch", BAD, ids=str)
def test_a_batch_that_says_nothing_clear_is_refused_with_what_would(batch: Any, tmp_path: Path) -> None:
    """500% is no 50%."""
    given = {**RESTART, "strategy": {"batch": batch}}
    error = run(Fleet(tmp_path).gateway.call(OPERATOR, "manage_service", given)).as_dict()["error"]
    assert error["code"] == "invalid_arguments"
    assert "strategy.batch" in error["message"] and "such as 1,10%,50%,100%" in error["message"]


@pytest.mark.parametrize("given", [{"pause": 601}, {"max_failures": -1}, {"x": 1}, "canary", ["1"]], ids=str)
def test_a_strategy_of_something_else_is_refused_by_its_name(given: Any, tmp_path: Path) -> None:
    reply = run(Fleet(tmp_path).gateway.call(OPERATOR, "manage_service", {**RESTART, "strategy": given})).as_dict()
    assert reply["error"]["code"] == "invalid_arguments"
    named = f"strategy.{next(iter(given))}" if isinstance(given, dict) and given != {"x": 1} else "strategy"
    assert named in reply["error"]["message"] or "'x'" in reply["error"]["message"]
    assert "Strategy" not in reply["error"]["message"]


@pytest.mark.parametrize(
    "batch", ["1, 10%, 50%, 100%", " 1 ,10 %,50%,100%", ["1", "10%", "50%", "100%"], [1, "10%", "50%", 100]]
)
def test_a_batch_may_be_written_with_spaces_or_as_a_list(batch: Any) -> None:
    assert sizes(Strategy.model_validate({"batch": batch}).batch, 100) == [1, 9, 40, 50]
    assert Strategy.model_validate({"batch": 7}).batch == "7"


# --- Through the gateway ---------------------------------------------------------------------------------------------

RESTART = {"action": "restart", "service_name": "nginx", "targets": "*"}


class Fleet:
    """Twenty machines with systemd; `bad` fail, `ill` run but can't be reached afterwards, `dead` come up as failed."""

    def __init__(self, folder: Path, count: int = 20, **fields: Any) -> None:
        self.folder, self.log = folder, list[tuple[str, str]]()
        self.bad, self.ill, self.dead, self.pid = set[str](), set[str](), set[str](), 7
        names = [f"w-{number:02}" for number in range(1, count + 1)]
        targets = [target(id, constraints={"sudo_policy": "limited"}) for id in names]
        self.gateway: Gateway = fake_gateway(folder, self._port, *targets, **fields)

    def _port(self, permit: Permit, port: str) -> Any:
        return Machine(self, permit.target.id)

    def call(self, tool: str = "manage_service", progress: Any = None, **more: Any) -> dict[str, Any]:
        given = more if tool == "apply_plan" else {**RESTART, "strategy": {}, **more}
        return run(self.gateway.call(OPERATOR, tool, given, progress=progress)).as_dict()

    @property
    def begun(self) -> list[str]:
        return [id for id, what in self.log if what == "restart"]


class Machine:
    def __init__(self, fleet: Fleet, id: str) -> None:
        self.fleet, self.id = fleet, id

    async def probe(self) -> dict[str, str]:
        self.fleet.log.append((self.id, "probe"))
        if self.id in self.fleet.ill:
            raise CommandFailed("it is not well")
        return {"kernel": "6"}

    async def run(self, *argv: str, **_: Any) -> Output:
        state = "failed" if self.id in self.fleet.dead and self.id in self.fleet.begun else "active"
        if argv[0] in ("journalctl", "sleep"):
            return Output(argv, 0, "", "")
        if argv[1] == "show":
            said = f"Id=nginx.service\nLoadState=loaded\nActiveState={state}\nSubState=x\nMainPID={self.fleet.pid}\n"
            return Output(argv, 0, said, "")
        self.fleet.log.append((self.id, argv[1]))
        return Output(argv, 1 if self.id in self.fleet.bad else 0, "", "")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def waves(reply: dict[str, Any]) -> list[int]:
    return [one["targets"] for one in reply["summary"]["waves"]]


def left(reply: dict[str, Any]) -> list[str]:
    return [id for id, code in codes(reply).items() if code == "not_started"]


def ended(fleet: Fleet) -> list[str]:
    """How the service's restarts ended, as the audit log says."""
    found = [one for one in records(fleet.folder) if one["phase"] == "outcome" and one["tool"] == "manage_service"]
    return [one["code"] for one in found]


def test_a_wave_begins_when_the_one_before_is_well(fleet: Fleet) -> None:
    reply = fleet.call()
    assert reply["ok"] and waves(reply) == [1, 1, 8, 10] and len(fleet.begun) == 20
    assert [one["wave"] for one in reply["results"]] == [1, 2, *[3] * 8, *[4] * 10]
    probes = [place for place, (_, what) in enumerate(fleet.log) if what == "probe"]
    assert probes[0] == 1 and probes[1] == 3, "the canary is asked how it is before anything else begins"


@pytest.mark.parametrize("how", ["bad", "ill", "dead"])
def test_a_failure_stops_it_and_what_is_left_is_said(fleet: Fleet, how: str) -> None:
    getattr(fleet, how).add("w-05")
    reply = fleet.call()
    assert fleet.begun == [f"w-{number:02}" for number in range(1, 11)]
    assert left(reply) == [f"w-{number:02}" for number in range(11, 21)]
    error = reply["results"][-1]["error"]
    assert "wave 3 of 4 was the last: w-05" in error["message"] and "targets that are left" in error["hint"]
    assert "wave" not in reply["results"][-1] and reply["summary"]["waves"][2] == {"wave": 3, "targets": 8, "failed": 1}
    outcomes = ended(fleet)
    assert outcomes.count("not_started") == 10 and len(outcomes) == 20


def test_as_many_failures_as_are_allowed_stop_nothing(fleet: Fleet) -> None:
    fleet.bad |= {"w-01", "w-02"}
    assert left(fleet.call(strategy={"max_failures": 2})) == []
    fleet.log.clear()
    assert len(left(fleet.call(strategy={"max_failures": 1}))) == 18


def test_health_is_not_asked_where_it_is_not_wanted(fleet: Fleet) -> None:
    fleet.ill.add("w-01")
    assert left(fleet.call(strategy={"health": False})) == [] and not [one for one in fleet.log if one[1] == "probe"]


def test_what_a_batch_does_not_reach_is_left(fleet: Fleet) -> None:
    reply = fleet.call(strategy={"batch": "1,2"})
    assert len(fleet.begun) == 2 and len(left(reply)) == 18
    assert "batch 1,2 ends at 2 of 20 targets" in reply["results"][-1]["error"]["message"]


def test_what_is_denied_is_in_no_wave_and_no_failure(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 3)
    one, others = target("no", constraints={"units": []}), fleet.gateway.registry.targets
    fleet.gateway.replace_registry(registry(others["w-01"], one, others["w-02"], others["w-03"]))
    reply = fleet.call()
    assert codes(reply)["no"] != "ok" and fleet.begun == ["w-01", "w-02", "w-03"] and waves(reply) == [1, 1, 1]
    assert list(codes(reply)) == ["w-01", "no", "w-02", "w-03"]


def test_each_wave_is_on_record_and_told(fleet: Fleet) -> None:
    told: list[str] = []
    far: list[float] = []

    async def progress(done: float, total: int, message: str) -> None:
        told.append(message)
        far.append(done)
        assert total == 20

    fleet.call(progress=progress)
    begun = [one for one in records(fleet.folder) if one.get("tool") == "wave"]
    assert [one["arguments"]["wave"] for one in begun] == [1, 2, 3, 4] and begun[1]["arguments"]["targets"] == ["w-02"]
    assert [one for one in told if one.startswith("wave")] == [
        f"wave {number} of 4: {size}"
        for number, size in enumerate(["1 target", "1 target", "8 targets", "10 targets"], 1)
    ]
    assert far == sorted(far) and far[-1] == 20, "each target counts, and none twice"


def test_cancelled_in_a_pause_nothing_more_begins(fleet: Fleet) -> None:
    async def work() -> None:
        given = {**RESTART, "strategy": {"pause": 600}}
        call = asyncio.create_task(fleet.gateway.call(OPERATOR, "manage_service", given))
        async with asyncio.timeout(20):
            while ("w-01", "probe") not in fleet.log:
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(work())
    assert fleet.begun == ["w-01"]
    outcomes = ended(fleet)
    assert sorted(outcomes) == ["not_run"] * 19 + ["ok"], "every intent has its end"


def test_a_plan_is_carried_out_in_its_waves_and_looked_at_again_before_each(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, plans=PlanStore(tmp_path / "plans.sqlite"))
    planned = fleet.call(dry_run=True)
    assert fleet.begun == []
    id = planned["results"][0]["data"]["plan_id"]
    assert id != fleet.call(dry_run=True, strategy={"batch": "100%"})["results"][0]["data"]["plan_id"]

    async def moves(done: float, total: int, message: str) -> None:
        if message.startswith("wave 3"):
            fleet.pid = 8

    reply = fleet.call("apply_plan", progress=moves, plan_id=id)
    assert fleet.begun == ["w-01", "w-02"]
    assert codes(reply)["w-03"] == "precondition_failed" and len(left(reply)) == 10


def test_strategies_are_as_declared() -> None:
    assert Strategy().model_dump() == {"batch": "1,10%,50%,100%", "max_failures": 0, "pause": 0, "health": True}
