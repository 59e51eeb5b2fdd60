"""The command line as a person or a script uses it: real processes."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from systemmanager.approvals.store import ApprovalStore

ROOT = Path(__file__).parent.parent
ADMIN = 'version: "1.0"\ntargets:\n  local: {id: "local", executor: "local", capabilities: ["admin"]}\n'
BROKEN = """\
version: "1.0"
targets:
  web:
    id: "web"
    executor: "ssh"
    connection: {host: "h", usrname: "x"}
    capabilities: ["system:raed"]
"""


def environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "XDG_STATE_HOME": str(folder / "state"), **settings}


def systemmanager(
    folder: Path, *words: str, check: int = 0, settings: Mapping[str, str] = MappingProxyType({}), stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "systemmanager", *words],
        env=environment(folder, **settings),
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == check, done.stdout + done.stderr
    return done


def at_a_terminal(folder: Path, words: Sequence[str], answer: str, **settings: str) -> tuple[int, str]:
    """Run a command with a terminal on all three streams, type `answer`, and give exit status and screen."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "systemmanager", *words],
            environment(folder, TERM="xterm", SYSTEMMANAGER_TARGETS_CONFIG="targets.yaml", **settings),
        )
    screen = b""
    try:
        while chunk := os.read(terminal, 4096):
            screen += chunk
            if answer and b"[y/N]" in screen:
                os.write(terminal, answer.encode() + b"\n")
                answer = ""
    except OSError:  # Linux answers EIO when the other end is closed
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), screen.decode()


def test_check_shows_the_targets_of_a_good_file(tmp_path: Path) -> None:
    names = {"SSH_KEY_WEB_SERVER_01": "/k", "SSH_KEY_DB_SERVER_01": "/k", "GRAFANA_TOKEN": "some-long-token"}
    done = systemmanager(tmp_path, "check", str(ROOT / "targets.example.yaml"), settings=names)
    assert "web-server-01" in done.stdout and "some-long-token" not in done.stdout
    assert done.stderr == ""


def test_check_names_every_mistake_with_its_place_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(BROKEN)
    done = systemmanager(tmp_path, "check", "targets.yaml", check=1)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert any(line.startswith("targets.yaml:6:29: ") and "'username'" in line for line in lines), lines
    assert any(line.startswith("targets.yaml:7:20: ") and "'system:read'" in line for line in lines), lines


def test_check_exits_1_and_names_a_secret_that_is_missing(tmp_path: Path) -> None:
    done = systemmanager(tmp_path, "check", str(ROOT / "targets.example.yaml"), check=1)
    assert "SSH_KEY_WEB_SERVER_01" in done.stderr


def test_schema_is_a_json_schema_of_the_registry(tmp_path: Path) -> None:
    schema = json.loads(systemmanager(tmp_path, "schema").stdout)
    assert set(schema["properties"]) == {"version", "targets"}


def test_tools_lists_every_tool(tmp_path: Path) -> None:
    from systemmanager.operation import CATALOGUE

    listed = systemmanager(tmp_path, "tools").stdout
    assert [name for name in CATALOGUE if name not in listed] == []


def test_an_unknown_tool_or_command_names_the_nearest_one(tmp_path: Path) -> None:
    assert "Did you mean 'get_system_status'" in systemmanager(tmp_path, "tools", "get_system_statu", check=1).stderr
    for words in (("bogus",), ("call",), ("serve", "--bogus")):
        said = systemmanager(tmp_path, *words, check=2).stderr
        assert len(said.splitlines()) == 2 and "Traceback" not in said and "─" not in said


def test_call_prints_a_table_and_exits_0(tmp_path: Path) -> None:
    done = systemmanager(tmp_path, "call", "get_system_status")
    assert "uptime" in done.stdout and "GiB" in done.stdout


def test_call_with_json_prints_the_whole_reply(tmp_path: Path) -> None:
    reply = json.loads(systemmanager(tmp_path, "call", "get_top_processes", "limit=3", "--json").stdout)
    assert reply["ok"] and len(reply["results"][0]["data"]["processes"]) == 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("get_system_statu",), "unknown_tool"),
        (("get_system_status", "--target", "nowhere"), "unknown_target"),
        (("get_top_processes", "limit=0"), "invalid_arguments"),
        (("get_top_processes", "sort=cpu"), "invalid_arguments"),
    ],
)
def test_call_that_fails_says_why_and_exits_1(tmp_path: Path, words: Sequence[str], code: str) -> None:
    reply = json.loads(systemmanager(tmp_path, "call", *words, "--json", check=1).stdout)
    assert reply["error"]["code"] == code and reply["error"]["hint"]
    assert code in systemmanager(tmp_path, "call", *words, check=1).stdout


def test_call_refuses_a_word_that_is_no_argument(tmp_path: Path) -> None:
    assert "key=value" in systemmanager(tmp_path, "call", "get_top_processes", "limit", check=2).stderr


def test_explain_shows_each_rule(tmp_path: Path) -> None:
    done = systemmanager(tmp_path, "explain", "get_system_status")
    for rule in ("scopes", "capabilities", "paths", "units", "hosts", "images", "sudo", "concurrency", "rate"):
        assert rule in done.stdout


def test_a_minted_token_stands_alone_on_standard_output_and_is_audited(tmp_path: Path) -> None:
    done = systemmanager(tmp_path, "token", "mint", "--agent", "claude", "--scopes", "system:read", "--ttl", "1h")
    assert done.stdout.count(".") == 2 and done.stdout == done.stdout.strip() + "\n" and done.stderr == ""
    record: dict[str, Any] = json.loads(systemmanager(tmp_path, "audit", "tail").stdout.splitlines()[-1])
    assert record["tool"] == "token mint" and record["arguments"]["agent"] == "claude"
    assert done.stdout.strip() not in json.dumps(record)


