"""A hundred answers on one screen: what is alike once, what is otherwise as the difference."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from systemmanager.ports import Output
from systemmanager.replies import print_reply
from systemmanager.shaping import Reply, TargetReply
from tests.support import OPERATOR, fake_gateway, run, target

UNIT = {
    "unit": "nginx.service", "description": "A high performance web server", "active": "active", "sub": "running",
    "load": "loaded", "enabled": "enabled", "tasks": 3, "file": "/lib/systemd/system/nginx.service",
}  # fmt: skip
IDS = [f"web-{number:03}" for number in range(1, 101)]


def fleet(**others: Any) -> Reply:
    """A hundred machines alike, but those named by number with other data or an error's code."""
    results = []
    for id in IDS:
        other = others.get(id.replace("-", "_"), {})
        if isinstance(other, str):
            error = {"code": other, "message": f"{id} said no", "retryable": False}
            results.append(TargetReply(id, error=error))
        else:
            results.append(TargetReply(id, {**UNIT, **other}))
    return Reply("c1", "get_service_status", results)


def printed(reply: Reply) -> list[str]:
    screen = io.StringIO()
    print_reply(Console(file=screen, width=100, highlight=False), reply)
    return screen.getvalue().splitlines()


def test_a_hundred_alike_are_said_once() -> None:
    reply = fleet()
    text = reply.text()
    body = json.loads(text)
    assert body["common"] == UNIT and body["results"] == [{"targets": IDS}]
    assert len(text) / 4 < 1500, "estimated as four characters a token"
    assert len(printed(reply)) <= 60
    assert [one["data"] for one in reply.as_dict()["results"]] == [UNIT] * 100, "the structured answer holds each"


def test_outliers_are_their_differences() -> None:
    reply = fleet(web_007={"active": "failed", "exit_status": 1}, web_008={"tasks": 4}, web_009={"tasks": 4})
    body = json.loads(reply.text())
    assert body["results"] == [
        {"targets": [id for id in IDS if id not in ("web-007", "web-008", "web-009")]},
        {"targets": ["web-008", "web-009"], "differs": {"tasks": 4}},
        {"target": "web-007", "differs": {"active": "failed", "exit_status": 1}},
    ]
    shown = "\n".join(printed(reply))
    assert "failed" in shown and "web-008, web-009" in shown and len(shown.splitlines()) <= 60


def test_what_each_of_a_hundred_has_as_its_own_is_told_by_its_ends() -> None:
    """A restart of a hundred: each has its own number and hour, and one is broken."""
    own = {
        id.replace("-", "_"): {
            "main_pid": 1000 + 7 * place, "memory": 5_000_000 + 1000 * (place % 31),
            "since": f"2026-11-23T13:{place:02}",
            "answered": {"server": "OpenSSH_9.2", "host_key": f"SHA256:{place:043}"},
        }
        for place, id in enumerate(IDS)
    }  # fmt: skip
    own["web_050"] |= {"active": "failed", "memory": 9_999_999}
    reply = fleet(**own)
    shown = printed(reply)
    assert len(shown) <= 40
    text = "\n".join(shown)
    assert "1000 (web-001) to 1693 (web-100)" in text and "2026-11-23T13:00 (web-001) to 2026-11-23T13:99" in text
    assert "9.5 MiB (web-050)" in text and "100 different" in text and text.count("OpenSSH_9.2") == 1
    assert [line.split() for line in shown[-3:]] == [["target", "active"], ["─" * 16], ["web-050", "failed"]]
    assert sum("web-0" in line for line in printed(Reply("c", "t", reply.results[40:58]))) == 18, "of few each is shown"
    assert len(json.loads(reply.text())["results"]) == 100, "a model gets all of it"


def test_what_most_of_a_hundred_have_alike_is_not_told_by_its_ends() -> None:
    reply = fleet(**{id.replace("-", "_"): {"tasks": 1000 + place} for place, id in enumerate(IDS[:30])})
    text = "\n".join(printed(reply))
    assert "each its own" not in text and all(str(1000 + place) in text for place in range(30))


