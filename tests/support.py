"""Pieces that many tests build with: targets, principals, a gateway over fake or real ports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

import systemmanager.operations  # noqa: F401
from systemmanager.audit.log import AuditLog
from systemmanager.audit.reading import query
from systemmanager.errors import NameNotResolved
from systemmanager.executors import Executors, Surroundings
from systemmanager.executors.bounded import finished
from systemmanager.executors.lasting import Lasting
from systemmanager.executors.own_files import OwnFiles
from systemmanager.fencing import unfenced
from systemmanager.gateway import Gateway
from systemmanager.journal import Journal
from systemmanager.operation import CATALOGUE
from systemmanager.policy.gate import decide
from systemmanager.policyfile import BUILTIN
from systemmanager.ports import Output
from systemmanager.registry import Registry
from systemmanager.request import Grant, Permit, Principal, Request
from systemmanager.running import Opener
from systemmanager.scopes import expand
from systemmanager.target import Target

T = TypeVar("T")

UNTAINTED = replace(BUILTIN, taint_minutes=0)
"""The policy of a gateway in tests that read and change with one principal, where that is not the point."""

OPERATOR = Principal("local:0", "operator", (Grant(expand(["admin"])),), "process")


def operator(subject: str) -> Principal:
    """One of several operators, each with every right and a rate limit of their own."""
    return replace(OPERATOR, subject=subject)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server on loopback, by its port. Its connections end with it, so that none is left open for a later test."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(OSError):
                await serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # the loop closes the socket a turn later
            tasks.discard(task)

    async with await asyncio.start_server(one, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def principal(*scopes: str, subject: str = "tester", targets: str | None = None) -> Principal:
    return Principal(subject, "token", (Grant(expand(scopes), targets),), "test")


LOOPBACK = ["*", "127.0.0.0/8", "::1"]
"""What lets network tests reach the servers that they start: `constraints.hosts` of every target made here."""


def target(id: str = "web-01", executor: str = "local", **fields: Any) -> Target:
    """A target as targets.yaml would give it; everything is offered, loopback too, unless said otherwise."""
    connections: dict[str, Any] = {
        "ssh": {"host": "127.0.0.2", "username": "root"},
        "docker": {"socket_path": "/var/run/docker.sock"},
        "http": {"base_url": "http://127.0.0.1"},
    }
    body = {"id": id, "executor": executor, "capabilities": ["admin"], **fields}
    if executor in ("local", "ssh"):
        body["constraints"] = {"hosts": LOOPBACK, **body.get("constraints", {})}
    if executor in connections:
        body.setdefault("connection", connections[executor])
    made: Target = TypeAdapter(Target).validate_python(body)
    return made


def registry(*targets: Target, **fields: Any) -> Registry:
    return Registry({one.id: one for one in targets}, **fields)


@asynccontextmanager
async def real_gateway(tmp_path: Path, *targets: Target, **fields: Any) -> AsyncIterator[Gateway]:
    """A gateway over the real executors, with its state below `tmp_path`."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    surroundings = Surroundings(runtime, (tmp_path / "known_hosts",), OwnFiles(tmp_path / "protected"), state=tmp_path)
    audit = AuditLog(tmp_path / "audit.jsonl")
    try:
        async with Executors(surroundings) as executors:
            yield Gateway(registry(*targets), executors.open, Journal(audit), **{"policy": UNTAINTED} | fields)
    finally:
        audit.close()


def call(tmp_path: Path, tool: str, arguments: Mapping[str, Any], *targets: Target, **fields: Any) -> dict[str, Any]:
    """One call as the operator on a fresh gateway; an approval is given. Answers the Reply as a dict, unfenced."""

    async def approve(requests: Sequence[Any]) -> str:
        return "the test"

    async def work() -> dict[str, Any]:
        async with real_gateway(tmp_path, *targets, **fields) as gateway:
            reply: dict[str, Any] = unfenced((await gateway.call(OPERATOR, tool, arguments, approve=approve)).as_dict())
            return reply

    return run(work())


def records(tmp_path: Path) -> list[dict[str, Any]]:
    """The audit log of a gateway made by `real_gateway` or `fake_gateway`, oldest first."""
    return list(reversed(list(query(tmp_path / "audit.jsonl"))))


def permitted(tool: str, where: Target, arguments: Mapping[str, Any] | None = None, **fields: Any) -> Permit:
    """A Permit as the gate makes it for the operator; `fields` are those of the Request."""
    operation = CATALOGUE[tool]
    access, given = operation.access, arguments or {}
    asked = Request("test", OPERATOR, operation, access, given, where, granted=OPERATOR.grants, **fields)
    decision = decide(replace(asked, approvers=("the test",)))
    assert decision.permit is not None, decision.against
    return decision.permit


@dataclass
class FakeShell(Lasting):
    """A Shell (and Network) whose commands answer from a script; an unexpected command fails the test."""

    replies: list[dict[str, Any]]
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def is_root(self) -> bool:
        return True

    async def run(
        self,
        *argv: str,
        privileged: bool = False,
        check: bool = True,
        partial: bool = False,
        latest: bool = False,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Output:
        self.seen.append(argv)
        for index, reply in enumerate(self.replies):
            if reply["argv"] == list(argv):
                del self.replies[index]
                output = Output(argv, reply.get("status", 0), reply.get("stdout", ""), reply.get("stderr", ""))
                return finished(output, check=check, partial=partial, latest=latest, limit=1024)
        raise AssertionError(
            f"unexpected command {argv!r}; expected one of {[reply['argv'] for reply in self.replies]}"
        )

    async def addresses(self, host: str) -> Sequence[str]:
        if host.endswith(".invalid"):
            raise NameNotResolved(f"{host!r} can't be resolved")
        return [host]


def fake_gateway(tmp_path: Path, port: Callable[[Permit, str], Any], *targets: Target, **fields: Any) -> Gateway:
    """A gateway whose ports come from `port(permit, name)`."""

    @asynccontextmanager
    async def open(permit: Permit, name: str) -> AsyncIterator[Any]:
        yield port(permit, name)

    return opened_by(open, tmp_path, *targets, **fields)


def opened_by(open: Opener, tmp_path: Path, *targets: Target, **fields: Any) -> Gateway:
    """A gateway without executors: `open` gives its ports."""
    fields = {"policy": UNTAINTED} | fields
    return Gateway(registry(*targets), open, Journal(AuditLog(tmp_path / "audit.jsonl")), **fields)