@pytest.mark.parametrize(
    "words", [("--ttl", "91d"), ("--ttl", "soon"), ("--scopes", "system:raed"), ("--agent", "a b")]
)
def test_a_token_that_should_not_be_is_refused_with_the_reason(tmp_path: Path, words: Sequence[str]) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    agent = given.pop("--agent", "claude")
    rest = [word for pair in given.items() for word in pair]
    done = systemmanager(tmp_path, "token", "mint", "--agent", agent, *rest, check=1)
    assert done.stdout == "" and done.stderr.startswith("token mint: ")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MCP_PORT", "http", "MCP_PORT"),
        ("SYSTEMMANAGER_SHARED_SECRET", "hunter22", "shorter than 32 bytes"),
        ("SYSTEMMANAGER_REQUIRE_AUTH", "false", "SYSTEMMANAGER_REQUIRE_AUTH"),
        ("SYSTEMMANAGER_TARGETS_CONFG", "x", "SYSTEMMANAGER_TARGETS_CONFIG"),
        ("SYSTEMMANAGER_TARGETS_CONFIG", "/nowhere.yaml", "/nowhere.yaml"),
    ],
)
def test_serve_refuses_to_start_on_a_bad_setting(tmp_path: Path, name: str, value: str, said: str) -> None:
    done = systemmanager(tmp_path, "serve", check=1, settings={name: value})
    assert said in done.stderr and done.stdout == ""
    assert value not in done.stderr or name != "SYSTEMMANAGER_SHARED_SECRET"


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "404.log").write_text("x")
    words = ("call", "file_operations", "action=list", "path=/var/log", "pattern=404", "lines=5", "--json")
    reply = json.loads(systemmanager(tmp_path, *words).stdout)
    assert reply["ok"] and reply["results"][0]["data"]["path"] == "/var/log"


@pytest.mark.parametrize("words", [("audit", "query", "--since", "bogus"), ("audit", "tail")])
def test_an_audit_log_that_cannot_be_read_is_said(tmp_path: Path, words: Sequence[str]) -> None:
    broken = {"SYSTEMMANAGER_AUDIT_LOG": str(tmp_path)}
    assert systemmanager(tmp_path, *words, check=1, settings=broken).stderr.strip()


def test_audit_query_filters(tmp_path: Path) -> None:
    systemmanager(tmp_path, "call", "list_targets")
    systemmanager(tmp_path, "call", "get_system_statu", check=1)
    refused = systemmanager(tmp_path, "audit", "query", "--phase", "refused").stdout.splitlines()
    assert [json.loads(line)["code"] for line in refused] == ["unknown_tool"]


@pytest.mark.parametrize(("answer", "code"), [("n", "approval_refused"), ("y", "not_found")])
def test_a_person_at_the_terminal_is_asked_before_a_critical_call(tmp_path: Path, answer: str, code: str) -> None:
    (tmp_path / "targets.yaml").write_text(ADMIN)
    words = ("call", "install_package", "package_name=no-such-package-here", "--json")
    status, screen = at_a_terminal(tmp_path, words, answer)
    assert "critical" in screen and "no-such-package-here" in screen
    assert status == 1 and code in screen


def test_a_critical_call_without_a_terminal_needs_yes(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(ADMIN)
    words = ("call", "install_package", "package_name=no-such-package-here", "--json")
    done = systemmanager(tmp_path, *words, check=1, settings={"SYSTEMMANAGER_TARGETS_CONFIG": "targets.yaml"})
    error = json.loads(done.stdout)["results"][0]["error"]
    assert error["code"] == "approval_required" and "--yes" in error["hint"] and "approvals" not in error["hint"]
    (file,) = tmp_path.rglob("approvals.sqlite")
    assert ApprovalStore(file).all() == []  # nobody is asked for what whoever asked can't wait for
    done = systemmanager(tmp_path, *words, "--yes", check=1, settings={"SYSTEMMANAGER_TARGETS_CONFIG": "targets.yaml"})
    assert json.loads(done.stdout)["results"][0]["error"]["code"] != "approval_required"


def test_a_value_of_endless_brackets_is_a_wrong_value(tmp_path: Path) -> None:
    words = ("call", "test_port_connectivity", "host=localhost", "ports=" + "[" * 100_000, "--json")
    assert json.loads(systemmanager(tmp_path, *words, check=1).stdout)["error"]["code"] == "invalid_arguments"


@pytest.mark.parametrize("words", [("call", "list_targets"), ("tools",), ("schema",)], ids=str)
def test_a_full_disk_behind_the_output_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-m", "systemmanager", *words]
        done = subprocess.run(
            argv, env=environment(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1 and done.stderr.strip() == "the output can't be written: No space left on device"


def test_what_a_file_holds_is_no_command_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text('version: "1.0"\ntargets:\n  "\\e[31mred": {id: a, "\\e]0;x\\a": 1}\n')
    done = systemmanager(tmp_path, "check", "t.yaml", check=1)
    assert "\x1b" not in done.stderr and "\a" not in done.stderr and "\\x1b[31mred" in done.stderr


def test_without_a_terminal_nothing_but_the_answer_is_printed(tmp_path: Path) -> None:
    assert systemmanager(tmp_path, "call", "list_targets").stderr == ""
