"""What the gateway shows to log in: private keys, certificates, the agent. Parsed once, read again when they change."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import asyncssh

from systemmanager.errors import NotConfigured
from systemmanager.target import SshConnection


@asynccontextmanager
async def credentials(connection: SshConnection) -> AsyncIterator[dict[str, Any]]:
    """The options of asyncssh that say who we are, good for one login. Raises `NotConfigured`."""
    async with AsyncExitStack() as stack:
        keys: list[Any] = []
        if connection.key_path is not None:
            # In a thread: an encrypted key costs 0.1 s of bcrypt, which would hold up every other call.
            keys.append(await asyncio.to_thread(_key, connection))
        if connection.agent:
            keys += await _agent_keys(stack)
        if not keys:
            if connection.agent:
                raise NotConfigured("the agent at SSH_AUTH_SOCK holds no key", hint="ssh-add one, or set key_path.")
            raise NotConfigured("the target has neither key_path nor agent: true", hint="Set connection.key_path.")
        yield {"agent_path": None, "client_keys": keys}


async def _agent_keys(stack: AsyncExitStack) -> list[Any]:
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        raise NotConfigured("connection.agent is set, but the gateway has no SSH_AUTH_SOCK", hint="Set key_path.")
    try:
        agent = await asyncssh.connect_agent(path)
        stack.callback(agent.close)
        return list(await agent.get_keys())
    except (OSError, ValueError) as error:
        raise NotConfigured(f"the agent at SSH_AUTH_SOCK does not answer: {error}", hint="Start it.") from error


def _key(connection: SshConnection) -> Any:
    text = connection.key_path or ""
    passphrase = connection.passphrase.get_secret_value() if connection.passphrase else None
    if text.lstrip().startswith("-----BEGIN"):
        key = _imported(text, "connection.key_path", passphrase)
    else:
        path = Path(text).expanduser()
        key = _imported(_content(path), str(path), passphrase)
    if connection.certificate_path is None:
        return key
    certificate = Path(connection.certificate_path).expanduser()
    return key, _certificate(_content(certificate), str(certificate))


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise NotConfigured(
            f"{path} can't be read: {(reason or 'no reason given').lower()}",
            hint="connection.key_path and certificate_path must name files that the gateway's user may read.",
        ) from error


@lru_cache(maxsize=1024)
def _imported(text: str, source: str, passphrase: str | None) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(text.strip() + "\n", passphrase)
    except asyncssh.KeyEncryptionError as error:
        if "bcrypt" in str(error):
            raise NotConfigured(
                f"the encrypted key {source} can't be opened without Python's bcrypt",
                hint="Install bcrypt, or have ssh-keygen -p -m PKCS8 write the key in the other format.",
            ) from error
        raise NotConfigured(f"the passphrase does not open the key {source}", hint="Set passphrase.") from error
    except asyncssh.KeyImportError as error:
        encrypted = "ENCRYPTED" in text or "passphrase" in str(error).lower()
        if encrypted and passphrase is None:
            reason, hint = "is encrypted and the target has no passphrase", "Set connection.passphrase: ${NAME}."
        elif encrypted:
            reason, hint = "is not opened by the target's passphrase", "Correct connection.passphrase."
        else:
            reason, hint = "is no private key that can be read", "OpenSSH and PEM formats are."
        raise NotConfigured(f"the key {source} {reason}", hint=hint) from error


@lru_cache(maxsize=1024)
def _certificate(text: str, source: str) -> asyncssh.SSHCertificate:
    try:
        return asyncssh.import_certificate(text)
    except asyncssh.KeyImportError as error:
        raise NotConfigured(
            f"{source} is no OpenSSH certificate", hint="Set certificate_path to the ...-cert.pub file."
        ) from error
