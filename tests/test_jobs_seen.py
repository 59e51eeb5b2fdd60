"""How a job of many targets is told: alike once, with what is left to do, and no target lost for its size."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobRow, JobStore
from systemmanager.replies import print_reply
from systemmanager.shaping import MAX_REPLY_BYTES, Reply, TargetReply, size_of
from tests.support import OPERATOR, fake_gateway, run, target

IDS = [f"web-{number:03}" for number in range(1, 101)]
UPDATED = {"tool": "apt", "applied": True, "packages": [{"name": "curl", "old": "1", "new": "2"}]}
LEFT = {"code": "not_started", "message": "not started: wave 3 of 4 was the last: web-007 (locked)", "retryable": False}


def answered(folder: Path, *replies: TargetReply, state: Any = "done") -> Reply:
    """What job_status answers of a job with these results."""
    store = JobStore(folder / "jobs.sqlite", lambda: 10.0)
    ids, id = tuple(one.target for one in replies), "0123456789abcdef"
    begun = JobRow(id, "ann", "update_packages", {}, ids, "d", None, {}, "o", "running", 1.0, None, 0, "", False, 1.0)
    store.begin(begun)
    for one in replies:
        store.ended_on(id, one.target, one.as_dict())
    if state != "running":
        store.end(id, state)
    jobs = Jobs(store, folder / "jobs")
    jobs.runs = True
    gateway = fake_gateway(folder, lambda permit, port: None, target("a"), jobs=jobs)
    return run(gateway.call(OPERATOR, "job_status", {"job_id": id}))


def fleet() -> list[TargetReply]:
    """A hundred in waves: fifty are done but for one, the others are left."""
    found = [TargetReply(id, dict(UPDATED), wave=1 + (place > 0) + (place > 9)) for place, id in enumerate(IDS[:50])]
    found[6] = TargetReply(IDS[6], error={"code": "locked", "message": "locked", "retryable": True}, wave=2)
    found[8].data = {**UPDATED, "reboot_required": True}
    return [*found, *(TargetReply(id, error=dict(LEFT)) for id in IDS[50:])]


def test_a_job_of_a_hundred_is_told_as_a_call_on_a_hundred_is(tmp_path: Path) -> None:
    reply = answered(tmp_path, *fleet(), state="failed")
    told = json.loads(reply.text())["results"][0]["data"]
    assert told["results"]["common"] == UPDATED
    groups = [(len(one.get("targets", [0])), one.get("error", {}).get("code")) for one in told["results"]["results"]]
    assert groups == [(50, "not_started"), (48, None), (1, "locked"), (1, None)]
    assert told["summary"] == {
        "targets": 100, "succeeded": 49, "failed": 51,
        "waves": [{"wave": 1, "targets": 1, "failed": 0}, {"wave": 2, "targets": 9, "failed": 1},
                  {"wave": 3, "targets": 40, "failed": 0}],
    }  # fmt: skip
    assert len(reply.text()) / 4 < 1800, "estimated as four characters a token"
    rows = reply.as_dict()["results"][0]["data"]["results"]
    assert [one["target"] for one in rows] == IDS and rows[0]["data"] == UPDATED, "the structured answer holds each"
    screen = io.StringIO()
    print_reply(Console(file=screen, width=80, highlight=False), reply)
    shown = screen.getvalue()
    assert shown.count("wave 3 of 4 was the last") == 1 and "web-009" in shown and "locked" in shown
    assert len(shown.splitlines()) <= 60


def test_of_a_job_with_long_answers_no_target_is_lost(tmp_path: Path) -> None:
    long = [{"name": f"package-{number}", "old": "1.0.0-1", "new": "1.0.1-1"} for number in range(150)]
    found = [TargetReply(id, {**UPDATED, "host": id, "packages": long}) for id in IDS]
    found[99] = TargetReply(IDS[99], error={"code": "locked", "message": "locked", "retryable": True})
    reply = answered(tmp_path, *found, state="failed")
    rows = reply.as_dict()["results"][0]["data"]["results"]
    assert [one["target"] for one in rows] == IDS and rows[99]["error"]["code"] == "locked"
    assert rows[0]["data"]["truncated"] and rows[0]["data"]["packages"][0] == long[0]
    assert size_of(reply.as_dict()) < MAX_REPLY_BYTES


@pytest.mark.parametrize("state", ["running", "done"])
def test_a_job_of_one_or_none_ended_is_told_plainly(tmp_path: Path, state: str) -> None:
    reply = answered(tmp_path, *[TargetReply("a", dict(UPDATED))] * (state == "done"), state=state)
    data = json.loads(reply.text())["results"][0]["data"]
    assert data["state"] == state and "summary" not in data
    assert data.get("results", []) == ([{"target": "a", "data": UPDATED}] if state == "done" else [])
