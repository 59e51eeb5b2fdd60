"""Programs on a real SSH target: what arrives, what comes back, and that nothing stays."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from systemmanager.errors import (
    CommandFailed,
    CommandMissing,
    ConnectionLost,
    OutputTooLarge,
    PrivilegeRequired,
    Unsupported,
)
from systemmanager.executors.local import LocalShell
from systemmanager.ports import Output
from tests.conftest import need
from tests.real.openssh import SshServer, SshServers, until
from tests.real.ssh_ports import ssh_executor
from tests.support import permitted, run
from tests.support import target as make_target

HOSTILE = [
    "", "-x", "--", "a b", "'", "''", '"', "$(id)", "`id`", "${IFS}", "$HOME", "*", "?", "[a]", "~", "!!", "!", "!-1",
    "\\", "\\\\", "\\n", "a\\", "\\'", "a\nb", "\n", "\n\n", "a\n", "\ttab\r", "é 漢字 🎉", "{a,b}", "a;b", "&&",
    "||", "|", ">", "<", "#c", "%s", "%1", "=ls", "@x", "^x^y", "\x01\x1b[31m", "+", "=", ".", "+x", "\u2028",
    "\r", "a\r\nb", "\u2029", "\x85", "a\n.\nb", "=x\n.\n+y\n", "<<EOF\nid\nEOF\n", "EOF", "exit 1", "$1",
    "${1}", "$(<x)", "[", "]]", "-n", "-e",
    "LD_PRELOAD=/tmp/x.so", "PATH=/tmp", "0<&-", "%", "*/*", "./*",
    "x" * 3000, "y" * 100_000,
]  # fmt: skip


def shell_runs(
    tmp_path: Path, server: SshServer, *argv: str, how: dict[str, Any] | None = None, **fields: Any
) -> Output:
    """One program on a fresh connection."""

    async def work() -> Output:
        async with ssh_executor(tmp_path) as opened:
            shell = await opened(server.target(**fields), "Shell")
            output: Output = await shell.run(*argv, **(how or {}))
            return output

    return run(work())


@pytest.fixture
def plain_server(ssh_servers: SshServers) -> SshServer:
    """A server with an account of its own: root's start-up files may be slow and loud."""
    return ssh_servers.start(username=ssh_servers.account("sh"))


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "busybox sh"])
def test_arguments_arrive_as_they_are_in_every_login_shell(tmp_path: Path, ssh_servers: SshServers, shell: str) -> None:
    if shell == "busybox sh":
        need("ssh", None if shutil.which("busybox") else "busybox is not installed")
        (link := ssh_servers.client_key.parent / "sh").symlink_to(str(shutil.which("busybox")))
        shell = str(link)
    server = ssh_servers.start(username=ssh_servers.account(shell))

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = await opened(server.target(), "Shell")
            for argument in HOSTILE:
                output = await port.run("/usr/bin/printf", "%s\\0", "begin", argument, "end")
                assert output.stdout == f"begin\0{argument}\0end\0"
            output = await port.run("/usr/bin/printf", "%s\\0", *HOSTILE)
            assert output.stdout.split("\0")[:-1] == HOSTILE
            assert output.stderr == ""

    run(work())


def test_standard_input_arrives_and_is_empty_otherwise(tmp_path: Path, plain_server: SshServer) -> None:
    text = "hello\n'$x`id`\n\n\\ é\n"
    assert shell_runs(tmp_path, plain_server, "cat", how={"stdin": text}).stdout == text
    assert shell_runs(tmp_path, plain_server, "cat").stdout == ""


def test_the_program_sees_the_environment_that_it_is_given(tmp_path: Path, plain_server: SshServer) -> None:
    seen = shell_runs(tmp_path, plain_server, "env", how={"env": {"A_B": "c d'e"}}).stdout.splitlines()
    assert "A_B=c d'e" in seen and "LC_ALL=C.UTF-8" in seen


