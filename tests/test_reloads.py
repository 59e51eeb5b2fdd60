"""What the audit log is told of a reload: which file, what changed in it, and what was refused."""

from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from systemmanager.audit.reading import query
from systemmanager.server import app
from systemmanager.settings import Settings
from tests.support import run

TARGETS = """version: "1.0"
targets:
  local: {id: local, executor: local, capabilities: [system:read]}
"""
SECOND = "  second: {id: second, executor: local, capabilities: [system:read]}\n"
POLICY = """version: "1.0"
grants:
  - {subjects: [ann@example.com], scopes: [readonly]}
"""
NEWER = """version: "1.0"
grants:
  - {subjects: [bob@example.com], groups: [sre], tags: ["tag:ci"], scopes: [service:write], targets: "tag:web"}
taint_minutes: 3
"""


def test_a_reload_is_on_record_with_what_changed(tmp_path: Path) -> None:
    targets, policy, state = tmp_path / "targets.yaml", tmp_path / "policy.yaml", tmp_path / "state"
    given = {
        "SYSTEMMANAGER_TARGETS_CONFIG": str(targets),
        "SYSTEMMANAGER_POLICY_CONFIG": str(policy),
        "SYSTEMMANAGER_STATE_DIR": str(state),
    }
    targets.write_text(TARGETS)
    policy.write_text(POLICY)

    async def work() -> None:
        async with app.running(Settings.model_validate(given)) as running:
            for new_targets, new_policy in (
                (TARGETS + SECOND, NEWER),
                (TARGETS.replace("system:read", "file:read"), NEWER),
                ("version: [", "grants: 1"),
            ):
                targets.write_text(new_targets)
                policy.write_text(new_policy)
                await running.reload()

    with capture_logs():
        run(work())
    log = [one for one in query(state / "audit.jsonl") if one["phase"] == "event"][::-1]
    told: list[dict[str, Any]] = [one["arguments"] for one in log if one["tool"] == "reload"]
    of_policy, *of_targets = told
    assert (of_policy["added"], of_policy["removed"], of_policy["changed"]) == (
        ["bob@example.com, group sre, tag:ci: service:write on tag:web"],
        ["ann@example.com: readonly"],
        ["taint_minutes"],
    )
    assert of_policy["policy"] == str(policy) and of_policy["version"] != of_policy["before"]
    changes = [(one["added"], one["changed"], one["removed"]) for one in of_targets]
    assert changes == [(["second"], [], []), ([], ["local"], ["second"])]
    assert of_targets[0]["targets"] == str(targets) and of_targets[0]["version"] == of_targets[1]["before"]
    refused = [one["arguments"] for one in log if one["tool"] == "reload refused"]
    assert [one["file"] for one in refused] == ["policy.yaml", "targets.yaml"] and all(refused[0]["problems"])
