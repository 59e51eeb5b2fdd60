"""What this process does to the world while an attack runs: connections, programs, files that change.

Python's own audit hook tells it (`sys.addaudithook`): nobody has to think beforehand of where an effect might show.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DISCARD = 9
"""To connect a UDP socket sends nothing: the gateway asks the kernel so whether an address is the machine's own."""
_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.kill", "os.killpg"})
_CHANGES = frozenset(
    {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate"}
)
_NETWORK = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_NAMES = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})


@dataclass
class Watch:
    """What was seen. `state` is the gateway's own folder, `ports` are those of its own listeners."""

    state: Path
    ports: set[int] = field(default_factory=set)
    effects: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK:
            address = arguments[1]
            port = address[1] if isinstance(address, tuple) and len(address) > 1 else None
            if port not in self.ports and not (port == DISCARD and arguments[0].type == socket.SOCK_DGRAM):
                self.effects.append(f"{event} {address!r}")
        elif event in _NAMES:
            self.names.append(str(arguments[0]))
        elif event == "subprocess.Popen":
            self.effects.append(f"ran {arguments[1]!r}")
        elif event in _PROGRAMS:
            self.effects.append(f"{event} {arguments!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and not self._own(path):
                self.effects.append(f"wrote {path!r}")
        elif event in _CHANGES and not self._own(arguments[0]):
            self.effects.append(f"{event} {arguments!r}")

    def _own(self, path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else f"fd {path}"
        return f"{text}/".startswith((f"{self.state}/", "fd ")) or text == os.devnull or "__pycache__" in text


_current: Watch | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _current is not None:
        _current.saw(event, arguments)


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Fill `watch` with what happens meanwhile. A hook can't be taken away again: at rest it only looks at one name."""
    global _current, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _current = watch
    try:
        yield watch
    finally:
        _current = None
