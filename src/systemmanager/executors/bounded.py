"""Output bounded where it is read, and what a command's end means; for local processes and SSH channels alike."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence

from systemmanager.errors import CommandFailed, CommandMissing, OutputTooLarge, PrivilegeRequired
from systemmanager.ports import Output
from systemmanager.request import Permit

CHUNK = 64 * 1024
LONGEST_ARGUMENT, MOST_ARGUMENTS = 131_071, 1_500_000
"""Bytes: MAX_ARG_STRLEN without its NUL, and what is surely below ARG_MAX (execve(2))."""
LIMITED_SUDO = frozenset({"systemctl", "journalctl", "apt-get", "dnf", "systemd-run"})
"""What `sudo_policy: limited` lets the gateway run as root."""


class Collected:
    """Both outputs of one command while they come in. `full` is set when the bound is reached.

    With `latest` it never is: what came first is dropped, and `cut` says so.
    """

    def __init__(self, limit: int, *, latest: bool = False) -> None:
        self._left = limit
        self._latest = limit if latest else 0
        self._chunks: tuple[list[bytes], list[bytes]] = ([], [])
        self._held = [0, 0]
        self.full = asyncio.Event()
        self.cut = False

    async def drain(self, read: Callable[[int], Awaitable[bytes]], index: int) -> None:
        """Read one stream to its end or to the bound."""
        while not self.full.is_set() and (chunk := await read(CHUNK)):
            self.add(chunk, index)

    def add(self, chunk: bytes, index: int) -> None:
        """Take what one stream said, as far as the bound lets it."""
        if self._latest:
            self._keep_latest(chunk, index)
            return
        if self._left:
            self._chunks[index].append(chunk[: self._left])
        if len(chunk) > self._left:
            self.full.set()
            self.cut = True
        self._left = max(0, self._left - len(chunk))

    def _keep_latest(self, chunk: bytes, index: int) -> None:
        self._chunks[index].append(chunk)
        self._held[index] += len(chunk)
        if self._held[index] > 2 * self._latest:
            self._chunks[index][:] = [b"".join(self._chunks[index])[-self._latest :]]
            self._held[index] = self._latest
            self.cut = True

    def text(self, index: int) -> str:
        return b"".join(self._chunks[index]).decode("utf-8", "replace")


def with_privilege(
    argv: Sequence[str], permit: Permit, *, root: bool, privileged: bool, env: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The command as it is run: behind `sudo -n` when root is asked for, needed, and granted by the target's policy.

    For a rehearsal it never is.

    sudo clears the environment, so `env` is then handed to sudo; without sudo the caller sets it.
    """
    _check(argv)
    policy = permit.target.constraints.sudo_policy
    if (
        privileged
        and not root
        and not permit.rehearsal
        and (policy == "full" or (policy == "limited" and argv[0] in LIMITED_SUDO))
    ):
        return ("sudo", "-n", *(f"{name}={value}" for name, value in (env or {}).items()), "--", *argv)
    return tuple(argv)


def _check(argv: Sequence[str]) -> None:
    """What no kernel takes is refused here, before anything of it is sent. Raises `CommandFailed`."""
    if any("\0" in value for value in argv):
        raise CommandFailed(f"{argv[0]!r} can't be given a NUL character")
    sizes = [len(value.encode("utf-8", "surrogateescape")) for value in argv]
    if max(sizes) > LONGEST_ARGUMENT or sum(sizes) > MOST_ARGUMENTS:
        raise CommandFailed(
            f"the arguments of {argv[0][:100]} are too long: {sum(sizes)} bytes",
            hint=f"Linux takes {LONGEST_ARGUMENT} bytes in one argument and about 2 MB in all.",
        )


def finished(output: Output, *, check: bool, partial: bool, limit: int, latest: bool = False) -> Output:
    """Judge a command that has ended by itself or at the bound. Raises what `Shell.run` promises."""
    program = output.argv[output.argv.index("--") + 1] if output.argv[:2] == ("sudo", "-n") else output.argv[0]
    if output.truncated and not latest:
        if partial:
            return output
        raise OutputTooLarge(f"{program} said more than {limit} bytes", hint="Ask for less, or raise max_output_bytes.")
    if output.argv[0] == "sudo" and output.status == 1 and "sudo:" in output.stderr:
        if "command not found" in output.stderr:
            raise command_missing(program)
        variable = "set the following environment variables" in output.stderr
        raise PrivilegeRequired(
            f"sudo does not let the gateway run {program}{' with its environment' if variable else ''}",
            hint="Write `NOPASSWD: SETENV:` before it in sudoers."
            if variable
            else "Allow it without a password in sudoers, or change sudo_policy.",
            details={"stderr": tail(output.stderr)},
        )
    if output.status == 127 and not output.stdout and ("not found" in output.stderr or "No such file" in output.stderr):
        raise command_missing(program)
    if check and output.status != 0:
        raise CommandFailed(
            f"{program} ended with exit status {output.status}",
            details={"stderr": tail(output.stderr or output.stdout)},
        )
    return output


def command_missing(program: str) -> CommandMissing:
    return CommandMissing(f"{program} is not installed on the target", hint=f"Install {program} there.")


def tail(text: str, length: int = 600) -> str:
    """The end of what a program said: that is where the reason stands."""
    stripped = text.strip()
    return stripped if len(stripped) <= length else "..." + stripped[-length:]


def find_program(name: str) -> str | None:
    """A program's path on the gateway's own machine, looking in the administrators' folders too."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin:/run/current-system/sw/bin")
