"""Whether a secret and an address of the configuration can be relied upon."""

from itertools import pairwise
from urllib.parse import urlsplit

SECRET_BYTES = 32
"""Least length of the shared secret; HMAC-SHA256 wants a key as long as its output (RFC 7518, section 3.2)."""


def trusted_url(url: str) -> bool:
    """Whether what an address answers can be relied upon: https, or this machine itself."""
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (
            parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        )
        return (
            safe and bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        return False


def weakness(secret: str) -> str | None:
    """Why a secret is too weak to sign tokens with, or None."""
    if len(secret.encode()) < SECRET_BYTES:
        return f"is shorter than {SECRET_BYTES} bytes"
    if len(set(secret)) < 12 or (secret + secret).find(secret, 1) < len(secret):
        return "repeats itself and is no random value"
    steps = [abs(ord(left) - ord(right)) for left, right in pairwise(secret)]
    if sum(step <= 1 for step in steps) > len(steps) / 2:
        return "counts up or down and is no random value"
    return None
