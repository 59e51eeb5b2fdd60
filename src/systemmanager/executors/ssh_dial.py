"""One connect to an SSH server: tuned options, the host key judged, and every failure named for what it is."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh

from systemmanager.errors import (
    AuthRefused,
    HostKeyChanged,
    NameNotResolved,
    TargetError,
    Unreachable,
    Unsupported,
)
from systemmanager.executors.ssh_hostkeys import KINDS, Trust, refused, trust
from systemmanager.executors.ssh_keys import credentials
from systemmanager.target import SshConnection

CONNECT_TIMEOUT = 10.0
KEEPALIVE, KEEPALIVE_COUNT = 15, 3

OPTIONS: dict[str, Any] = {
    # Fast and safe first. No diffie-hellman-group-exchange: it holds the event loop for half a second.
    "kex_algs": (
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group14-sha256",
        "diffie-hellman-group16-sha512",
    ),
    "encryption_algs": (
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes128-ctr",
        "aes256-ctr",
    ),
    "compression_algs": ("none",),
    # Nothing that reads files, asks agents or resolves names on the way: half the CPU of a connect.
    "config": [],
    "preferred_auth": "publickey",
    "gss_host": None,
    "gss_kex": False,
    "gss_auth": False,
    "host_based_auth": False,
    "client_host_keysign": False,
    "x509_trusted_certs": None,
    "x509_trusted_cert_paths": [],
    "keepalive_interval": KEEPALIVE,
    "keepalive_count_max": KEEPALIVE_COUNT,
}

# asyncssh writes a line per packet, channel and request; formatting them costs more than some calls.
logging.getLogger("asyncssh").setLevel(logging.WARNING)


class Client(asyncssh.SSHClient):
    """Judges the host key, and says when the connection is gone."""

    def __init__(self, known: Trust) -> None:
        self._known = known
        self.shown: asyncssh.SSHKey | None = None
        self.lost: Callable[[], None] | None = None
        self.gone = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        if found := conn.get_extra_info("socket"):
            self._acknowledge(found, 40)

    def _acknowledge(self, found: socket.socket, times: int) -> None:
        """Acknowledge at once while connecting: sshd's Nagle waits up to 40 ms for it. Linux forgets it, so again."""
        if self.gone or not times or not hasattr(socket, "TCP_QUICKACK"):
            return
        with suppress(OSError):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(0.003, self._acknowledge, found, times - 1)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return self._known.pin is not None and key.get_fingerprint() == self._known.pin

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self._timer:
            self._timer.cancel()
        if self.lost:
            self.lost()


async def dial(
    connection: SshConnection,
    tunnel: asyncssh.SSHClientConnection | None,
    known_hosts: tuple[Path, ...],
    within: float = CONNECT_TIMEOUT,
) -> tuple[asyncssh.SSHClientConnection, Client]:
    """Connect within so many seconds, through `tunnel` where there is one. Raises `TargetError`."""
    known = trust(connection, known_hosts)
    async with credentials(connection) as who:
        options: dict[str, Any] = {**OPTIONS, **who, "username": connection.username}
        options |= {"known_hosts": known.known_hosts, "tunnel": tunnel or ()}
        client = Client(known)
        try:
            return await _attempt(
                connection, client, known, within, {**options, "server_host_key_algs": known.algorithms}
            )
        except HostKeyChanged:
            if known.pin is None or client.shown is None:
                raise
            # A fingerprint does not tell the kind of its key: the host may have that key beside the one it showed.
            for kind in KINDS:
                if client.shown.algorithm.decode() not in kind:
                    with suppress(HostKeyChanged, Unreachable):
                        other = {**options, "server_host_key_algs": kind}
                        return await _attempt(connection, Client(known), known, within, other)
            raise


