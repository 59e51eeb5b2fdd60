"""Secrets and terminal escapes out of everything that leaves: answers, errors, the audit log.

Two sources of truth for secrets: the exact values that the gateway itself holds, and the shapes that credentials have
(PEM blocks, JWTs, cloud and forge keys, `Authorization` values, URL userinfo, `password=...` pairs).
"""

import re
from collections.abc import Iterable
from typing import Any

MASK = "[redacted]"

_SUSPECT = r"pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|auth[_-]?key"
_SECRET_KEY = re.compile(rf"(?:^|[_.-])(?:{_SUSPECT})(?:$|[_.-])", re.IGNORECASE)
_SHAPES = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)",
            r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bgh[pousr]_[A-Za-z0-9]{30,}",
            r"\bgithub_pat_[A-Za-z0-9_]{30,}",
            r"\bglpat-[A-Za-z0-9_-]{20,}",
            r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
            r"\bsk-[A-Za-z0-9_-]{20,}",
            r"\btskey-[a-z]+-[A-Za-z0-9-]{10,}",
            r"\bAIza[A-Za-z0-9_-]{35}",
        )
    )
)
_KEPT_PREFIX = re.compile(
    r"(?P<keep>\b(?:authorization\s*[:=]\s*)(?:bearer|basic|token)?\s*)[^\s,;\"']+"
    r"|(?P<keep2>\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?P<keep3>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)"
    rf"|(?P<keep4>[A-Za-z0-9_.-]*(?:{_SUSPECT})[A-Za-z0-9_.-]*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]{{3,}}"
    rf"|(?P<keep5>--?[a-z-]*(?:{_SUSPECT})[a-z-]*\s+)[^\s\"',;&-][^\s\"',;&]{{2,}}",
    re.IGNORECASE,
)
# A quick look that finds whether the expensive patterns can match at all.
_HINT = re.compile(
    r"-----BEGIN|eyJ|AKIA|ASIA|gh[pousr]_|github_pat|glpat|xox|sk-|tskey|AIza|://[^\s/]*@|bearer|authorization"
    rf"|{_SUSPECT}",
    re.IGNORECASE,
)
# C0 without tab and newline, DEL, C1, bidi controls, zero-width, line separators, tag characters, surrogates.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Control, bidi, zero-width and tag characters written out as `\\xNN` or `\\u{...}`; a CR before LF is dropped."""
    if text.isascii() and text.isprintable():
        return text
    if not _INVISIBLE.search(text):
        return text
    return _INVISIBLE.sub(_escape, text.replace("\r\n", "\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{{{code:x}}}"


class Redactor:
    """Takes secrets and escapes out of values. `known` are exact secrets; those under 6 characters are left alone."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        parts = {part for value in known for part in (value, *value.splitlines()) if len(part.strip()) >= 6}
        ordered = sorted(parts, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """One text, clean."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if _HINT.search(text):
            text = _SHAPES.sub(MASK, text)
            text = _KEPT_PREFIX.sub(lambda match: f"{match[match.lastgroup or 0]}{MASK}", text)
        return visible(text)

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value with every text in it clean; a text or number under a secret's name is masked whole."""
        if isinstance(value, str):
            return MASK if value and key and _SECRET_KEY.search(key) else self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.value(child, name) for name, child in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(child, key) for child in value]
        return value
