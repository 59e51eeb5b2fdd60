"""Which host key a target may show: its pin, else what known_hosts says. An unknown key is never accepted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.known_hosts import SSHKnownHosts

from systemmanager.errors import HostKeyChanged, HostKeyUnknown, NotConfigured, TargetError
from systemmanager.target import SshConnection

KINDS = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"),
)
ALGORITHMS = (*KINDS[0], *KINDS[1], *KINDS[2][:2])
"""Best first; asyncssh's own order begins with RSA, whose keys sshd signs with ten times slower."""

_Keys = Sequence[asyncssh.SSHKey]


@dataclass(frozen=True, slots=True)
class Trust:
    """What is known of one host. `pin` is a fingerprint; `source` says, for messages, where it comes from."""

    keys: _Keys = ()
    authorities: _Keys = ()
    revoked: _Keys = ()
    pin: str | None = None
    source: str = "known_hosts"

    @property
    def known_hosts(self) -> tuple[_Keys, _Keys, _Keys, Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]]:
        """In the shape that asyncssh takes."""
        return self.keys, self.authorities, self.revoked, (), (), (), ()

    @property
    def algorithms(self) -> list[str]:
        """What to ask the host for: the kinds of the known keys first, so that it shows the one that can be judged.

        The others stay in the list: a host that has another key now is then seen to have changed.
        """
        known = [algorithm.decode() for key in self.keys for algorithm in key.sig_algorithms]
        wanted = [algorithm for algorithm in known if algorithm in ALGORITHMS] + list(ALGORITHMS)
        if self.authorities:
            wanted = [f"{name}-cert-v01@openssh.com" for name in ALGORITHMS] + wanted
        return list(dict.fromkeys(wanted))


def trust(connection: SshConnection, files: Iterable[Path]) -> Trust:
    """What the target's pin, its own known_hosts, or the gateway's `files` say of its host. Raises `NotConfigured`."""
    if connection.host_key is not None:
        return _pinned(connection.host_key.strip())
    if connection.known_hosts is not None:
        path = Path(connection.known_hosts).expanduser()
        if not path.is_file():
            raise NotConfigured(f"there is no known_hosts file {path}", hint="Correct connection.known_hosts.")
        files = [path]
    stamps = tuple((str(path), stamp) for path in files if (stamp := _stamp(path)))
    return _known(stamps, connection.host.lower(), connection.port)


def _pinned(pin: str) -> Trust:
    if pin.startswith("SHA256:"):
        return Trust(pin=pin.rstrip("="), source="the pin connection.host_key")
    try:
        return Trust(keys=(asyncssh.import_public_key(pin),), source="the pin connection.host_key")
    except (asyncssh.KeyImportError, ValueError) as error:
        raise NotConfigured(
            "connection.host_key is neither a SHA256 fingerprint nor a public key",
            hint="Write SHA256:... as ssh-keygen -lf prints it, or 'ssh-ed25519 AAAA...'.",
        ) from error


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _parsed(path: str, stamp: tuple[int, int]) -> SSHKnownHosts:
    """One file, read again only when it has changed: 1,000 entries take 8 ms."""
    try:
        return asyncssh.import_known_hosts(Path(path).read_text(errors="replace"))
    except (OSError, ValueError) as error:
        raise NotConfigured(f"{path} can't be read: {error}", hint="Correct that known_hosts file.") from error


@lru_cache(maxsize=4096)
def _known(stamps: tuple[tuple[str, tuple[int, int]], ...], host: str, port: int) -> Trust:
    keys: list[asyncssh.SSHKey] = []
    authorities: list[asyncssh.SSHKey] = []
    revoked: list[asyncssh.SSHKey] = []
    for path, stamp in stamps:
        found = _parsed(path, stamp).match(host, "", None if port == 22 else port)
        keys += found[0]
        authorities += found[1]
        revoked += found[2]
    return Trust(tuple(keys), tuple(authorities), tuple(revoked))


def refused(connection: SshConnection, known: Trust, shown: asyncssh.SSHKey | None, reason: str = "") -> TargetError:
    """Why the key that a host showed was not accepted."""
    place = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
    if "revoked" in reason:
        return HostKeyChanged(f"{place} shows a host key that {known.source} marks as revoked")
    if shown is None:
        return HostKeyChanged(f"{place} shows a host key or certificate that {known.source} does not accept")
    fingerprint, line = shown.get_fingerprint(), shown.export_public_key().decode().strip()
    line = " ".join(line.split()[:2])
    details = {"fingerprint": fingerprint, "host_key": line}
    if known.pin or known.keys or known.authorities:
        return HostKeyChanged(f"{place} shows the host key {fingerprint}, but {known.source} differs", details=details)
    return HostKeyUnknown(
        f"the host key of {place} is not known: it shows {fingerprint}",
        hint=f"Compare it with `ssh-keygen -lf` on the host; if it is the same, set connection.host_key: "
        f'"{fingerprint}", or add to known_hosts: {place} {line}',
        details=details,
    )
