"""Where in a result stands text that others wrote, as its model declares it, and the marks around the free part of it.

A fence is `<<untrusted NONCE>>` and `<<end NONCE>>`, with a nonce that is new for each answer: whoever wrote the text
could not know it, so nothing in the text can end the fence.
"""

import re
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from systemmanager.ports import Foreign

Places = Mapping[str, Any] | bool | None
"""Texts of a value: True for all of them, by field where only some are meant, None for none."""

_WHOLE = re.compile(r"<<untrusted ([0-9a-f]{12})>>[ \n](.*)[ \n]<<end \1>>", re.DOTALL)
_END = re.compile(r"[ \n]<<end [0-9a-f]{12}>>\Z")
LONGEST_END = 24
FREE_DETAILS: Mapping[str, Any] = {
    **dict.fromkeys(("stderr", "stdout", "output", "line", "began", "said", "problem", "logs", "journal"), True),
    "likely_cause": {"what": True},
}
"""Details of errors that hold what a program or a server said."""


def fence(value: Any, where: Places, nonce: str) -> Any:
    """A JSON value with its free texts fenced, as far as `where` says."""
    if where is None:
        return value
    if isinstance(value, str):
        between = "\n" if "\n" in value else " "
        return f"<<untrusted {nonce}>>{between}{value}{between}<<end {nonce}>>" if value and where is True else value
    if isinstance(value, list):
        return [fence(item, where, nonce) for item in value]
    if isinstance(value, dict):
        if where is True:
            return {name: fence(item, True, nonce) for name, item in value.items()}
        assert isinstance(where, Mapping)
        return {name: fence(item, where.get(name), nonce) for name, item in value.items()}
    return value


def fence_error(error: dict[str, Any], nonce: str | None = None) -> bool:
    """Fence what a target said in an error's details, in place; whether there was anything."""
    details = error.get("details") or {}
    free = {name: value for name, value in details.items() if name in FREE_DETAILS}
    if free:
        error["details"] = {**details, **fence(free, FREE_DETAILS, nonce or new_nonce())}
    return bool(free)


def unfenced(value: Any) -> Any:
    """The value as it was before: for a person, who sees where a text ends."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value) if value.startswith("<<untrusted ") else None
        return found[2] if found else value
    if isinstance(value, list):
        return [unfenced(item) for item in value]
    return {name: unfenced(item) for name, item in value.items()} if isinstance(value, dict) else value


def new_nonce() -> str:
    return secrets.token_hex(6)


def end_of(text: str) -> str:
    """The mark that ends a fenced text; nothing where there is none."""
    found = _END.search(text[-LONGEST_END:])
    return found[0] if found else ""


@cache
def places(model: type[BaseModel], *, fenced: bool) -> Places:
    """Where in a result of this model stands text that others wrote: all of it, or only what is fenced."""
    found = {
        name: where
        for name, field in model.model_fields.items()
        if (where := _within(field.annotation, field.metadata, fenced)) is not None
    }
    return found or None


def _within(annotation: Any, metadata: Any, fenced: bool) -> Places:
    if any(isinstance(one, Foreign) and one.fenced >= fenced for one in metadata):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return places(annotation, fenced=fenced)
    parts = get_args(annotation)
    # The arguments of Annotated are its type and then its metadata.
    inner = (_within(part, parts, fenced) for part in parts if not isinstance(part, Foreign))
    return next((where for where in inner if where is not None), None)


def present(value: Any, where: Places) -> bool:
    """Whether there is any text at these places."""
    if where is None or not value:
        return False
    if isinstance(where, bool):
        return where
    if isinstance(value, list):
        return any(present(item, where) for item in value)
    return any(present(value.get(name), inner) for name, inner in where.items())
