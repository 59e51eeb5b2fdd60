"""Git on the gateway: one branch or one commit of one repository, shallow, into a folder of its own.

Nothing of the machine's or the repository's own configuration counts: no system or user file, no hook, no filter, no
submodule, no redirect, no proxy, and no way of transport but https and ssh. The host was resolved and judged before;
git gets the address, so that what was judged is what is connected to.
"""

import asyncio
import base64
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from systemmanager.errors import (
    AuthRefused,
    CommandFailed,
    CommandMissing,
    Denied,
    HostKeyUnknown,
    NotFound,
    OutputTooLarge,
    TlsFailed,
    Unreachable,
)
from systemmanager.executors.bounded import Collected, find_program, tail
from systemmanager.executors.programs import run_program
from systemmanager.ports import Output
from systemmanager.stacks import Repository

MOST_FETCHED = 256 * 1024 * 1024
MOST_CHECKED_OUT = 256 * 1024 * 1024
MOST_FILES = 20_000
MOST_SAID = 8 * 1024 * 1024
FETCH_TIME = 120.0
"""Seconds that a fetch may take."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What opens a repository, as files: `token` holds `user:password` or a token, `key` a private SSH key.

    They are looked for by the host's name: `git.HOST.token`, `git.HOST.key`, `git.known_hosts`.
    """

    token: str | None = None
    key: Path | None = None
    known_hosts: tuple[Path, ...] = ()
    authorities: Path | None = None


def secrets_for(host: str, folders: Sequence[Path], known_hosts: Sequence[Path]) -> Secrets:
    """The credentials for one host: the first file of each name that is there."""

    def first(name: str) -> Path | None:
        return next((path for folder in folders if (path := folder / name).is_file()), None)

    file = first(f"git.{host}.token")
    token = file.read_text(encoding="utf-8").strip() if file else None
    if token and any(ord(char) < 33 or ord(char) > 126 for char in token):
        raise AuthRefused(f"git.{host}.token holds more than one word")
    return Secrets(token, first(f"git.{host}.key"), tuple(known_hosts), first(f"git.{host}.ca"))


class Git:
    """Commands in one repository below `folder`, on the way to `repository` at `addresses`."""

    def __init__(self, folder: Path, repository: Repository, addresses: Sequence[str], secrets: Secrets) -> None:
        self._folder, self._repository, self._addresses = folder, repository, addresses
        self._secrets = secrets
        self._home = folder / "home"

    async def fetch(self, reference: str) -> str:
        """Fetch one branch (`refs/heads/...`) or commit, without its history; answers the commit's id."""
        url = self._repository.url
        for path in (self._home, self._folder / "git"):
            path.mkdir(mode=0o700, parents=True)
        await self._run("init", "--quiet", "--bare", "--template=", str(self._folder / "git"))
        config = self._home / "config"
        config.write_text(self._config())
        config.chmod(0o600)
        try:
            async with asyncio.timeout(FETCH_TIME), anyio.create_task_group() as group:
                group.start_soon(self._watch_size)
                await self._run(
                    "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance",
                    "--end-of-options", url, f"+{reference}:refs/stack",
                )  # fmt: skip
                group.cancel_scope.cancel()
        except* OutputTooLarge as errors:
            raise errors.exceptions[0] from None
        except* (CommandFailed, NotFound, TlsFailed, AuthRefused, Unreachable, HostKeyUnknown) as errors:
            raise errors.exceptions[0] from None
        except* TimeoutError as errors:
            raise Unreachable(f"{self._repository.host} did not send the branch within {FETCH_TIME:g} s") from errors
        finally:
            config.unlink(missing_ok=True)
        return (await self._run("rev-parse", "--verify", "--end-of-options", "refs/stack^{commit}")).stdout.strip()

    async def _watch_size(self) -> None:
        """Raises when what is fetched grows over the bound; the fetch is then cancelled."""
        while True:
            if _size(self._folder / "git") > MOST_FETCHED:
                raise OutputTooLarge(
                    f"the repository is larger than {MOST_FETCHED // 2**20} MiB", hint="Keep large files out of it."
                )
            await anyio.sleep(0.1)

    async def checkout(self, commit: str, place: Path) -> None:
        """Write a commit's files to `place`. Raises for what is too large and for links that lead out of it."""
        listing = await self._run("ls-tree", "-r", "-z", "-l", "--full-tree", commit)
        links = _checked(listing.stdout)
        await anyio.Path(place).mkdir(mode=0o700)
        await self._run("read-tree", "--index-output", str(self._folder / "index"), commit)
        await self._run(
            "--work-tree", str(place), "checkout-index", "--all", "--force", "--quiet", index=self._folder / "index"
        )
        await asyncio.to_thread(check_links, place, links)

    def _config(self) -> str:
        """Configuration that holds for this fetch, secrets included: a file that only the gateway may read."""
        repository, lines = self._repository, list[str]()
        lines += ["[http]", "\tfollowRedirects = false", "\tproxy =", "\tlowSpeedLimit = 1", "\tlowSpeedTime = 30"]
        shown = ",".join(f"[{address}]" if ":" in address else address for address in self._addresses)
        lines.append(f"\tcurloptResolve = {repository.host}:{repository.port}:{shown}")
        if self._secrets.authorities:
            lines.append(f"\tsslCAInfo = {self._secrets.authorities}")
        if self._secrets.token and repository.scheme == "https":
            pair = self._secrets.token if ":" in self._secrets.token else f"x-access-token:{self._secrets.token}"
            origin = repository.url.partition("://")[2].partition("/")[0]
            lines.append(f'[http "https://{origin}/"]')
            lines.append(f"\textraHeader = Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
        lines += ["[fetch]", "\tunpackLimit = 1", "\tfsckObjects = true", "[gc]", "\tauto = 0"]
        return "\n".join(lines) + "\n"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self._home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._home / "config"),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": self._repository.scheme,
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": self._ssh(),
            "GIT_SSH_VARIANT": "ssh",
        }

    def _ssh(self) -> str:
        """Git gives this to a shell, so every word is quoted; the address is the judged one."""
        known = " ".join(f'"{path}"' for path in self._secrets.known_hosts)
        options = [
            "BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", f"UserKnownHostsFile={known}",
            "GlobalKnownHostsFile=none", "IdentitiesOnly=yes", "IdentityAgent=none", "ForwardAgent=no",
            "ProxyCommand=none", "ProxyJump=none", "PermitLocalCommand=no", "ControlMaster=no", "ControlPath=none",
            "ConnectTimeout=15", f"HostName={self._addresses[0]}", f"HostKeyAlias={self._host_key_alias}",
            "CheckHostIP=no", f"IdentityFile={self._secrets.key or 'none'}", "ServerAliveInterval=10",
        ]  # fmt: skip
        ssh = find_program("ssh") or "ssh"
        return f"{_quoted(ssh)} -F none -T " + " ".join(f"-o {_quoted(option)}" for option in options)

    @property
    def _host_key_alias(self) -> str:
        port = self._repository.port
        return self._repository.host if port == 22 else f"[{self._repository.host}]:{port}"

    async def _run(self, *argv: str, index: Path | None = None) -> Output:
        program = find_program("git")
        if program is None:
            raise git_missing()
        fixed = [
            "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.attributesFile=/dev/null",
            "-c", "submodule.recurse=false", "-c", "protocol.allow=never",
            "-c", f"protocol.{self._repository.scheme}.allow=always", "-c", "credential.helper=",
            "-c", "core.protectHFS=true", "-c", "core.protectNTFS=true", "-c", "advice.detachedHead=false",
            f"--git-dir={self._folder / 'git'}",
        ]  # fmt: skip
        environment = self._environment() | ({"GIT_INDEX_FILE": str(index)} if index else {})
        collected = Collected(MOST_SAID)
        command = (program, *fixed, *argv) if argv[0] != "init" else (program, *argv)
        status = await run_program(command, collected, environment, cwd=self._folder)
        said = collected.text(1).strip()
        if collected.cut:
            raise OutputTooLarge("git said more than is read")
        if status:
            raise _failed(argv[0], status, said, self._repository)
        return Output(command, status, collected.text(0), said)


