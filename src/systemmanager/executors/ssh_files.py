"""Files of an SSH target, over SFTP: below the allowed paths as the target itself resolves them, and judged again
once they are open.

SFTP has no openat and tells no inode: between judging and opening a name may come to mean something else. So after the
opening the path is resolved and looked at again, and both looks and the open file must agree. Who may rename something
on the way could still swap it there and back, just in time, for something that looks alike; where others than root may,
everything is done three times and must come out alike.
"""

import asyncio
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

import asyncssh

from systemmanager.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NotFound,
    PathOutside,
    TargetError,
    UnreadableOutput,
    Unsupported,
    did_you_mean,
)
from systemmanager.executors import procfs
from systemmanager.executors.own_files import OwnFiles, not_a_file
from systemmanager.executors.ssh_connections import Kept
from systemmanager.executors.ssh_sftp import (
    CLOSE,
    FSTAT,
    LSTAT,
    MOST,
    OPENDIR,
    READDIR,
    READLINK,
    REALPATH,
    Attributes,
    Failed,
    Request,
    Sftp,
    as_attributes,
    as_names,
    as_string,
    on_handle,
    on_path,
    open_to_read,
    read_from,
    small_file,
)
from systemmanager.ports import FileInfo, FileKind
from systemmanager.request import Permit

MAX_ENTRIES = 10_000
_AT_ONCE = 64
_LOOKS = 3


async def sftp_of(kept: Kept) -> Sftp:
    """The connection's one SFTP channel, opened when it is first asked for, and again when it hangs or has closed."""
    lock: asyncio.Lock = kept.memory.setdefault("sftp lock", asyncio.Lock())
    async with lock:
        channel: Sftp | None = kept.memory.get("sftp")
        if channel is not None and channel.usable:
            return channel
        if channel is not None and channel.channel is not None:
            channel.channel.close()
        try:
            channel = await kept.session(Sftp(), subsystem="sftp")
            await _started(channel)
        except asyncssh.ChannelOpenError as error:
            raise Unsupported(
                f"{kept.target.id!r} has no SFTP: {error.reason}",
                hint="Set 'Subsystem sftp internal-sftp' in its sshd_config.",
            ) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"the SFTP server of {kept.target.id!r} did not start") from error
        except Failed as error:
            if kept.gone:
                raise kept.lost() from error
            raise UnreadableOutput(
                f"the SFTP server of {kept.target.id!r} does not speak SFTP",
                hint="Start-up files of the account's shell may print something.",
            ) from error
        kept.memory["sftp"] = channel
        return channel


async def _started(channel: Sftp) -> None:
    """Wait for the server's greeting; a channel that does not get there is closed, also when the caller goes away."""
    ready = False
    try:
        await channel.start()
        ready = True
    finally:
        if not ready and channel.channel is not None:
            channel.channel.close()