async def _attempt(
    connection: SshConnection, client: Client, known: Trust, within: float, options: dict[str, Any]
) -> tuple[asyncssh.SSHClientConnection, Client]:
    place = f"{connection.host}:{connection.port}"
    try:
        async with asyncio.timeout(within):
            made = await asyncssh.connect(connection.host, connection.port, client_factory=lambda: client, **options)
    except asyncssh.HostKeyNotVerifiable as error:
        raise refused(connection, known, client.shown, error.reason) from error
    except TimeoutError as error:
        raise Unreachable(
            f"{place} did not answer within {within:g} s",
            hint="It may be down, or a firewall drops the packets.",
            details={"reason": "timeout"},
        ) from error
    except (asyncssh.Error, OSError) as error:
        raise explained(error, connection) from error
    return made, client


def explained(error: Exception, connection: SshConnection) -> TargetError:
    """A failed connect in the gateway's words."""
    place = f"{connection.host}:{connection.port}"
    match error:
        case socket.gaierror():
            return NameNotResolved(f"{connection.host!r} can't be resolved: {error.strerror}")
        case asyncssh.PermissionDenied():
            return _refused_login(connection, place)
        case asyncssh.ChannelOpenError():
            return channel_refused(error, connection.host, connection.port, "the jump host")
        case asyncssh.KeyExchangeFailed() | asyncssh.ProtocolNotSupported():
            reason, hint = "has no algorithm in common with the gateway", "Its SSH server is very old or restricted."
            return Unreachable(f"{place} {reason}", hint=hint, retryable=False, details=_said(error.reason))
        case asyncssh.ConnectionLost():
            hint = "Its SSH server may be overloaded (MaxStartups), restarting, or have banned the gateway."
            return Unreachable(f"{place} closed the connection before the login", hint=hint)
        case asyncssh.DisconnectError() if "authentication failures" in error.reason.lower():
            return _refused_login(connection, place)
        case asyncssh.DisconnectError():
            return Unreachable(f"{place} ended the connection", details=_said(error.reason))
        case ConnectionRefusedError():
            return Unreachable(
                f"{place} refused the connection",
                hint="Nothing listens there, or a firewall rejects it.",
                details={"reason": "refused"},
            )
        case OSError():
            said = error.strerror or str(error)
            return Unreachable(f"{place} can't be reached: {said.lower()}", details={"reason": "failed"})
        case _:
            return Unreachable(f"{place} can't be reached: {type(error).__name__}", details=_said(str(error)))


def _said(words: str) -> dict[str, str]:
    """The server's words, for an error's details: there they are marked as foreign."""
    return {"said": words[:200]} if words else {}


def _refused_login(connection: SshConnection, place: str) -> AuthRefused:
    what = "certificate" if connection.certificate_path else "key" if connection.key_path else "agent's keys"
    return AuthRefused(
        f"{place} does not accept the {what} for the user {connection.username!r}",
        hint="Put the public key into that user's authorized_keys, or correct username and key_path.",
    )


_RESOLVING = ("name or service not known", "name resolution", "no address associated", "unknown host", "name does not")


def channel_refused(error: asyncssh.ChannelOpenError, host: str, port: int, who: str) -> TargetError:
    """Why a server did not open a TCP connection for us."""
    said = str(error.reason or "")
    lowered = said.lower()
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return Unsupported(
            f"{who} does not let SSH forward connections",
            hint="Set AllowTcpForwarding yes (and check PermitOpen) in its sshd_config.",
        )
    if any(words in lowered for words in _RESOLVING):
        return NameNotResolved(f"{host!r} can't be resolved by {who}", details=_said(said))
    if "refused" in lowered:
        hint = "Nothing listens there, or a firewall rejects it."
        return Unreachable(f"{host} refused the connection to port {port}", hint=hint, details={"reason": "refused"})
    if "timed out" in lowered:
        hint = "It may be down, or a firewall drops the packets."
        return Unreachable(f"{host} did not answer on port {port}", hint=hint, details={"reason": "timeout"})
    reason = "no_route" if "unreachable" in lowered or "no route" in lowered else "failed"
    return Unreachable(f"{who} can't reach {host} on port {port}", details={"reason": reason, **_said(said)})