def git_missing() -> CommandMissing:
    return CommandMissing("git is not installed on the gateway", hint="Install git there.")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _failed(command: str, status: int, said: str, repository: Repository) -> Exception:
    """What git's words mean; they are kept as details, without the URL's secrets, which it never had."""
    details, host = {"stderr": tail(said)}, repository.host
    lowered = said.lower()
    if command == "fetch":
        if "couldn't find remote ref" in lowered or "no such remote ref" in lowered or "not our ref" in lowered:
            return NotFound(
                f"{host} has no such branch or commit in that repository",
                hint="`branch` names a branch.",
                details=details,
            )
        if "host key verification failed" in lowered or "no ed25519 host key is known" in lowered:
            return HostKeyUnknown(
                f"the host key of {host} is not known",
                hint="Put it into known_hosts of the state folder.",
                details=details,
            )
        if re.search(r"permission denied|could not read (username|password)|authentication failed|\b40[13]\b", lowered):
            return AuthRefused(
                f"{host} did not let the gateway read the repository",
                hint=f"Is there a credential git.{host}.token or git.{host}.key?",
                details=details,
            )
        if "certificate" in lowered or "ssl" in lowered:
            return TlsFailed(f"{host} shows a certificate that is not to be trusted", details=details)
        if re.search(r"repository .*(not found|does not exist|not exported)|not appear to be a git repo", lowered):
            return NotFound(
                f"{host} has no such repository, or hides it",
                hint=f"Look at repo_url; a private one needs git.{host}.token or git.{host}.key.",
                details=details,
            )
        if re.search(r"could not resolve|failed to connect|connection (refused|timed out|closed|reset)", lowered):
            return Unreachable(f"the repository could not be fetched from {host}", details=details)
        if "cannot run ssh" in lowered or "ssh: not found" in lowered:
            return CommandMissing("ssh is not installed on the gateway", hint="Install openssh-client there.")
    return CommandFailed(f"git {command} ended with exit status {status}", details=details)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:
                continue
    return total


def _checked(listing: str) -> list[str]:
    """The symbolic links of a commit, from `ls-tree -r -z -l`. Raises for too many or too large files."""
    links, size, count = list[str](), 0, 0
    for row in listing.split("\0"):
        about, _, path = row.partition("\t")
        if not path:
            continue
        mode, _, _, length = about.split()
        count, size = count + 1, size + (int(length) if length != "-" else 0)
        if mode == "120000":
            links.append(path)
    if count > MOST_FILES or size > MOST_CHECKED_OUT:
        raise OutputTooLarge(f"the repository holds {count} files of {size} bytes, more than a stack may")
    return links


def check_links(place: Path, links: Sequence[str]) -> None:
    """Every link leads to something inside the checkout, by all links on its way."""
    root = place.resolve()
    for link in links:
        try:
            inside = (place / link).resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # a loop of links
            inside = False
        if not inside:
            raise Denied(f"{link[:200]} of the repository is a link that leads out of it", code="compose_refused")


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A fresh folder for one checkout, gone afterwards."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="checkout-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
