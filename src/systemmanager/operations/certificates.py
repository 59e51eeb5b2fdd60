"""The certificate that a TLS server shows."""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import anyio
from anyio.streams.tls import TLSAttribute, TLSStream
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.dsa import DSAPublicKey
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import ExtensionOID, NameOID
from pydantic import Field

from systemmanager.errors import ConnectionLost, DeadlineExceeded, TlsFailed, UnreadableOutput
from systemmanager.operation import Risk, operation
from systemmanager.params import Hostname, TcpPort
from systemmanager.ports import ForeignText, Network, Result

HANDSHAKE = 10.0
"""Seconds to connect, and as many for the handshake."""

NAMES = 50
"""Names of a certificate that an answer shows."""

_BY_VERIFY_CODE = {
    9: "not_yet_valid",
    10: "expired",
    18: "self_signed",
    19: "unknown_issuer",
    20: "unknown_issuer",
    21: "unknown_issuer",
    23: "revoked",
    62: "wrong_name",
    64: "wrong_name",
}


class Certificate(Result):
    host: str
    port: int
    valid: bool = Field(description="In force, for this name, from an issuer that the gateway's system trusts.")
    problems: list[str] | None = Field(
        default=None, description="expired, not_yet_valid, self_signed, unknown_issuer, wrong_name, weak_protocol ..."
    )
    reason: str | None = None
    subject: ForeignText
    issuer: ForeignText
    names: list[ForeignText]
    not_before: datetime
    not_after: datetime
    days_left: int
    protocol: str
    cipher: str
    chain_length: int | None = Field(default=None, description="Certificates that the server sent.")
    key: str
    sha256: str


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.MODERATE,
    timeout=45,
    roles={"host": "host", "port": "port"},
    open_world=True,
)
async def check_ssl_certificate(network: Network, host: Hostname, port: TcpPort = 443) -> Certificate:
    """The TLS certificate of a server: who, until when, valid or what is wrong with it. An invalid one is an answer."""
    try:
        shown, refused = await _handshake(network, host, port, _trusting()), None
    except ssl.SSLError as error:
        refused = error
        try:
            shown = await _handshake(network, host, port, _lenient())
        except ssl.SSLError as again:
            raise _no_tls(again, host, port) from again
    return describe(host, port, shown, refused, datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Shown:
    """What one handshake showed. `chain` counts the certificates sent, None where this Python can't tell."""

    der: bytes
    protocol: str
    cipher: str
    chain: int | None


async def _handshake(network: Network, host: str, port: int, context: ssl.SSLContext) -> Shown:
    """One handshake. Raises `ssl.SSLError` when it does not come about."""
    stream = await network.connect(host, port, HANDSHAKE)
    try:
        with anyio.fail_after(HANDSHAKE):
            secured = await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
            return _shown(secured.extra(TLSAttribute.ssl_object))  # noqa: S610  anyio's, not Django's
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"{host}:{port} accepted the connection but did not finish a TLS handshake within {HANDSHAKE:g} s",
            hint=_PLAIN,
        ) from error
    except (anyio.BrokenResourceError, anyio.EndOfStream, OSError) as error:
        if isinstance(error, ssl.SSLError):
            raise
        raise ConnectionLost(f"{host}:{port} closed the connection during the TLS handshake", hint=_PLAIN) from error
    finally:
        await anyio.aclose_forcefully(stream)


_PLAIN = "Is it a TLS port? SMTP, IMAP and databases often start without TLS."


def _shown(secured: ssl.SSLObject) -> Shown:
    cipher = secured.cipher()
    chain: Any = getattr(secured, "get_unverified_chain", None) or getattr(
        getattr(secured, "_sslobj", None), "get_unverified_chain", None
    )  # public from Python 3.13
    return Shown(
        der=secured.getpeercert(binary_form=True) or b"",
        protocol=secured.version() or "?",
        cipher=cipher[0] if cipher else "?",
        chain=len(chain() or ()) if chain else None,
    )


