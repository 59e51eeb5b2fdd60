"""Tokens as attackers make them."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from systemmanager.server.auth.tokens import Keys
from tests.serving import AUDIENCE, KEYS, OTHER_SECRET, SECRET, token


def _part(value: Any) -> str:
    data = value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _read(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def claims() -> dict[str, Any]:
    """What a good token of the most powerful kind says."""
    return _read(token("admin", subject="mallory").split(".")[1])


def forged(how: Mapping[str, Any]) -> str:
    """A token made from a good one.

    `raw` is the token as it is; `audience` and `secret` mint another gateway's; `swap` takes the payload of a stronger
    token; `edit` maps a text of the whole token; else `header` and `claims` replace single fields (null: leave out;
    `+60` is a number of seconds from now), `payload` is the payload's text, and `sign` is one of own, other, public,
    none, empty, hs512.
    """
    good = token("admin", subject="mallory")
    if how.get("good"):
        return good
    if "raw" in how:
        return str(how["raw"])
    if "audience" in how or "secret" in how:
        return token("admin", keys=Keys(how.get("audience", AUDIENCE), how.get("secret", SECRET)))
    if how.get("swap"):
        weak, strong = token("system:read").split("."), good.split(".")
        return ".".join((weak[0], strong[1], weak[2]))
    if "edit" in how:
        return _edited(good, how["edit"])
    header = _changed(_read(good.partition(".")[0]), how.get("header", {}))
    body = how["payload"] if "payload" in how else _changed(claims(), how.get("claims", {}))
    first = _part(header) if "header" in how else KEYS.signing.header
    return _signed(f"{first}.{_part(body)}", how.get("sign", "own"))


def _edited(good: str, edit: str) -> str:
    header, payload, signature = good.split(".")
    last = signature[-1]
    near = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return {
        "no signature": f"{header}.{payload}.",
        "two parts": f"{header}.{payload}",
        "four parts": f"{good}.{signature}",
        "padded": f"{good}=",
        "last bits": good[:-1] + near[near.index(last) ^ 1],
        "plus and slash": f"{header}.{payload}.{signature[:-2]}+/",
        "cut": good[:-1],
        "doubled": f"{good}{good}",
        "dots": "..",
        "header twice": f"{header}.{header}.{payload}.{signature}",
        "in capitals": good.upper(),
        "reversed": ".".join((signature, payload, header)),
    }[edit]


def _changed(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = {**fields, **{name: _time(value) for name, value in changes.items()}}
    return {name: value for name, value in changed.items() if not (name in changes and changes[name] is None)}


def _time(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "+-" and value[1:].isdigit():
        return int(time.time()) + int(value)
    return value


def _signed(signed: str, how: str) -> str:
    if how in ("none", "empty"):
        return f"{signed}." + ("" if how == "none" else "AA")
    if how == "random":
        return f"{signed}.{_b64(secrets.token_bytes(32))}"
    key = {"own": SECRET, "hs512": SECRET, "other": OTHER_SECRET, "public": KEYS.signing.header, "nothing": ""}[how]
    digest = hashlib.sha512 if how == "hs512" else hashlib.sha256
    return f"{signed}.{_b64(hmac.digest(key.encode(), signed.encode(), digest))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
