"""Ed25519 signatures (RFC 8032) under the checkpoints, and the key that makes them."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from systemmanager.audit.record import canonical
from systemmanager.errors import ConfigError, Problem

MOST_OF_A_KEY = 4096


class Signer:
    """Signs checkpoints."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    @classmethod
    def of(cls, pem: str) -> "Signer":
        """The private key in a PEM text. Raises `ValueError`."""
        try:
            key = load_pem_private_key(pem.encode(), None)
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError("is no private key that can be read") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("is no Ed25519 key")
        return cls(key)

    @property
    def public(self) -> Ed25519PublicKey:
        return self._key.public_key()

    def public_pem(self) -> str:
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, fields: Mapping[str, Any]) -> str:
        """The signature over the canonical JSON of a checkpoint's fields, in base64."""
        return b64encode(self._key.sign(canonical(fields).encode("ascii"))).decode()


def new_key() -> str:
    """A new private key, in PEM."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def fault(pem: str) -> str | None:
    """Why a text is no private key of ours, or None."""
    try:
        Signer.of(pem)
    except ValueError:
        return "is no Ed25519 private key in PEM"
    return None


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a public key: the first 16 digits of its SHA-256."""
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def read_public(path: Path) -> Ed25519PublicKey:
    """A public key from a PEM file. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(MOST_OF_A_KEY))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no public key in PEM"
        raise ConfigError([Problem(str(path), f"can't be used: {why}")]) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError([Problem(str(path), "is no Ed25519 key")])
    return key


class Keys:
    """The public keys that are trusted."""

    def __init__(self, *keys: Ed25519PublicKey) -> None:
        self._by_id = {key_id(key): key for key in keys}

    def objection(self, record: Mapping[str, Any]) -> str | None:
        """Why a checkpoint is not signed by a trusted key, or None when it is."""
        fields = {name: value for name, value in record.items() if name not in ("hash", "signature")}
        arguments = record.get("arguments")
        key = self._by_id.get(str(arguments.get("key"))) if isinstance(arguments, dict) else None
        if key is None:
            return "is signed by a key that is not the log's"
        try:
            key.verify(b64decode(str(record.get("signature")), validate=True), canonical(fields).encode("ascii"))
        except (InvalidSignature, ValueError):
            return "bears a signature that does not fit"
        return None
