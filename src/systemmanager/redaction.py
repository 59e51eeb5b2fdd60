"""Secrets and terminal escapes out of everything that leaves: answers, errors, the audit log.

Two sources of truth for secrets: the exact values that the gateway itself holds, and the shapes that credentials have.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any
from urllib.parse import quote

from systemmanager.secretshapes import HARMLESS, NAME, Span, encoded_spans, secret_spans

MASK = "[redacted]"
_HARMLESS_TYPES = frozenset({int, bool, type(None)})

_SECRET_KEY = re.compile(rf".{{0,200}}?(?:{NAME}|(?i:authorization|cookie))", re.DOTALL)
_OPTION = re.compile(rf"--?[\w-]{{0,40}}?{NAME}")
# C0 without tab and newline, DEL, C1, soft hyphen, joiners and fillers, bidi controls, zero-width, line separators,
# variation selectors but the emoji one, tag characters, surrogates.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """Control, bidi, zero-width and tag characters written out as `\\xNN` or `\\u{...}`; a CR before LF is dropped."""
    if text.isprintable() and text.isascii():
        return text
    if not _INVISIBLE.search(text):
        return text
    return _INVISIBLE.sub(_escape, text.replace("\r\n", "\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{{{code:x}}}"


def masked(text: str, spans: Iterable[Span]) -> str:
    """The text with these places masked; a mask is not masked again."""
    pieces: list[str] = []
    done = 0
    for start, end in spans:
        if text[start:end] != MASK:
            pieces += (text[done:start], MASK)
            done = end
    return "".join((*pieces, text[done:])) if pieces else text


_COLOURS = re.compile(r"(?:\x1b\[|\x9b)[0-9;?]{0,16}[A-Za-z]")
_ENDS = "\x00\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029"

_AS_LINES = str.maketrans(dict.fromkeys(_ENDS, "\n"))


def _places(text: str) -> list[int]:
    """Where each character that one would see stands in a text."""
    places: list[int] = []
    done = 0
    for hidden in _INVISIBLE.finditer(text):
        if (end := hidden.start()) < done:
            continue  # inside a colour
        places.extend(range(done, end))
        colour = _COLOURS.match(text, end)
        if hidden[0] in _ENDS and not colour:
            places.append(end)
        done = colour.end() if colour else end + 1
    places.extend(range(done, len(text)))
    return places


def _forms(secret: str) -> Iterator[str]:
    """How an exact secret may stand in a text: as it is, line by line, in JSON, in a URL, in base64."""
    yield secret
    yield from secret.splitlines()
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode().rstrip("=")


class Redactor:
    """Takes secrets and escapes out of values. `known` are exact secrets; those under 6 characters are left alone."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        long_enough = [secret for secret in known if len(secret.strip()) >= 6]
        forms = {form for secret in long_enough for form in _forms(secret) if len(form.strip()) >= 6}
        ordered = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._keys: dict[str, tuple[str, bool]] = {}

    def text(self, text: str) -> str:
        """One text, clean."""
        if len(text) < 4:
            return visible(text)
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if (text.isascii() and text.isprintable()) or not _INVISIBLE.search(text):
            text = masked(text, secret_spans(text))
            return masked(text, encoded_spans(text))
        # What can't be seen may stand inside a name: `pass\xadword`, or a colour between a name and its value.
        seen = _INVISIBLE.sub("", _COLOURS.sub("", text).translate(_AS_LINES))
        if found := [*secret_spans(seen)]:
            places = _places(text)
            text = masked(text, [(places[start], places[end - 1] + 1) for start, end in found])
        return visible(masked(text, encoded_spans(text)))

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it clean; a text under a secret's name is masked whole."""
        return self._value(value, secret=False)

    def _value(self, value: Any, secret: bool) -> Any:
        if isinstance(value, str):
            return MASK if secret and value and not HARMLESS.fullmatch(value) else self.text(value)
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, list | tuple):
            return self._list(value, secret)
        return value if not isinstance(value, float) or isfinite(value) else None

    def _object(self, values: dict[str, Any]) -> dict[str, Any]:
        cleaned: dict[str, Any] = {}
        known = self._keys
        for name, value in values.items():
            key, secret = known.get(name) or self._key(name)
            while key in cleaned:
                key += "_"
            cleaned[key] = value if type(value) in _HARMLESS_TYPES else self._value(value, secret)
        return cleaned

    def _key(self, name: str) -> tuple[str, bool]:
        """A key, clean, and whether it names a secret; remembered, as most keys are field names."""
        if len(self._keys) >= 4096:
            self._keys.clear()
        known = self._keys[name] = (self.text(name), _SECRET_KEY.fullmatch(name[-200:]) is not None)
        return known

    def _list(self, values: Iterable[Any], secret: bool) -> list[Any]:
        """A list's values; what follows an option such as `--password` in an argv is its value."""
        cleaned: list[Any] = []
        follows = False
        for value in values:
            cleaned.append(MASK if follows and isinstance(value, str) else self._value(value, secret))
            follows = isinstance(value, str) and value.startswith("-") and _OPTION.fullmatch(value[:80]) is not None
        return cleaned