class SshFiles:
    def __init__(self, permit: Permit, kept: Kept, own: OwnFiles) -> None:
        self._roots = permit.target.constraints.paths
        self._kept = kept
        self._own = own if kept.same_machine else None

    async def info(self, path: str) -> FileInfo:
        sftp = await sftp_of(self._kept)
        real, found = await self._found(sftp, path)
        users, groups = await self._names(sftp)
        return _describe(path.encode(), found, users, groups, real if real != _clean(path) else None)

    async def list(self, path: str) -> Sequence[FileInfo]:
        sftp = await sftp_of(self._kept)
        real, found = await self._found(sftp, path)
        if not stat.S_ISDIR(found.mode):
            raise Unsupported(f"{path} is not a directory", hint="Use info or read on it.")

        async def once() -> list[tuple[bytes, bytes, Attributes]]:
            handle = as_string(await self._one(sftp, on_path(OPENDIR, real), path))
            try:
                await self._unchanged(sftp, path, real, found, found)
                return await _entries(sftp, handle)
            finally:
                sftp.forget(on_handle(CLOSE, handle))

        looks = [await once() for _ in range(await _looks(sftp, real))]
        entries = looks[-1]
        if any([name for name, _, _ in look] != [name for name, _, _ in entries] for look in looks):
            raise _changed(path)
        users, groups = await self._names(sftp)
        places = [real.rstrip(b"/") + b"/" + name for name, _, _ in entries]
        links = [place for place, entry in zip(places, entries, strict=True) if stat.S_ISLNK(entry[2].mode)]
        led = await _link_targets(sftp, links)
        return [
            _describe(place, attributes, users, groups, led.get(place), _link_count(line))
            for place, (_, line, attributes) in zip(places, entries, strict=True)
        ]

    async def read(self, path: str, offset: int, size: int) -> bytes:
        sftp = await sftp_of(self._kept)
        real, found = await self._found(sftp, path)
        if not stat.S_ISREG(found.mode):
            # Not even opened: opening a pipe waits for somebody to write, and would hang the SFTP server whole.
            raise not_a_file(path, found.mode)

        async def once() -> bytes:
            return await self._read_once(sftp, path, real, found, (offset, size))

        looks = [await once() for _ in range(await _looks(sftp, real))]
        shortest = min(looks, key=len)  # a log may have grown from one look to the next
        if not all(look.startswith(shortest) for look in looks):
            raise _changed(path)
        return shortest

    async def _read_once(self, sftp: Sftp, path: str, real: bytes, found: Attributes, part: tuple[int, int]) -> bytes:
        handle = as_string(await self._one(sftp, open_to_read(real), path))
        try:
            opened = as_attributes(await self._one(sftp, on_handle(FSTAT, handle), path))
            await self._unchanged(sftp, path, real, found, opened)
            await self._check_names(real, path)
            return await self._content(sftp, handle, path, *part)
        finally:
            sftp.forget(on_handle(CLOSE, handle))

    async def _content(self, sftp: Sftp, handle: bytes, path: str, offset: int, size: int) -> bytes:
        """Several pieces at a time; a piece that comes short ends it, or is asked for again from where it ended."""
        content = bytearray()
        while len(content) < size:
            starts = range(len(content), min(size, len(content) + 8 * MOST), MOST)
            wanted = [min(MOST, size - start) for start in starts]
            replies = await sftp.ask(
                *(read_from(handle, offset + at, most) for at, most in zip(starts, wanted, strict=True))
            )
            for reply, most in zip(replies, wanted, strict=True):
                if isinstance(reply, Failed):
                    if reply.code == 1:
                        return bytes(content)
                    raise self._explained(reply, path)
                piece = as_string(reply[1])[:most]
                content += piece
                if len(piece) < most:
                    break
            if not piece:
                break
        return bytes(content)

    # --- Judging paths ------------------------------------------------------------------------------------------------

    async def _found(self, sftp: Sftp, path: str) -> tuple[bytes, Attributes]:
        """Where a path really is, and what is there; inside the allowed paths or not at all."""
        roots = await self._real_roots(sftp)
        try:
            real = await _real(sftp, path.encode("utf-8", "surrogateescape"))
        except Failed as error:
            if error.code == 2:
                raise await self._missing(sftp, path, roots) from error
            raise self._explained(error, path) from error
        self._inside(real, path, roots)
        try:
            return real, as_attributes(await sftp.one(on_path(LSTAT, real)))
        except Failed as error:
            if error.code == 2:
                raise await self._missing(sftp, path, roots) from error
            raise self._explained(error, path) from error

    async def _unchanged(self, sftp: Sftp, path: str, real: bytes, before: Attributes, opened: Attributes) -> None:
        """What is open is what that path meant before and still means, and nothing on the way has become a link."""
        try:
            again = await _real(sftp, real)
            after = as_attributes(await sftp.one(on_path(LSTAT, again)))
        except Failed as error:
            raise self._explained(error, path) from error
        if again != real or not (_could_be(before, opened) and _could_be(opened, after)):
            raise _changed(path)

    async def _real_roots(self, sftp: Sftp) -> tuple[bytes, ...]:
        """The allowed paths as the target resolves them; one that is not there allows itself."""
        try:
            replies = await sftp.ask(*(on_path(REALPATH, root.encode()) for root in self._roots))
        except Failed as error:
            raise self._explained(error, "the allowed paths") from error
        real = []
        for reply, root in zip(replies, self._roots, strict=True):
            names = [] if isinstance(reply, Failed) else as_names(reply[1])
            real.append(names[0][0] if names else root.encode())
        return tuple(real)

    def _inside(self, real: bytes, path: str, roots: Sequence[bytes]) -> None:
        if _below(real, (b"/proc",)):
            raise PathOutside(f"{path} belongs to /proc, which file tools never read")
        if not _below(real, roots):
            raise PathOutside(f"{path} leads out of the target's allowed paths", hint="constraints.paths names them.")
        if self._own and self._own.holds(os.fsdecode(real)):
            raise _gateways(path)

    async def _check_names(self, real: bytes, path: str) -> None:
        """SFTP tells no inode, but a file of this machine can be looked at from here: it may be the gateway's own."""
        if (own := self._own) is None:
            return

        def linked() -> bool:
            with suppress(OSError):
                status = os.lstat(real)
                return status.st_nlink > 1 and own.is_one(status)
            return False

        if await asyncio.to_thread(linked):
            raise _gateways(path)

    async def _missing(self, sftp: Sftp, path: str, roots: Sequence[bytes]) -> NotFound:
        """What is near, told only where the folder is an allowed one."""
        folder, _, name = path.rpartition("/")
        near = None
        try:
            real = await _real(sftp, (folder or "/").encode())
            self._inside(real, path, roots)
            handle = as_string(await sftp.one(on_path(OPENDIR, real)))
            try:
                names = [_shown(entry[0]) for entry in await _entries(sftp, handle, 2000)]
            finally:
                sftp.forget(on_handle(CLOSE, handle))
            near = did_you_mean(name, names) or None
        except (Failed, TargetError):
            pass
        return NotFound(f"there is no {path}", hint=near)

    def _explained(self, error: Failed, path: str) -> TargetError:
        if self._kept.gone or error.code == 7:
            return ConnectionLost(f"the connection to {self._kept.target.id!r} was lost")
        return error.explained(path)

    async def _one(self, sftp: Sftp, request: Request, path: str) -> bytes:
        try:
            return await sftp.one(request)
        except Failed as error:
            raise self._explained(error, path) from error

    async def _names(self, sftp: Sftp) -> tuple[dict[int, str], dict[int, str]]:
        """Users and groups by number, read once per connection."""
        if "names" not in self._kept.memory:
            both = [await small_file(sftp, path) for path in (b"/etc/passwd", b"/etc/group")]
            self._kept.memory["names"] = procfs.users(both[0]), procfs.users(both[1])
        found: tuple[dict[int, str], dict[int, str]] = self._kept.memory["names"]
        return found