def test_what_an_outlier_lacks_is_said() -> None:
    reply = fleet()
    assert reply.results[4].data is not None
    reply.results[4].data = {name: value for name, value in UNIT.items() if name != "tasks"}
    assert json.loads(reply.text())["results"][1] == {"target": "web-005", "lacks": ["tasks"]}


def test_failures_alike_are_one_with_their_names_left_out() -> None:
    reply = fleet(web_001="unreachable", web_002="unreachable", web_003="not_found")
    body = json.loads(reply.text())
    alike = {"code": "unreachable", "message": "<target> said no", "retryable": False}
    assert body["results"][1] == {"targets": ["web-001", "web-002"], "error": alike}
    assert body["results"][2]["error"]["message"] == "web-003 said no"
    assert body["summary"] == {"targets": 100, "succeeded": 97, "failed": 3}
    assert sum("said no" in line for line in printed(reply)) == 2


def test_a_failure_that_names_one_of_them_is_one() -> None:
    moved = {"code": "precondition_failed", "message": "nothing ran: web-002 is another", "retryable": False}
    body = json.loads(Reply("c", "apply_plan", [TargetReply(id, error=dict(moved)) for id in IDS]).text())
    assert body["results"] == [{"targets": IDS, "error": moved}]


def test_nothing_is_lost() -> None:
    """Common, differences and lacks give back each target's own answer."""
    others: dict[str, Any] = {f"web_{number:03}": {"tasks": number % 7, "pid": number} for number in range(1, 90)}
    reply = fleet(**others)
    body = json.loads(reply.text())
    made: dict[str, Any] = {}
    for group in body["results"]:
        for id in group.get("targets") or [group["target"]]:
            kept = {name: value for name, value in body["common"].items() if name not in group.get("lacks", [])}
            made[id] = kept | group.get("differs", {})
    assert made == {one.target: one.data for one in reply.results}


def test_few_or_quite_different_answers_stand_by_themselves() -> None:
    two = Reply("c", "t", fleet().results[:2])
    assert [one["target"] for one in json.loads(two.text())["results"]] == ["web-001", "web-002"]
    unlike = Reply("c", "t", [TargetReply(id, {"hostname": id}) for id in IDS[:5]])
    assert "common" not in json.loads(unlike.text()) and json.loads(unlike.text())["results"][0]["data"]


def test_what_half_of_them_answer_is_not_common() -> None:
    halves = Reply("c", "t", [TargetReply(id, {**UNIT, "tasks": place % 2}) for place, id in enumerate(IDS[:4])])
    body = json.loads(halves.text())
    assert "tasks" not in body["common"]
    assert [(one["targets"], one["differs"]) for one in body["results"]] == [
        (IDS[0:4:2], {"tasks": 0}), (IDS[1:4:2], {"tasks": 1})
    ]  # fmt: skip


def test_what_others_wrote_keeps_its_mark() -> None:
    reply = fleet()
    for one in reply.results[:40]:
        one.untrusted = True
    assert [one.get("untrusted", False) for one in json.loads(reply.text())["results"]] == [False, True]


def test_the_same_log_on_many_targets_is_one(tmp_path: Path) -> None:
    """The marks around foreign text are new in each answer, and the same within it."""

    class Failed:
        async def run(self, *argv: str, **_: Any) -> Output:
            said = "Id=x.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\n"
            return Output(argv, 0, said if argv[0] == "systemctl" else "a line\nanother\n", "")

    gateway = fake_gateway(tmp_path, lambda permit, port: Failed(), *(target(id) for id in IDS[:5]))
    given = {"service_name": "x", "targets": "*"}
    first, second = (run(gateway.call(OPERATOR, "get_service_status", given)) for _ in range(2))
    assert json.loads(first.text())["results"] == [{"targets": IDS[:5], "untrusted": True}]
    lines = [json.loads(reply.text())["common"]["journal"][0] for reply in (first, second)]
    assert all("a line" in line and line.startswith("<<untrusted ") for line in lines) and lines[0] != lines[1]
