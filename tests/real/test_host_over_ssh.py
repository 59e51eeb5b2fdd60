"""Files, units, packages and the audit on a target that is reached over SSH."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.real.openssh import SshServer
from tests.support import OPERATOR, call, real_gateway, run, target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path.resolve() / "files"
    made.mkdir()
    (made / "app.log").write_text("".join(f"line {number} äöü\n" for number in range(5000)))
    (made / "sub").mkdir()
    (made / "sub" / "deep.log").write_text("deep\n")
    return made


def ask(tmp_path: Path, server: SshServer, tool: str, *paths: Path, **arguments: Any) -> dict[str, Any]:
    one = server.target("web-01", constraints={"paths": [str(path) for path in paths], "sudo_policy": "full"})
    key = "targets" if tool == "audit_security" else "target"
    chosen = ["web-01"] if key == "targets" else "web-01"
    reply = call(tmp_path, tool, {key: chosen, **arguments}, one)
    assert "results" in reply, reply
    return dict(reply["results"][0])


def test_files_are_listed_read_and_searched(ssh_server: SshServer, root: Path) -> None:
    def data(action: str, path: Path, **arguments: Any) -> dict[str, Any]:
        result = ask(root.parent, ssh_server, "file_operations", root, action=action, path=str(path), **arguments)
        assert result["ok"], result
        return dict(result["data"])

    log = root / "app.log"
    assert [entry["name"] for entry in data("list", root)["entries"]] == ["app.log", "sub"]
    assert data("info", log)["info"]["size"] == log.stat().st_size
    assert data("read", log, lines=2, offset=4000)["text"] == "line 4000 äöü\nline 4001 äöü"
    assert data("tail", log, lines=1)["text"] == "line 4999 äöü"
    assert [match["line"] for match in data("search", log, pattern="line 499*9")["matches"]] == [5000]
    assert [entry["name"] for entry in data("search", root, pattern="*.log")["entries"]] == ["app.log", "sub/deep.log"]


@pytest.mark.parametrize("text", ["/etc/passwd", "../outside", "/proc/self/root/etc/passwd"])
def test_links_that_lead_out_are_refused(ssh_server: SshServer, root: Path, text: str) -> None:
    (root.parent / "outside").write_text("SECRET")
    (root / "link").symlink_to(text)
    result = ask(root.parent, ssh_server, "file_operations", root, action="read", path=str(root / "link"))
    assert result["error"]["code"] == "path_outside"
    assert "SECRET" not in str(result)


def test_pipes_and_missing_names_are_refused_at_once(ssh_server: SshServer, root: Path) -> None:
    os.mkfifo(root / "pipe")
    pipe = ask(root.parent, ssh_server, "file_operations", root, action="read", path=str(root / "pipe"))
    assert pipe["error"]["code"] == "unsupported"
    missing = ask(root.parent, ssh_server, "file_operations", root, action="read", path=str(root / "ap.log"))
    assert missing["error"]["code"] == "not_found"
    assert "app.log" in missing["error"]["hint"]


def test_updates_are_checked_and_simulated(ssh_server: SshServer, tmp_path: Path) -> None:
    checked = ask(tmp_path, ssh_server, "check_system_updates")["data"]
    assert checked["tool"] == "apt" and checked["total"] == len(checked["packages"])
    simulated = ask(tmp_path, ssh_server, "update_system_packages")["data"]
    assert simulated["applied"] is False and simulated["total"] == checked["total"]


def test_units_answer_as_the_target_is(ssh_server: SshServer, tmp_path: Path) -> None:
    result = ask(tmp_path, ssh_server, "get_service_status", service_name="init.scope")
    if Path("/run/systemd/system").is_dir():
        assert result["data"]["active"] == "active"
    else:
        assert result["error"]["code"] == "unsupported"


def test_the_audit_looks_at_everything_it_can(ssh_server: SshServer, tmp_path: Path) -> None:
    data = ask(tmp_path, ssh_server, "audit_security")["data"]
    skipped = {one["check"] for one in data.get("skipped", [])}
    assert not skipped & {"accounts", "files", "empty_passwords", "listening_ports"}


def test_processes_and_the_record_of_having_asked_for_them(ssh_server: SshServer, tmp_path: Path) -> None:
    async def work() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with real_gateway(tmp_path, ssh_server.target()) as gateway:
            asked = {"target": "web-01", "limit": 5, "sort_by": "memory"}
            top = (await gateway.call(OPERATOR, "get_top_processes", asked)).as_dict()
            log = (await gateway.call(OPERATOR, "query_audit", {"call_id": top["call_id"]})).as_dict()
            return top["results"][0], log["results"][0]["data"]["records"]

    top, records = run(work())
    memory = [process["rss"] for process in top["data"]["processes"]]
    assert len(memory) == 5 and memory == sorted(memory, reverse=True)
    assert {record["phase"] for record in records} == {"intent", "outcome"}
    assert {record["target"] for record in records} == {"web-01"}


def test_what_is_no_file_is_told_in_the_same_words_as_here(ssh_server: SshServer, root: Path) -> None:
    os.mkfifo(root / "pipe")
    here = target("local", constraints={"paths": [str(root)]})
    for place in (root, root / "pipe"):
        words = {"action": "read", "path": str(place)}
        far = ask(root.parent, ssh_server, "file_operations", root, **words)["error"]
        assert far == call(root.parent, "file_operations", words, here)["results"][0]["error"]
        assert far["message"].endswith(("is a directory", "is a pipe"))