def test_start_up_files_that_print_are_not_taken_for_output(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start(username=ssh_servers.account("fish"))
    home = server.client_key.parent / server.username / ".config" / "fish"
    home.mkdir(parents=True)
    (home / "config.fish").write_text("echo banner; echo noise >&2\n")
    output = shell_runs(tmp_path, server, "echo", "said")
    assert (output.stdout, output.stderr) == ("said\n", "")


def test_start_up_files_that_read_input_start_nothing_wrong(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start(username=ssh_servers.account("fish"))
    home = server.client_key.parent / server.username / ".config" / "fish"
    home.mkdir(parents=True)
    (home / "config.fish").write_text("head -c 3 >/dev/null\n")
    with pytest.raises(CommandFailed, match="did not start touch"):
        shell_runs(tmp_path, server, "touch", "/tmp/a b")


@pytest.mark.parametrize("shell", ["false", "rbash"])
def test_an_account_without_a_usable_shell_is_said(tmp_path: Path, ssh_servers: SshServers, shell: str) -> None:
    server = ssh_servers.start(username=ssh_servers.account(shell))
    with pytest.raises(CommandFailed, match="login shell") as caught:
        shell_runs(tmp_path, server, "true")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("argv", "error", "words"),
    [
        (("no-such-program-x",), CommandMissing, "no-such-program-x is not installed"),
        (("sh", "-c", "echo why >&2; exit 3"), CommandFailed, "exit status 3"),
        (("sh", "-c", "kill -9 $$"), CommandFailed, "SIGKILL"),
        (("sh", "-c", "kill -TERM $$"), CommandFailed, "SIGTERM"),
        (("yes",), OutputTooLarge, "1048576"),
        (("sh", "-c", "yes >&2"), OutputTooLarge, "1048576"),
        (("a\0b",), CommandFailed, "NUL"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_failure_is_named(
    tmp_path: Path, plain_server: SshServer, argv: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        shell_runs(tmp_path, plain_server, *argv)


def test_a_signal_is_never_success_even_unchecked(tmp_path: Path, plain_server: SshServer) -> None:
    with pytest.raises(CommandFailed, match="SIGKILL"):
        shell_runs(tmp_path, plain_server, "sh", "-c", "kill -9 $$", how={"check": False})


def test_endless_output_is_cut_quickly_in_little_memory(tmp_path: Path, plain_server: SshServer) -> None:
    own = psutil.Process()
    before, started = own.memory_info().rss, time.monotonic()
    output = shell_runs(tmp_path, plain_server, "head", "-c", "1000000000", "/dev/zero", how={"partial": True})
    assert output.truncated and len(output.stdout) == 1024 * 1024
    assert time.monotonic() - started < 5
    assert own.memory_info().rss - before < 64 * 1024 * 1024
    until(lambda: not running(plain_server, "head"), "the program is gone")


def test_the_latest_output_is_kept_on_request(tmp_path: Path, plain_server: SshServer) -> None:
    output = shell_runs(tmp_path, plain_server, "seq", "1000000", how={"latest": True})
    assert output.truncated and output.stdout.endswith("999999\n1000000\n")


def test_output_that_is_not_utf8_is_replaced(tmp_path: Path, plain_server: SshServer) -> None:
    assert shell_runs(tmp_path, plain_server, "printf", "a\\377b\\n").stdout == "a\ufffdb\n"


SLEEPERS = ("sh", "-c", "sleep 1000 & sh -c 'trap \"\" TERM; sleep 1001 & while :; do sleep 1002; done'")


def running(server: SshServer, name: str) -> list[psutil.Process]:
    """The programs of that name that the server's account runs."""
    every = psutil.process_iter(["name", "username"])
    return [one for one in every if one.info["name"] == name and one.info["username"] == server.username]


def sleepers(server: SshServer) -> list[psutil.Process]:
    return running(server, "sleep")


@pytest.mark.parametrize("shell", ["sh", "fish", "csh"])
def test_a_deadline_ends_the_program_and_its_children(tmp_path: Path, ssh_servers: SshServers, shell: str) -> None:
    server = ssh_servers.start(username=ssh_servers.account(shell))

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = await opened(server.target(), "Shell")
            task = asyncio.create_task(port.run(*SLEEPERS))
            await asyncio.to_thread(until, lambda: len(sleepers(server)) >= 3, "the sleepers run")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: not sleepers(server), "the sleepers are gone")
            assert (await port.run("echo", "still here")).stdout == "still here\n"

    run(work())


def test_a_program_ends_with_its_connection(tmp_path: Path, plain_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = await opened(plain_server.target(), "Shell")
            task = asyncio.create_task(port.run(*SLEEPERS))
            await asyncio.to_thread(until, lambda: len(sleepers(plain_server)) >= 3, "the sleepers run")
            plain_server.cut_connections()
            with pytest.raises(ConnectionLost):
                await task
            await asyncio.to_thread(until, lambda: not sleepers(plain_server), "the sleepers are gone")

    run(work())


def test_twelve_calls_share_one_connection(tmp_path: Path, plain_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            target = plain_server.target()
            ports = await asyncio.gather(*(opened(target, "Shell") for _ in range(12)))
            outputs = await asyncio.gather(
                *(port.run("sh", "-c", f"sleep 0.2; echo {n}") for n, port in enumerate(ports))
            )
            assert [output.stdout for output in outputs] == [f"{n}\n" for n in range(12)]

    run(work())
    assert plain_server.log.count("Accepted publickey") == 1


def test_more_commands_than_sessions_wait_their_turn(tmp_path: Path, plain_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = await opened(plain_server.target(), "Shell")
            outputs = await asyncio.gather(*(port.run("echo", str(n)) for n in range(60)))
            assert [output.stdout for output in outputs] == [f"{n}\n" for n in range(60)]

    run(work())


def test_root_is_asked_of_sudo_only_as_the_policy_says(tmp_path: Path, plain_server: SshServer) -> None:
    need("ssh", None if shutil.which("sudo") else "sudo is not installed")
    full = {"sudo_policy": "full"}
    privileged = {"privileged": True}
    assert shell_runs(tmp_path, plain_server, "id", "-un", how=privileged).stdout == f"{plain_server.username}\n"
    with pytest.raises(PrivilegeRequired, match="sudo does not let"):
        shell_runs(tmp_path, plain_server, "id", "-un", how=privileged, constraints=full)


def test_a_server_that_forbids_commands_is_said(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start("MaxSessions 0")
    with pytest.raises(Unsupported, match="does not let the gateway run programs"):
        shell_runs(tmp_path, server, "true")


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "fish", "csh"])
def test_an_argument_that_no_kernel_takes_is_a_clear_error(tmp_path: Path, ssh_servers: SshServers, shell: str) -> None:
    server = ssh_servers.start(username=ssh_servers.account(shell))
    with pytest.raises(CommandFailed, match="too long"):
        shell_runs(tmp_path, server, "/usr/bin/printf", "%s", "y" * 2_000_000)


def test_values_of_the_environment_are_values(tmp_path: Path, plain_server: SshServer) -> None:
    env = {"A": "x LD_PRELOAD=/tmp/evil.so", "B": "-i", "C": "a\nLD_PRELOAD=/tmp/evil.so", "D": "$(id)"}
    output = shell_runs(tmp_path, plain_server, "/usr/bin/env", "-0", how={"env": env})
    seen = dict(entry.split("=", 1) for entry in output.stdout.split("\0") if entry)
    assert {name: seen.get(name) for name in env} == env and "LD_PRELOAD" not in seen


def test_a_banner_that_guesses_at_the_mark_is_not_taken_for_output(tmp_path: Path, ssh_servers: SshServers) -> None:
    """Start-up files can't know the random word; what looks like one starts nothing."""
    server = ssh_servers.start(username=ssh_servers.account("fish"))
    home = server.client_key.parent / server.username / ".config" / "fish"
    home.mkdir(parents=True)
    words = "; ".join(f"echo {word}" for word in ("0" * 16, "f" * 16, "deadbeefdeadbeef", "fake output"))
    (home / "config.fish").write_text(f"{words}\n")
    output = shell_runs(tmp_path, server, "/usr/bin/printf", "%s", "true")
    assert (output.stdout, output.stderr) == ("true", "")


def test_a_program_that_waits_for_input_gets_its_end(tmp_path: Path, plain_server: SshServer) -> None:
    assert shell_runs(tmp_path, plain_server, "sh", "-c", "cat; read x; echo $?").stdout == "1\n"


@pytest.mark.parametrize(
    "argument", ["y" * 131_072, "a\0b", "\U0001f389" * 40_000], ids=["long", "NUL", "long in bytes"]
)
def test_the_gateways_own_machine_refuses_the_same(argument: str) -> None:
    with pytest.raises(CommandFailed, match=r"too long|NUL"):
        run(LocalShell(permitted("get_service_status", make_target("local"), {})).run("printf", "%s", argument))
    longest = "y" * 131_071
    shell = LocalShell(permitted("get_service_status", make_target("local"), {}))
    assert run(shell.run("/usr/bin/printf", "%s", longest)).stdout == longest
