"""Docker's Compose v2 on the gateway, pointed at a target's engine.

It gets no variable of the gateway's own, no configuration folder and no credential helper; `up` takes nothing but a
`Judged`, to the letter.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from systemmanager.errors import CommandFailed, CommandMissing, OutputTooLarge, UnreadableOutput
from systemmanager.executors.bounded import Collected, find_program, tail
from systemmanager.executors.programs import run_program
from systemmanager.stacks import Judged

PLUGINS = (
    "/usr/local/lib/docker/cli-plugins", "/usr/local/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins", "/run/current-system/sw/libexec/docker/cli-plugins",
)  # fmt: skip
"""Where packages put Compose; the program there runs by itself too."""

MOST_CONFIG = 4 * 1024 * 1024
MOST_SAID = 64 * 1024
_UNSET = re.compile(r'The \\?"(\w{1,128})\\?" variable is not set')


@dataclass(frozen=True, slots=True)
class Engine:
    """How Compose reaches an engine: `unix://...` or `tcp://...`, and the folder of its TLS files."""

    url: str
    certificates: str | None = None

    def environment(self) -> dict[str, str]:
        tls = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": self.certificates} if self.certificates else {}
        return {"DOCKER_HOST": self.url, **tls}


def find() -> str | None:
    """Compose v2 or newer: the standalone program, else Docker's plugin; None where there is none."""
    candidates = [find_program("docker-compose"), *(f"{folder}/docker-compose" for folder in PLUGINS)]
    return next(
        (path for path in candidates if path and os.access(path, os.X_OK) and _is_second(path, _stamp(path))), None
    )


def _stamp(path: str) -> int:
    return Path(path).stat().st_mtime_ns


@lru_cache(maxsize=16)
def _is_second(path: str, stamp: int) -> bool:
    """Whether the program says that it is Compose 2 or newer; asked once for each file."""
    try:
        said = subprocess.run(  # noqa: S603  a path of a fixed list
            [path, "version", "--short"],
            capture_output=True,
            text=True,
            timeout=10,
            env={"PATH": os.defpath},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"v?(\d+)\.", said.stdout.strip())
    return said.returncode == 0 and found is not None and int(found[1]) >= 2


def lacking() -> list[str]:
    """What this machine lacks for stacks: names of programs."""
    there = {"git": find_program("git"), "Docker Compose v2": find()}
    return [name for name, path in there.items() if not path]


def compose_missing() -> CommandMissing:
    return CommandMissing(
        "Docker Compose v2 is not installed on the gateway",
        hint="Install docker-compose (2 or newer), or the plugin docker-compose-plugin.",
    )


class Compose:
    """Compose for one stack. `home` is a private folder; `folder` is where its files are relative to; what it runs
    `holds` the stack's lock."""

    def __init__(self, stack: str, engine: Engine, home: Path, folder: Path, holds: Sequence[int] = ()) -> None:
        self._stack, self._engine, self._home, self._folder, self._holds = stack, engine, home, folder, holds

    async def config(self, file: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """The resolved configuration, and the variables in it that nobody set. Every file that this reads was judged
        before."""
        said = await self._run(
            "-f", str(file), "config", "--format", "json", environment=environment, limit=MOST_CONFIG
        )
        try:
            found = json.loads(said.text(0))
        except ValueError as error:
            raise UnreadableOutput("docker compose config answered no JSON") from error
        if not isinstance(found, dict):
            raise UnreadableOutput("docker compose config answered no object")
        return found, sorted(set(_UNSET.findall(said.text(1))))

    async def build(self, judged: Judged) -> None:
        await self._with(judged, "build", "--quiet")

    async def up(self, judged: Judged, services: Sequence[str] = ()) -> None:
        """Make the stack what is judged; images are there by now."""
        await self._with(
            judged, "up", "--detach", "--no-color", "--no-build", "--pull", "never", "--remove-orphans", *services
        )

    async def down(self, volumes: bool) -> None:
        """Remove what the engine has of the stack; needs no file."""
        await self._run(
            "down", "--remove-orphans", *(["--volumes"] if volumes else []), environment={}, limit=MOST_SAID
        )

    async def _with(self, judged: Judged, *argv: str) -> None:
        assert type(judged) is Judged, "only what was judged runs"
        await self._run("-f", "-", *argv, environment=judged.environment, limit=MOST_SAID, stdin=judged.text.encode())

    async def _run(self, *argv: str, environment: Mapping[str, str], limit: int, stdin: bytes = b"") -> Collected:
        program = await asyncio.to_thread(find)
        if program is None:
            raise compose_missing()
        fixed = ["--project-name", self._stack, "--env-file", "/dev/null", "--project-directory", str(self._folder)]
        fixed += ["--ansi", "never", "--progress", "plain"]
        collected = Collected(limit, latest=limit == MOST_SAID)
        status = await run_program(
            (program, *fixed, *argv),
            collected,
            {**environment, **self._environment()},
            stdin=stdin,
            cwd=self._folder,
            holds=self._holds,
        )
        if collected.cut and limit != MOST_SAID:
            raise OutputTooLarge("the resolved configuration is too large")
        if status:
            verb = next(word for word in argv if word in ("config", "build", "up", "down"))
            said = re.sub(r"^time=\"[^\"]*\" level=\w+ msg=", "", collected.text(1), flags=re.MULTILINE)
            raise CommandFailed(
                f"docker compose {verb} ended with exit status {status}",
                hint="`details` has what Compose said.",
                details={"stderr": tail(said.replace(str(self._folder), "."), 1500)},
            )
        return collected

    def _environment(self) -> dict[str, str]:
        """What is fixed, whatever a stack's variables are called: no helper, plugin or remote file is ever started."""
        return {
            "PATH": "/nonexistent",
            "HOME": str(self._home),
            "DOCKER_CONFIG": str(self._home),
            "LC_ALL": "C.UTF-8",
            "COMPOSE_DISABLE_ENV_FILE": "1",
            "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "0",
            "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "0",
            "COMPOSE_IGNORE_ORPHANS": "0",
            "COMPOSE_STATUS_STDOUT": "0",
            "DOCKER_CLI_HINTS": "0",
            **self._engine.environment(),
        }
