"""What git may do for a stack, against a real server: hostile repositories, servers and names."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from systemmanager.executors import git as git_module
from systemmanager.stacks import StackRules
from tests.real.gitserver import git
from tests.real.sites import closed_port
from tests.real.stacks import Stacks
from tests.support import records

PLAIN = {"docker-compose.yml": "services: {web: {image: systemmanager-test:1, stop_grace_period: 100ms}}\n"}


def refused(stacks: Stacks, **arguments: str) -> dict[str, object]:
    """The error of a deployment that must not happen; nothing of it is on the engine."""
    name = stacks.name()
    error = stacks.error(
        "deploy_stack", **{"stack_name": name, "repo_url": stacks.repositories.url("app"), **arguments}
    )
    assert not stacks.containers(name)
    return error


@pytest.mark.parametrize(
    "links",
    [
        {"link": "/etc/passwd"},
        {"a/link": "../../x"},
        {"b": "../..", "a": "b/x"},
        {"d/e": "../..", "f": "d/e/x"},
        {"loop": "loop"},
        {"docker-compose.yml": "/etc/passwd"},
    ],
    ids=lambda links: "-".join(links),
)
def test_a_link_that_leads_out_of_the_repository_is_refused(stacks: Stacks, links: dict[str, str]) -> None:
    files = {name: text for name, text in PLAIN.items() if name not in links}
    stacks.repositories.commit("app", {**files, "README": ""}, links)
    error = refused(stacks)
    assert error["code"] == "compose_refused" and "is a link that leads out of it" in str(error["message"]), error


def test_neither_submodules_nor_hooks_nor_filters_of_a_repository_run(stacks: Stacks, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    files = {
        **PLAIN,
        ".gitmodules": f'[submodule "s"]\n\tpath = s\n\turl = ext::sh -c "touch {mark}"\n',
        ".gitattributes": "* filter=evil diff=evil\n",
        ".gitconfig": f'[filter "evil"]\n\tsmudge = touch {mark}\n[core]\n\thooksPath = hooks\n',
        "hooks/post-checkout": f"#!/bin/sh\ntouch {mark}\n",
    }
    stacks.repositories.commit("app", files)
    work = stacks.repositories.folder / "work" / "app"
    git(work, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},s")
    git(work, "commit", "--quiet", "-m", "a submodule")
    git(work, "push", "--quiet", str(stacks.repositories.bare("app")), "main")
    assert stacks.data("deploy_stack", stack_name=stacks.name(), repo_url=stacks.repositories.url("app"))["changed"]
    assert not mark.exists() and all("/app.git/" in one for one in stacks.repositories.asked)


def test_configuration_of_the_gateways_user_does_not_count(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    home = stacks.tmp_path / "home"
    home.mkdir()
    mark = home / "mark"
    (home / ".gitconfig").write_text(
        f'[credential]\n\thelper = "!touch {mark}; false"\n[url "https://127.0.0.1:9/"]\n\tinsteadOf = https://\n'
        f"[core]\n\tsshCommand = touch {mark}\n[http]\n\tsslVerify = false\n\tproxy = http://127.0.0.1:9\n"
    )
    for name, value in {"HOME": home, "GIT_SSH": f"touch {mark}", "https_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    stacks.repositories.commit("app", PLAIN)
    assert stacks.data("deploy_stack", stack_name=stacks.name(), repo_url=stacks.repositories.url("app"))["changed"]
    assert not mark.exists()


def test_a_server_that_nobody_vouches_for_is_refused(stacks: Stacks) -> None:
    stacks.repositories.commit("app", PLAIN)
    (stacks.state / "git" / "git.127.0.0.1.ca").unlink()
    assert refused(stacks)["code"] == "tls_failed"


def test_a_repository_or_branch_that_is_not_there_is_told(stacks: Stacks) -> None:
    stacks.repositories.commit("app", PLAIN)
    assert refused(stacks, branch="other")["code"] == "not_found"
    file = refused(stacks, compose_file="stack/compose.yml")
    assert file["code"] == "not_found" and "stack/compose.yml" in str(file["message"]), file
    gone = refused(stacks, repo_url=stacks.repositories.url("none"))
    assert gone["code"] == "not_found" and "git.127.0.0.1.token" in str(gone["hint"]), gone
    assert refused(stacks, repo_url=f"https://127.0.0.1:{closed_port()}/app.git")["code"] == "unreachable"


def test_what_is_too_large_is_not_fetched_and_not_written(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks.repositories.commit("app", {**PLAIN, "zeros": "0" * 3_000_000})
    monkeypatch.setattr(git_module, "MOST_CHECKED_OUT", 2_000_000)
    assert refused(stacks)["code"] == "output_too_large", "small as sent, large as written"
    monkeypatch.setattr(git_module, "MOST_CHECKED_OUT", 2**30)
    monkeypatch.setattr(git_module, "MOST_FILES", 1)
    assert refused(stacks)["code"] == "output_too_large"
    monkeypatch.setattr(git_module, "MOST_FILES", 100)
    monkeypatch.setattr(git_module, "MOST_FETCHED", 10)
    assert refused(stacks)["code"] == "output_too_large"


def test_a_fetch_that_hangs_is_ended_with_its_children(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks.repositories.commit("app", PLAIN)
    stacks.repositories.hang = True
    monkeypatch.setattr(git_module, "FETCH_TIME", 1.5)
    assert refused(stacks)["code"] == "unreachable"
    stacks.repositories.released.set()
    left = subprocess.run(["pgrep", "-f", str(stacks.state)], capture_output=True, text=True, check=False)
    assert not left.stdout.strip(), left.stdout


def test_hosts_that_are_not_listed_are_not_reached(stacks: Stacks) -> None:
    stacks.repositories.commit("app", PLAIN)
    for hosts, code in (((), "repo_not_allowed"), (("*",), "repo_not_allowed"), (("git.example",), "repo_not_allowed")):
        stacks.rules = StackRules(hosts=hosts)
        error = refused(stacks)
        assert error["code"] == code and "stacks.hosts" in str(error["hint"]), error
    assert not stacks.repositories.asked, "no packet went there"
    stacks.rules = StackRules(hosts=("localhost",))
    name = stacks.repositories.url("app").replace("127.0.0.1", "localhost")
    (stacks.state / "git" / "git.localhost.ca").write_bytes(stacks.repositories.authority.read_bytes())
    stacks.data("deploy_stack", stack_name=stacks.name(), repo_url=name)
    assert stacks.repositories.asked


def test_a_host_that_moves_to_another_address_is_judged_again(stacks: Stacks) -> None:
    """update_stack names no repository: what was deployed from is judged by the policy of today."""
    stacks.repositories.commit("app", PLAIN)
    name = stacks.name()
    stacks.data("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"))
    stacks.rules = replace(stacks.rules, hosts=("git.example",))
    assert stacks.error("update_stack", stack_name=name)["code"] == "repo_not_allowed"
    codes = [one.get("code") for one in records(stacks.state) if one["phase"] == "outcome"]
    assert codes[0] == "repo_not_allowed" or "repo_not_allowed" in codes


def test_no_program_is_given_a_secret_or_an_option_of_the_caller(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """git as it is started: the URL behind --end-of-options, and no token among its arguments or variables."""
    seen, folder = tmp_path / "seen", tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\n{{ printf "%s\\n" "$@"; env; }} >>{seen}\nexec /usr/bin/git "$@"\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    stacks.repositories.token = "robot:correct-horse"
    stacks.repositories.commit("app", PLAIN)
    seen.unlink()
    (stacks.state / "git" / "git.127.0.0.1.token").write_text("robot:correct-horse")
    stacks.data("deploy_stack", stack_name=stacks.name(), repo_url=stacks.repositories.url("app"))
    said = seen.read_text()
    assert "correct-horse" not in said and "cm9ib3Q6" not in said
    assert f"--end-of-options\n{stacks.repositories.url('app')}\n" in said
    for limit in (
        *("--template=", "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null"),
        *("protocol.allow=never", "protocol.https.allow=always", "submodule.recurse=false", "credential.helper="),
        *("--no-recurse-submodules", "--depth=1", "GIT_ALLOW_PROTOCOL=https", "GIT_CONFIG_NOSYSTEM=1"),
        *("GIT_ATTR_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"),
    ):
        assert f"{limit}\n" in said, limit