def _could_be(earlier: Attributes, later: Attributes) -> bool:
    """Whether two looks may be at one thing. A log may grow between them: size and time may only go up."""
    same = (earlier.uid, earlier.gid, earlier.mode) == (later.uid, later.gid, later.mode)
    grown = earlier.size <= later.size and earlier.modified <= later.modified
    return same and (grown or stat.S_ISDIR(later.mode))


async def _looks(sftp: Sftp, real: bytes) -> int:
    """How often something is read: once, where only root may rename what is on the way to it."""
    parts = real.split(b"/")[1:-1]
    folders = [b"/", *(b"/" + b"/".join(parts[: count + 1]) for count in range(len(parts)))]
    try:
        replies = await sftp.ask(*(on_path(LSTAT, folder) for folder in folders))
    except Failed:
        return _LOOKS
    for reply in replies:
        attributes = None if isinstance(reply, Failed) else as_attributes(reply[1])
        if attributes is None or attributes.uid != 0 or attributes.mode & 0o022:
            return _LOOKS
    return 1


def _changed(path: str) -> PathOutside:
    return PathOutside(f"{path} changed while it was opened", hint="Try again.")


def _gateways(path: str) -> PathOutside:
    return PathOutside(f"{path} belongs to the gateway itself, which file tools never read")


def _clean(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _below(place: bytes, roots: Sequence[bytes]) -> bool:
    return any(place == root or place.startswith(root.rstrip(b"/") + b"/") for root in roots)


async def _real(sftp: Sftp, path: bytes) -> bytes:
    names = as_names(await sftp.one(on_path(REALPATH, path)))
    if len(names) != 1 or not names[0][0].startswith(b"/"):
        raise Failed(4, "the target did not resolve it")
    return names[0][0]


async def _entries(sftp: Sftp, handle: bytes, most: int = MAX_ENTRIES) -> list[tuple[bytes, bytes, Attributes]]:
    """A directory's entries by name; names that are none (hostile servers send them) are left out."""
    entries: list[tuple[bytes, bytes, Attributes]] = []
    while len(entries) < most:
        (reply,) = await sftp.ask(on_handle(READDIR, handle))
        if isinstance(reply, Failed):
            if reply.code == 1:
                break
            raise reply
        names = as_names(reply[1])
        if not names:
            break
        entries += [
            entry for entry in names if entry[0] not in (b"", b".", b"..") and not set(entry[0]) & {0, ord("/")}
        ]
    return sorted(entries[:most], key=lambda entry: entry[0])


async def _link_targets(sftp: Sftp, links: Sequence[bytes]) -> dict[bytes, bytes]:
    found = {}
    for at in range(0, len(links), _AT_ONCE):
        some = links[at : at + _AT_ONCE]
        for link, reply in zip(some, await sftp.ask(*(on_path(READLINK, link) for link in some)), strict=True):
            if not isinstance(reply, Failed) and (names := as_names(reply[1])):
                found[link] = names[0][0]
    return found


def _link_count(line: bytes) -> int:
    """The count of hard links, which only the `ls -l` line of a listing tells."""
    words = line.split(None, 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 1


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _describe(
    path: bytes,
    found: Attributes,
    users: dict[int, str],
    groups: dict[int, str],
    link_target: bytes | None,
    links: int = 1,
) -> FileInfo:
    return FileInfo(
        path=_shown(path),
        kind=_kind(found.mode),
        size=found.size,
        mode=found.mode,
        modified=float(found.modified),
        owner=users.get(found.uid, str(found.uid)),
        group=groups.get(found.gid, str(found.gid)),
        link_target=None if link_target is None else _shown(link_target),
        links=links,
    )
