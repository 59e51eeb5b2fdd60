"""The operator's way to the desk: a unix socket in the state folder that only the gateway's user and root can open.

One JSON line is asked and one is answered. Who asks is what the kernel says (SO_PEERCRED), never what they say.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from systemmanager.approvals.answers import plain
from systemmanager.approvals.desk import Desk
from systemmanager.errors import ApprovalRefused, Denied, GatewayError, NotFound, Unreachable

MOST_ASKED = 4096
"""Bytes of one question to the socket."""

MOST_ANSWERED = 64 * 1024 * 1024
"""Bytes that the command line reads of an answer: a list of many long requests."""

WITHIN = 5.0
"""Seconds for one question, and for its answer."""

_PATTERN = "approvals-*.sock"


@asynccontextmanager
async def listening(desk: Desk, folder: Path) -> AsyncIterator[Path]:
    """Answer operators while the gateway runs. Each process has its own socket; the requests are the same for all.

    Raises `OSError` when the socket can't be made.
    """
    _sweep(folder)
    path = folder / f"approvals-{os.getpid()}.sock"
    with _short(path) as short:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(short)
            path.chmod(0o600)
            server = await asyncio.start_unix_server(_Peer(desk).serve, sock=listener, limit=MOST_ASKED)
        except OSError:
            listener.close()
            raise
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        server.close()


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path by way of its folder's descriptor: the address of a unix socket may have 107 bytes at most."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove the sockets of gateways that were killed."""
    for path in folder.glob(_PATTERN):
        try:
            _connected(path).close()
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            continue


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(WITHIN)
        with _short(path) as short:
            made.connect(short)
    except OSError:
        made.close()
        raise
    return made


class _Peer:
    """One gateway's side of the socket."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question and hang up."""
        try:
            with suppress(OSError, TimeoutError, ValueError, RecursionError):
                async with asyncio.timeout(WITHIN):
                    line = await reader.readline()
                answer = await self._answer(json.loads(line), _person(writer))
                writer.write(json.dumps(answer).encode() + b"\n")
                async with asyncio.timeout(WITHIN):
                    await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, asked: Any, person: str) -> dict[str, Any]:
        if not isinstance(asked, dict):
            return {"error": {"code": "invalid_arguments", "message": "one JSON object a line"}}
        do, id, digest = asked.get("do"), str(asked.get("id")), asked.get("digest")
        try:
            if do == "list":
                return {"approvals": [plain(one) for one in await self._desk.all()]}
            if do == "show":
                return {"approval": plain(await self._desk.get(id))}
            if do in ("approve", "deny") and isinstance(digest, str):
                one = await self._desk.answer(id, person, do == "approve", "operator", digest=digest)
                return {"approval": plain(one)}
        except GatewayError as error:
            return {"error": error.as_dict()}
        return {"error": {"code": "invalid_arguments", "message": "list, show, or approve and deny with the digest"}}


def _person(writer: asyncio.StreamWriter) -> str:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return f"local:{uid}"


# --- The command line's side ------------------------------------------------------------------------------------------


def ask(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the running gateway whose sockets are in `folder`. Raises `GatewayError`: what it answered, or no gateway."""
    for path in sorted(folder.glob(_PATTERN)):
        try:
            answer = _exchange(path, question)
        except PermissionError as error:
            raise Denied(f"{path} is open to the gateway's user and to root only", hint="Use sudo.") from error
        except (OSError, ValueError):
            continue
        if refused := answer.get("error"):
            kind = NotFound if refused.get("code") == NotFound.code else ApprovalRefused
            raise kind(str(refused.get("message")), hint=refused.get("hint"))
        return answer
    raise Unreachable(
        f"no gateway runs with the state folder {folder.parent}",
        hint="Start it, or set SYSTEMMANAGER_STATE_DIR to the folder that it has.",
    )


def _exchange(path: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    with _connected(path) as made:
        made.sendall(json.dumps(question).encode() + b"\n")
        received = bytearray()
        while not received.endswith(b"\n") and len(received) < MOST_ANSWERED and (chunk := made.recv(65536)):
            received += chunk
    answer = json.loads(received)
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer
