"""What is found in a resolved configuration that no stack may have unless the policy exempts it by name."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Location = tuple[str | int, ...]


_PLAIN = re.compile(r"[!-~]{1,200}")


def shown(what: object) -> str:
    """A word of the repository as it is told; what may be a sentence for whoever reads it is not."""
    return text if _PLAIN.fullmatch(text := str(what)) else "[...]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is refused: an exemption names it as `code` or as `code:what`."""

    code: str
    what: str
    location: Location
    why: str

    @property
    def name(self) -> str:
        return f"{self.code}:{self.what}" if self.what else self.code

    @property
    def service(self) -> str | None:
        """The service that has it, None for the stack as a whole."""
        return str(self.location[1]) if self.location[:1] == ("services",) and len(self.location) > 1 else None


Check = Callable[[Any, Location], Iterator[Finding]]


def is_set(value: Any) -> bool:
    """Whether a field says something; Compose writes out some that don't."""
    return value not in (None, False, "", [], {}, 0)


def anything(value: Any, at: Location) -> Iterator[Finding]:
    """A field that harms nobody, whatever it says."""
    return iter(())


def never(code: str, why: str) -> Check:
    """A field that must not be set."""

    def check(value: Any, at: Location) -> Iterator[Finding]:
        if is_set(value):
            yield Finding(code, "", at, why)

    return check


def one_of(code: str, why: str, *allowed: str, prefix: str = "\0") -> Check:
    """A field that may have these values, or values that begin so."""

    def check(value: Any, at: Location) -> Iterator[Finding]:
        if is_set(value) and not (str(value) in allowed or str(value).startswith(prefix)):
            yield Finding(code, str(value), at, why)

    return check


def checked(config: Any, at: Location, checks: Mapping[str, Check], code: str = "unknown_field") -> Iterator[Finding]:
    """Every field of one object by its check. A field that nobody judges is refused: a newer Compose may know it."""
    if not isinstance(config, Mapping):
        if is_set(config):
            yield Finding(code, "", at, "is not what the gateway expects there")
        return
    for name, value in config.items():
        check = checks.get(name)
        if check is not None:
            yield from check(value, (*at, name))
        elif is_set(value) and not str(name).startswith("x-"):
            yield Finding(code, str(name), (*at, name), "is a field that the gateway does not judge")


def each(items: Any, at: Location) -> Iterator[tuple[Any, Location]]:
    """A list's items, or an object's values, with their places."""
    pairs = items.items() if isinstance(items, Mapping) else enumerate(items or ())
    for name, item in pairs:
        yield item, (*at, name)


def fields(check: Check, names: Collection[str]) -> dict[str, Check]:
    return dict.fromkeys(names, check)


def labels(value: Any, at: Location) -> Iterator[Finding]:
    names = value if isinstance(value, Mapping) else {str(one).partition("=")[0]: one for one in value or ()}
    for name in names:
        if str(name).lower().startswith(("systemmanager.", "com.docker.")):
            yield Finding("labels", str(name), (*at, str(name)), "is a label of the gateway or of Docker")