@cache
def _trusting() -> ssl.SSLContext:
    return ssl.create_default_context()


@cache
def _lenient() -> ssl.SSLContext:
    """Shakes hands with anything, to read the certificate; nothing is ever sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def _no_tls(error: ssl.SSLError, host: str, port: int) -> TlsFailed:
    reason = (error.reason or error.strerror or "broken off").replace("_", " ").lower()
    return TlsFailed(f"no TLS handshake with {host}:{port} is possible: {reason}", hint=_PLAIN)


# --- reading it -------------------------------------------------------------------------------------------------------


def describe(host: str, port: int, shown: Shown, refused: ssl.SSLError | None, now: datetime) -> Certificate:
    """What a handshake showed, for a person; `refused` is why the verifying handshake said no."""
    try:
        certificate = x509.load_der_x509_certificate(shown.der)
        names = _names(certificate)
    except ValueError as error:
        raise UnreadableOutput(f"{host}:{port} showed a certificate that can't be read: {error}") from error
    problems = _problems(certificate, names, host, shown, refused, now)
    return Certificate(
        host=host,
        port=port,
        valid=refused is None and not problems,
        problems=problems or None,
        reason=_reason(refused),
        subject=_name(certificate.subject) or (names[0] if names else "?"),
        issuer=_name(certificate.issuer) or "?",
        names=names[:NAMES],
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        days_left=(certificate.not_valid_after_utc - now).days,
        protocol=shown.protocol,
        cipher=shown.cipher,
        chain_length=shown.chain,
        key=_key(certificate),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _problems(
    certificate: x509.Certificate,
    names: Sequence[str],
    host: str,
    shown: Shown,
    refused: ssl.SSLError | None,
    now: datetime,
) -> list[str]:
    """Everything that is wrong: OpenSSL stops at the first, so dates, issuer and name are looked at here as well."""
    found = []
    if now > certificate.not_valid_after_utc:
        found.append("expired")
    if now < certificate.not_valid_before_utc:
        found.append("not_yet_valid")
    if refused is not None and _is_self_signed(certificate):
        found.append("self_signed")
    if not any(_covers(name, host) for name in names):
        found.append("wrong_name")
    if shown.protocol in ("SSLv3", "TLSv1", "TLSv1.1"):
        found.append("weak_protocol")
    if isinstance(refused, ssl.SSLCertVerificationError):
        said = _BY_VERIFY_CODE.get(refused.verify_code, "untrusted")
        if said not in found and not (said == "unknown_issuer" and "self_signed" in found):
            found.append(said)
    elif refused is not None and not found:
        found.append("handshake_refused")
    return found


def _reason(refused: ssl.SSLError | None) -> str | None:
    if isinstance(refused, ssl.SSLCertVerificationError):
        return refused.verify_message
    return None if refused is None else (refused.reason or refused.strerror or "broken off")


def _is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        value = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(value, x509.SubjectAlternativeName)
    return [*value.get_values_for_type(x509.DNSName), *map(str, value.get_values_for_type(x509.IPAddress))]


def _covers(name: str, host: str) -> bool:
    """RFC 6125 as TLS libraries do it: a wildcard stands for exactly one whole first label."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(host)
    except ValueError:
        pass
    pattern, wanted = name.rstrip(".").lower(), host.rstrip(".").lower()
    if pattern.startswith("*."):
        return wanted.partition(".")[2] == pattern[2:] and "." in pattern[2:]
    return pattern == wanted


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    organisation = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    parts = [str(one.value) for one in (*common[:1], *organisation[:1])]
    return ", ".join(dict.fromkeys(parts))[:200]


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, RSAPublicKey | DSAPublicKey):
        return f"{'RSA' if isinstance(key, RSAPublicKey) else 'DSA'} {key.key_size}"
    return f"EC {key.curve.name}" if isinstance(key, EllipticCurvePublicKey) else type(key).__name__.strip("_")
