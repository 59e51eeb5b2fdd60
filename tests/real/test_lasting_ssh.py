"""Commands that last, on real SSH targets: they outlive the connection, the server's sessions and us."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from systemmanager.errors import PrivilegeRequired
from systemmanager.ports import Output
from tests.conftest import need
from tests.lasting import Follower
from tests.real.openssh import SshServer, SshServers, until
from tests.real.ssh_ports import ssh_executor
from tests.support import run


@pytest.fixture
def job() -> Iterator[Follower]:
    """A job of an account of this test's own; what it leaves goes with the account's home."""
    yield Follower()


def spools(server: SshServer) -> list[Path]:
    home = server.client_key.parent / server.username
    return sorted((home / ".local/state/systemmanager/jobs").glob("*.*"))


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "fish", "csh"])
def test_it_runs_under_every_login_shell(tmp_path: Path, ssh_servers: SshServers, job: Follower, shell: str) -> None:
    server = ssh_servers.start(username=ssh_servers.account(shell))
    argv = ("sh", "-c", 'printf "%s|" "$@" "$A"; echo wrong >&2; exit 3', "sh", "a b", "'!", "$x\n", "\\")

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(server.target(), "Shell"))
            wanted = await port.run(*argv, check=False, env={"A": "b c"})
            assert await port.detached("apply", *argv, check=False, env={"A": "b c"}) == wanted
            assert [one.name for one in spools(server)] == [f"{job.id}.apply"]
            await port.forget()

    run(work())
    assert spools(server) == []


@pytest.mark.parametrize("how", ["cut", "restarted"])
def test_a_lost_connection_is_made_again_and_nothing_is_lost(
    tmp_path: Path, ssh_servers: SshServers, job: Follower, how: str
) -> None:
    server = ssh_servers.start(username=ssh_servers.account("sh"))
    go = server.client_key.parent / server.username / "go"
    program = f"echo once >>canary; echo begun; until [ -e {go} ]; do sleep 0.05; done; echo done"

    async def work() -> Output:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(server.target(), "Shell"))
            task = asyncio.create_task(port.detached("apply", "sh", "-c", program))
            await asyncio.to_thread(until, lambda: job.text == "begun\n", "it has begun")
            if how == "cut":
                server.cut_connections()
                go.touch()
            else:
                server.stop()
                go.touch()
                server.run()
            output: Output = await task
            return output

    assert run(work()).stdout == job.text == "begun\ndone\n"
    assert (go.parent / "canary").read_text() == "once\n"
    assert server.log.count("Accepted publickey") == (2 if how == "cut" else 1)


@pytest.mark.parametrize("leaving", [True, False])
def test_cancelled_it_goes_on_when_we_leave_and_ends_when_we_do_not(
    tmp_path: Path, ssh_servers: SshServers, job: Follower, leaving: bool
) -> None:
    server = ssh_servers.start(username=ssh_servers.account("sh"))
    job.leaving = leaving

    def sleepers() -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline", "username"])
        mine = [one for one in every if one.info["username"] == server.username]
        return [one for one in mine if one.info["cmdline"] in (["sleep", "1000"], ["sleep", "1001"])]

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(server.target(), "Shell"))
            task = asyncio.create_task(port.detached("apply", "sh", "-c", "echo begun; sleep 1000 & sleep 1001"))
            await asyncio.to_thread(until, lambda: len(sleepers()) == 2, "it runs")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(sleepers()) == (2 if leaving else 0)

    run(work())
    for one in sleepers():
        one.kill()


def test_root_is_asked_of_sudo_by_the_account_itself(tmp_path: Path, ssh_servers: SshServers) -> None:
    need("ssh", None if shutil.which("sudo") else "sudo is not installed")
    server = ssh_servers.start(username=ssh_servers.account("sh"))
    allowed = Path("/etc/sudoers.d") / server.username

    async def work(*argv: str) -> Output:
        async with ssh_executor(tmp_path) as opened:
            port = Follower().follow(await opened(server.target(constraints={"sudo_policy": "full"}), "Shell"))
            output: Output = await port.detached("apply", *argv, privileged=True, env={"A": "b c"})
            await port.forget()
            return output

    with pytest.raises(PrivilegeRequired, match="sudo does not let the gateway run printenv"):
        run(work("printenv", "A", "SUDO_USER"))
    allowed.write_text(f"{server.username} ALL=(root) NOPASSWD: SETENV: /usr/bin/printenv\n")
    try:
        output = run(work("printenv", "A", "SUDO_USER"))
    finally:
        allowed.unlink()
    assert output.argv[:3] == ("sudo", "-n", "A=b c") and output.stdout == f"b c\n{server.username}\n"


def test_a_target_that_stays_away_ends_at_the_deadline(tmp_path: Path, ssh_servers: SshServers, job: Follower) -> None:
    server = ssh_servers.start(username=ssh_servers.account("sh"))

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(server.target(), "Shell"))
            task = asyncio.create_task(port.detached("apply", "sh", "-c", "echo begun; sleep 3"))
            await asyncio.to_thread(until, lambda: job.text == "begun\n", "it has begun")
            server.stop()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await task

    run(work())
