"""Unit operations on this machine as it is."""

from pathlib import Path

import pytest

from tests.support import call, target

SYSTEMD = Path("/run/systemd/system").is_dir()


QUESTIONS = [
    ("get_service_status", {"service_name": "init.scope"}),
    *(("manage_service", {"action": action, "service_name": "ssh"}) for action in ("restart", "enable")),
]


@pytest.mark.parametrize(("tool", "arguments"), QUESTIONS[:1] if SYSTEMD else QUESTIONS)
def test_units_are_described_where_systemd_runs_and_elsewhere_the_answer_says_so(
    tmp_path: Path, tool: str, arguments: dict[str, str]
) -> None:
    (result,) = call(tmp_path, tool, arguments, target("local"), root=True)["results"]
    if SYSTEMD:
        assert result["data"]["active"] == "active"
    else:
        assert result["error"]["code"] == "unsupported"
        assert "does not run systemd" in result["error"]["message"]


@pytest.mark.parametrize("name", ["-H root@evil", "--now", "a;reboot", "a b", "../x", "", "*", "a\n"])
def test_names_that_are_no_unit_are_refused(tmp_path: Path, name: str) -> None:
    reply = call(tmp_path, "manage_service", {"action": "stop", "service_name": name}, target("local"), root=True)
    assert reply["error"]["code"] == "invalid_arguments"
