"""Commands that last, on this machine: what comes back, what ends them, and what does not."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from systemmanager.errors import CommandFailed, CommandMissing, EndedUnknown, GatewayError
from systemmanager.executors.local import LocalShell
from systemmanager.ports import Output
from systemmanager.request import Permit
from tests.conftest import need
from tests.lasting import Follower, base, following
from tests.real.openssh import until
from tests.support import run, target

HOSTILE = ["", "a b", "'", '"', "$HOME", "${IFS}", "`id`", "*", "\\", "a\n", "\n\n", "--", "-x", "é 漢字", "%s", "\x01"]


def local(**constraints: Any) -> LocalShell:
    return LocalShell(Permit("call", target(constraints=constraints), (), None, 10))  # type: ignore[arg-type]


class Under(LocalShell):
    """A shell on a target whose /bin/sh is another one."""

    def __init__(self, permit: Permit, shell: str) -> None:
        super().__init__(permit)
        self._shell = shell

    async def run(self, *argv: str, **how: Any) -> Output:
        mounted = 'mount --bind "$1" "$(readlink -f /bin/sh)" && shift && exec "$@"'
        return await super().run("unshare", "-m", "sh", "-c", mounted, "sh", self._shell, *argv, **how)


@pytest.fixture
def job() -> Iterator[Follower]:
    with following() as follower:
        yield follower


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, job: Follower) -> Any:
    program = shutil.which(request.param)
    need("ssh", None if program and os.geteuid() == 0 else f"{request.param} is not installed, or we are not root")
    return job.follow(Under(local()._permit, str(program)))


def seen(argv: tuple[str, ...], shell: Any, **how: Any) -> Any:
    """How a command ended: its output, or the error."""
    try:
        output = run(shell.detached("apply", *argv, **how))
    except GatewayError as error:
        return error.code, error.message
    return output.status, output.stdout, output.stderr


ENDS = [
    ("printf", "%s|", *HOSTILE),
    ("sh", "-c", "echo out; echo err >&2; exit 3"),
    ("sh", "-c", "kill -9 $$"),
    ("sh", "-c", "exit 137"),
    ("no-such-program", "x"),
    ("main", "x"),
    ("sh", "-c", "umask; pwd; cat; echo $A; echo $LC_ALL"),
    ("sh", "-c", "sleep 30 & echo started"),
]


@pytest.mark.parametrize("argv", ENDS, ids=lambda argv: " ".join(argv)[:20])
def test_it_ends_as_it_would_have_ended_attached(shell: Any, argv: tuple[str, ...]) -> None:
    how: dict[str, Any] = {"check": False, "env": {"A": "$(id) 'x'\n"}}
    attached = local()
    try:
        output = run(attached.run(*argv, latest=True, **how))
        wanted: Any = (output.status, output.stdout, output.stderr)
    except GatewayError as error:
        wanted = (error.code, error.message)
    started = time.monotonic()
    assert seen(argv, shell, **how) == wanted
    assert time.monotonic() - started < 10


def test_every_byte_of_long_output_is_heard_and_the_end_is_answered(shell: Any, job: Follower) -> None:
    output = run(shell.detached("apply", "sh", "-c", "seq 1 300000 | sed s/^/é/"))
    assert job.text.splitlines() == [f"é{number}" for number in range(1, 300_001)]
    assert output.truncated and output.stdout.endswith("é299999\né300000\n")


def test_beyond_its_bound_the_spool_keeps_the_end_and_the_program_goes_on(shell: Any, job: Follower) -> None:
    output = run(shell.detached("apply", "sh", "-c", "yes x | head -c 18000000; yes y | head -c 100000; echo end >&2"))
    assert (output.status, output.stderr, output.truncated) == (0, "end\n", True)
    assert output.stdout.endswith("xxy\ny\n"[-4:])
    (spool,) = job.spools
    assert sum(file.stat().st_size for file in spool.iterdir() if file.is_file()) < 17 * 1024 * 1024


def test_it_is_followed_again_from_its_first_byte_and_started_once(tmp_path: Path, job: Follower) -> None:
    program = f"echo once >>{tmp_path}/canary; echo begun; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo done"

    async def work() -> Any:
        task = asyncio.create_task(job.follow(local()).detached("apply", "sh", "-c", program))
        await asyncio.to_thread(until, lambda: job.text == "begun\n", "it has begun")
        job.leaving = True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (tmp_path / "go").touch()
        job.heard.clear()
        answers = [await job.follow(local()).detached("apply", "sh", "-c", program) for _ in range(2)]
        assert answers[0] == answers[1]
        return answers[0]

    assert run(work()).stdout == "begun\ndone\n" and job.text == "begun\ndone\n" * 2
    assert (tmp_path / "canary").read_text() == "once\n"


def test_cancelled_it_ends_with_its_children(job: Follower) -> None:
    """Those that ignore SIGTERM, too."""
    seconds = f"1000.{os.getpid()}"
    program = f"sleep {seconds} & trap '' TERM; echo begun; while :; do sleep {seconds}; done"

    def sleepers() -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", seconds]]

    async def work() -> None:
        task = asyncio.create_task(job.follow(local()).detached("apply", "sh", "-c", program))
        await asyncio.to_thread(until, lambda: len(sleepers()) == 2, "the sleepers run")
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 4.5
        assert not sleepers()
        with pytest.raises(EndedUnknown, match="was ended before its time"):
            await job.follow(local()).detached("apply", "sh", "-c", program)

    run(work())


def test_cancelled_before_it_begins_it_never_begins(tmp_path: Path, job: Follower) -> None:
    async def work() -> None:
        shell = job.follow(local())
        await shell._end(f"{job.id}.apply", "")
        with pytest.raises(EndedUnknown, match="called off"):
            await shell.detached("apply", "touch", str(tmp_path / "canary"))

    run(work())
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("victim", ["whole group", "runner"])
def test_one_that_is_gone_without_a_status_is_said_so(job: Follower, victim: str) -> None:
    async def work() -> None:
        task = asyncio.create_task(job.follow(local()).detached("apply", "sh", "-c", "echo half way; sleep 5"))
        await asyncio.to_thread(until, lambda: "half way" in job.text, "it has begun")
        pid = int(str((job.spools[0] / "begun").readlink()).partition(".")[0])
        (os.killpg if victim == "whole group" else os.kill)(pid, signal.SIGKILL)
        with pytest.raises(EndedUnknown, match="without leaving its exit status") as caught:
            await task
        assert caught.value.code == "ended_without_status" and caught.value.details == {"stderr": "half way"}
        assert not caught.value.retryable

    run(work())


def test_another_process_of_the_same_number_is_not_taken_for_it(job: Follower) -> None:
    spool = base() / f"{job.id}.apply"
    run(job.follow(local()).detached("other", "true"))
    spool.mkdir()
    (spool / "begun").symlink_to(f"{os.getpid()}.1.{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}")
    with pytest.raises(EndedUnknown, match="without leaving"):
        run(job.follow(local()).detached("apply", "true"))


def test_a_spool_that_was_made_and_then_left_is_started(tmp_path: Path, job: Follower) -> None:
    """As by a gateway that was killed between two lines of the script."""
    spool = base() / f"{job.id}.apply"
    run(job.follow(local()).detached("other", "true"))
    spool.mkdir(mode=0o700)
    (spool / "run").write_text("main() {\necho half a progr")
    assert run(job.follow(local()).detached("apply", "echo", "x")).stdout == "x\n"


def test_a_second_runner_does_nothing(tmp_path: Path, job: Follower) -> None:
    """One that was started late, by a gateway that is gone."""
    wanted = run(job.follow(local()).detached("apply", "sh", "-c", f"echo once >>{tmp_path}/canary; echo out"))
    (spool,) = job.spools
    subprocess.run(["/bin/sh", str(spool / "run"), str(spool), "0022"], check=True, timeout=20)
    assert (tmp_path / "canary").read_text() == "once\n"
    assert run(job.follow(local()).detached("apply", "true")).stdout == wanted.stdout


def test_what_is_left_is_private_and_forgotten_on_request(job: Follower) -> None:
    shell = job.follow(local())
    run(shell.detached("apply", "true"))
    (spool,) = job.spools
    assert all(one.lstat().st_mode & 0o077 == 0 for one in (base(), spool, *spool.iterdir()) if not one.is_symlink())
    run(shell.forget())
    assert job.spools == []


def test_old_spools_are_swept_and_nothing_else_is(job: Follower) -> None:
    shell = job.follow(local())
    run(shell.detached("apply", "true"))
    old, strange = base() / f"{'0' * 15}{job.id[0]}.old", base() / f"of-others-{job.id}"
    for folder in (old, strange):
        folder.mkdir()
        os.utime(folder, (0, 0))
    run(shell.detached("again", "true"))
    assert not old.exists() and strange.exists() and len(job.spools) == 2
    strange.rmdir()


def test_without_a_job_it_is_a_plain_command() -> None:
    shell = local()
    assert run(shell.detached("apply", "echo", "x")).stdout == "x\n"
    with pytest.raises(CommandFailed, match="exit status 3"):
        run(shell.detached("apply", "sh", "-c", "exit 3"))
    assert run(shell.remember("before", _one)) == 1


async def _one() -> int:
    return 1


async def _two() -> int:
    return 2


def test_what_is_remembered_is_read_once_per_job(job: Follower) -> None:
    assert run(job.follow(local()).remember("before", _one)) == 1
    assert run(job.follow(local()).remember("before", _two)) == 1
    assert job.kept == {"before": 1}


def test_a_failed_command_is_judged_like_any_other(job: Follower) -> None:
    with pytest.raises(CommandFailed, match="sh ended with exit status 4") as caught:
        run(job.follow(local()).detached("apply", "sh", "-c", "echo why >&2; exit 4"))
    assert caught.value.details == {"stderr": "why"}
    with pytest.raises(CommandMissing):
        run(job.follow(local()).detached("b", "no-such-program"))


class Unwritable(LocalShell):
    """A target whose spools can't be made where they belong."""

    async def run(self, *argv: str, env: Mapping[str, str] | None = None, **how: Any) -> Output:
        script = argv[2].replace("/var/lib/systemmanager/jobs", self.place).replace("${XDG_STATE_HOME:-", "${PLACE:-")
        return await super().run(*argv[:2], script, *argv[3:], env={"PLACE": self.place, **(env or {})}, **how)

    place = ""


@pytest.mark.parametrize("kind", ["link", "of another", "file above"])
def test_a_place_that_is_not_its_own_is_refused(tmp_path: Path, job: Follower, kind: str) -> None:
    need("ssh", None if os.geteuid() == 0 else "only root gives files away")
    shell = job.follow(Unwritable(local()._permit))
    place = tmp_path / "jobs"
    shell.place = str(place)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "of another":
        place.mkdir()
        os.chown(place, 12345, 12345)
    else:
        place.write_text("")
        shell.place += "/below"
    with pytest.raises(CommandFailed, match=r"not the gateway's own|can't make"):
        run(shell.detached("apply", "touch", str(tmp_path / "canary")))
    assert not (tmp_path / "canary").exists()


def test_whoever_is_killed_where_it_runs_once_and_all_of_its_output_is_heard(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.real.lasting_victim", str(tmp_path), "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    rounds = json.loads(done.stdout)
    for one in rounds:
        shutil.rmtree(base() / f"{one['id']}.apply")
    assert [one for one in rounds if one["ran"] != "ran\n" or not one["whole"]] == [] and len(rounds) == 40
