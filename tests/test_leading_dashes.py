"""No text of a caller is ever read as an option: for every operation that there is, and so for each new one.

Each text parameter of each operation gets values that start with `-`. Either validation refuses them, or a shell that
records what it is given sees them behind `--` or inside a longer `name=value` word only.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from systemmanager.errors import CommandMissing, GatewayError, Unsupported
from systemmanager.executors.lasting import Lasting
from systemmanager.operation import CATALOGUE, Operation, Risk
from systemmanager.operation import operation as declared
from systemmanager.ports import Output, Result, Shell
from tests.support import run

DASHES = ["-oProxyCommand=id", "--privileged", "-H", "-", "--help", "--file=/etc/shadow", "-c1"]
SAMPLES: list[Any] = [
    "sample1", "/var/log/sample1", "https://sample1.example/x", "10.11.12.13", 7, 443, True, 1.5,
    ["sample1"], [443], "1",
]  # fmt: skip

EVERY = {name + begins: form for name, one in CATALOGUE.items() for begins, form in {"": one, **one.forms}.items()}
PROGRAMMED = sorted(name for name, one in EVERY.items() if one.port in ("Shell", "Network"))
OTHERS = sorted(name for name, one in EVERY.items() if one.port not in ("Shell", "Network", "Fleet"))


class Recording(Lasting):
    """A Shell and Network that runs nothing: programs say nothing and succeed, but for those that are missing."""

    def __init__(self, missing: frozenset[str]) -> None:
        self.missing, self.seen = missing, list[tuple[str, ...]]()

    def is_root(self) -> bool:
        return True

    async def run(self, *argv: str, env: Mapping[str, str] | None = None, **_: Any) -> Output:
        self.seen.append(argv)
        if argv[0] in self.missing:
            raise CommandMissing(f"{argv[0]} is missing")
        return Output(argv, 0, "", "")

    async def addresses(self, host: str) -> Sequence[str]:
        return [host]

    async def nameservers(self) -> Sequence[str]:
        return ["127.0.0.1"]

    def __getattr__(self, name: str) -> Any:
        async def unsupported(*_: Any) -> Any:
            raise Unsupported(f"no {name} here")

        return unsupported


def accepted(model: type[BaseModel], arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments as the operation gets them, None when they are refused."""
    try:
        made = model.model_validate(dict(arguments))
    except ValidationError:
        return None
    return {name: getattr(made, name) for name in type(made).model_fields}


def choices(annotation: Any) -> list[Any]:
    """The values of a parameter that takes fixed ones."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in choices(part)]


def texts(operation: Operation) -> list[str]:
    """Parameters that take free text, alone or in a list."""
    found = []
    for name, schema in operation.arguments.model_json_schema().get("properties", {}).items():
        branches = schema.get("anyOf", [schema])
        branches += [branch["items"] for branch in branches if "items" in branch]
        if any(branch.get("type") == "string" and "enum" not in branch for branch in branches):
            found.append(name)
    return found


def uses(operation: Operation) -> Iterator[dict[str, Any]]:
    """Valid arguments: one set for every combination of fixed values, each other required parameter by a sample."""
    fields = operation.arguments.model_fields
    fixed = {name: values for name, field in fields.items() if (values := choices(field.annotation))}
    for chosen in itertools.product(*fixed.values()):
        base = dict(zip(fixed, chosen, strict=True))
        needed = [name for name, field in fields.items() if field.is_required() and name not in base]
        for sample in itertools.product(SAMPLES, repeat=len(needed)):
            arguments = base | dict(zip(needed, sample, strict=True))
            if accepted(operation.arguments, arguments) is not None:
                yield arguments
                break


def commands(operation: Operation, arguments: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Every command that the operation runs for these arguments, whichever one of its programs is missing."""
    found: set[tuple[str, ...]] = set()
    tried, waiting = set[frozenset[str]](), [frozenset[str]()]
    while waiting:
        missing = waiting.pop()
        tried.add(missing)
        shell = Recording(missing)
        with suppress(GatewayError):
            run(operation.function(shell, **arguments))  # type: ignore[arg-type]
        found |= set(shell.seen)
        more = {missing | {argv[0]} for argv in shell.seen} - tried - set(waiting)
        waiting += [one for one in more if len(one) <= 4]
    return found


def is_harmless(argv: tuple[str, ...], value: str) -> bool:
    """Whether no word that begins with the value stands before the end of the options."""
    end = argv.index("--") if "--" in argv else len(argv)
    return not any(word == value or (len(value) > 1 and word.startswith(value)) for word in argv[:end])


def misread(operation: Operation) -> list[str]:
    """The values that an operation hands to a program where it may take them for an option."""
    found = []
    for arguments in uses(operation):
        for parameter, dash in itertools.product(texts(operation), DASHES):
            for value in (dash, [dash]):
                given = accepted(operation.arguments, {**arguments, parameter: value})
                ran = commands(operation, given) if given is not None else ()
                found += [f"{parameter}={value!r} runs {argv}" for argv in ran if not is_harmless(argv, dash)]
    return found


@pytest.mark.parametrize("name", PROGRAMMED)
def test_no_text_that_starts_with_a_dash_is_an_option(name: str) -> None:
    assert list(uses(EVERY[name])), "no valid arguments were found: give SAMPLES one"
    assert misread(EVERY[name]) == []


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_take_no_dash_where_a_name_is_meant(name: str) -> None:
    """They run no program, but an option is no name. What is searched for or asked may be anything."""
    operation, free = EVERY[name], {"pattern", "context"}
    for arguments in uses(operation):
        for parameter in set(texts(operation)) - free:
            for dash in DASHES:
                assert accepted(operation.arguments, {**arguments, parameter: dash}) is None, (parameter, dash)


@pytest.fixture
def careless() -> Iterator[dict[str, Operation]]:
    """Operations that take any text."""

    @declared(scope="system:read", risk=Risk.LOW)
    async def careless_word(shell: Shell, name: str) -> Result:
        """x"""
        await shell.run("ls", name)
        return Result()

    @declared(scope="system:read", risk=Risk.LOW)
    async def careless_fallback(shell: Shell, name: str) -> Result:
        """x"""
        try:
            await shell.run("ls", "--", name)
        except CommandMissing:
            await shell.run("dir", name)
        return Result()

    @declared(scope="system:read", risk=Risk.LOW)
    async def careless_list(shell: Shell, names: list[str] | None = None) -> Result:
        """x"""
        await shell.run("ls", *(names or ()))
        return Result()

    @declared(scope="system:read", risk=Risk.LOW)
    async def careful(shell: Shell, name: str) -> Result:
        """x"""
        await shell.run("ls", f"--sort={name}", "--", name)
        return Result()

    names = ("careless_word", "careless_fallback", "careless_list", "careful")
    yield {name: CATALOGUE.pop(name) for name in names}


def test_the_walk_sees_what_is_careless(careless: dict[str, Operation]) -> None:
    assert {name for name, one in careless.items() if misread(one)} == {
        "careless_word", "careless_fallback", "careless_list",
    }  # fmt: skip
