"""What an operation may ask of a target. Executors implement these; operations see nothing else of a target.

Every method may raise a `TargetError`. None outlives the call's deadline, and all output is bounded where it is read.
"""

import operator
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from systemmanager.following import Following

if TYPE_CHECKING:
    from anyio.abc import ByteStream


class Result(BaseModel):
    """The base of everything that an operation answers: frozen, and closed against fields that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Foreign:
    """Marks text in a result that somebody on or behind the target may have written as they liked.

    An answer that holds such text is untrusted: it says so, and its readers are tainted. `fenced` text stands between
    marks that nobody can guess.
    """

    fenced: bool = False


ForeignText = Annotated[str, Foreign()]
"""A line of it: a command line, a header, a subject."""

FreeText = Annotated[str, Foreign(fenced=True)]
"""Logs, files, bodies: text that could pass for more than one field, and for instructions."""


Shown = Callable[[str], str]
"""How a text looks once its secrets are masked. Whoever compares a caller's text with a target's has to compare it with
that: else a secret that is never shown can be guessed letter by letter."""


class Page(Result):
    """The base of every answer that holds a list."""

    total: int = Field(description="How many there are.")
    truncated: bool = Field(default=False, exclude_if=operator.not_, description="The list is cut; go on with `next`.")
    next: str | None = Field(default=None, description="Pass as `cursor` to go on.")


# --- Shell -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Output:
    """What a finished command left; `truncated` says that its output was cut at the bound."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    truncated: bool = False


class Shell(Protocol):
    following: Following | None  # set by the runner once the port is open; None where the call is no job

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
        """Run one program, without a shell that could read its arguments, and wait for its end.

        `privileged` asks for root, which the target's `sudo_policy` grants or not. With `check`, any exit status but 0
        raises `CommandFailed`; a signal or a lost connection always raises. Raises `CommandMissing` where there is no
        such program. Output beyond the target's bound ends the program: `OutputTooLarge`, or with `partial` what
        there is; with `latest` the program goes on, and the last of what it said is kept. `env` is added to what the
        program sees; behind sudo that needs `SETENV:` (or ALL) in sudoers.
        """
        ...

    async def detached(
        self, step: str, *argv: str, privileged: bool = False, check: bool = True, env: Mapping[str, str] | None = None
    ) -> Output:
        """Run one program that goes on whatever becomes of us or of the connection, and wait for its end.

        A job starts it once under each step's name ([a-z-], 20 at most); asked again, by the next process too, this
        takes up the same program. Answers and raises what `run` with `latest` does, and `EndedUnknown`."""
        ...

    async def remember(self, name: str, read: Callable[[], Awaitable[Any]]) -> Any:
        """What `read` answers, as JSON; asked again by the same job, what it answered the first time."""

    async def forget(self) -> None:
        """Remove what detached programs of this job left on the target. Raises no `TargetError`."""

    async def anew(self) -> bool | None: ...  # whether a new connection reaches the target; None: it needs none


# --- Files -----------------------------------------------------------------------------------------------------------

FileKind = Literal["file", "directory", "link", "other"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file. `size` in bytes, `modified` in seconds since 1970, `mode` as in stat(2), owners by name or number."""

    path: str
    kind: FileKind
    size: int
    mode: int
    modified: float
    owner: str
    group: str
    link_target: str | None = None
    links: int = 1


class Files(Protocol):
    """Reads below the target's allowed paths, links resolved on the target; what leads out is `PathOutside`."""

    async def info(self, path: str) -> FileInfo: ...

    async def list(self, path: str) -> Sequence[FileInfo]:
        """What a directory holds, by name, at most 10,000 entries; links are not followed."""
        ...

    async def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a regular file from `offset`; fewer only at its end. Devices and pipes are refused."""
        ...


# --- Facts -----------------------------------------------------------------------------------------------------------


class Cpu(Result):
    percent: float = Field(description="Busy, all cores, over the sample interval.")
    cores: int
    load: list[float] = Field(description="Load average over 1, 5 and 15 minutes.")


class Memory(Result):
    total: int = Field(description="Bytes.")
    available: int
    percent: float = Field(description="Used, in percent of total.")
    swap_total: int = 0
    swap_used: int = 0


class Disk(Result):
    mount: str
    device: str
    filesystem: str
    total: int = Field(description="Bytes.")
    free: int = Field(description="Bytes free for users.")
    percent: float


class SystemStatus(Result):
    hostname: str
    system: str = Field(description="Distribution and kernel.")
    uptime: int = Field(description="Seconds.")
    cpu: Cpu
    memory: Memory
    disks: list[Disk]


class Process(Result):
    pid: int
    name: ForeignText
    user: str
    cpu: float = Field(description="Percent of one core over the sample interval.")
    memory: float = Field(description="Resident, in percent of all memory.")
    rss: int = Field(description="Resident bytes.")
    state: str
    command: ForeignText


class Interface(Result):
    name: str
    up: bool
    addresses: list[str] = Field(description="With prefix length.")
    mac: str | None = None
    mtu: int
    speed: int | None = Field(default=None, description="Mbit/s where known.")


class IoCounters(Result):
    name: str
    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int
    errors_in: int = 0
    errors_out: int = 0
    drops_in: int = 0
    drops_out: int = 0


class Connection(Result):
    protocol: str
    local: str = Field(description="address:port")
    remote: str | None = None
    state: str
    pid: int | None = None
    process: ForeignText | None = None


class Facts(Protocol):
    async def status(self) -> SystemStatus: ...

    async def processes(self) -> Sequence[Process]:
        """All processes; CPU from two samples taken some hundred milliseconds apart."""
        ...

    async def interfaces(self) -> Sequence[Interface]: ...

    async def counters(self) -> Sequence[IoCounters]: ...

    async def connections(self) -> Sequence[Connection]:
        """TCP and UDP sockets; `pid` and `process` where the target's user may see them."""
        ...


# --- Network: the target's vantage -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One HTTP answer. `body` is decoded and cut at a bound, which `truncated` says, and `late` where that bound was
    time; `received` counts the bytes that came. `elapsed` and `phases` (connect, tls, first_byte) are in seconds; `tls`
    holds protocol and cipher."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed: float
    truncated: bool = False
    late: bool = False
    received: int = 0
    version: str = "HTTP/1.1"
    phases: Mapping[str, float] = field(default_factory=dict)
    tls: Mapping[str, str] | None = None


class Network(Shell, Protocol):
    """Connections that start at the target, beside its shell. Hosts that it may not reach are `Denied`."""

    async def addresses(self, host: str) -> Sequence[str]:
        """Addresses of a host as the target resolves it, each one judged: what a program may be given in its place.

        Raises `NameNotResolved`.
        """
        ...

    async def connect(self, host: str, port: int, timeout: float) -> "ByteStream":
        """Open a TCP connection from the target.

        Raises `Unreachable` (its `details["reason"]` is "refused" when the host said no), `NameNotResolved`,
        `DeadlineExceeded`, and `Unsupported` where the target lets no connection through at all.
        """
        ...

    async def nameservers(self) -> Sequence[str]:
        """Addresses of the target's resolvers."""
        ...

    async def ask(self, server: str, query: bytes, timeout: float) -> bytes:
        """Send one DNS message to a resolver and answer its reply, whole. Raises what `connect` does."""
        ...

    async def echo(self, host: str, count: int) -> Sequence[float | None]:
        """Unprivileged ICMP echo from the target: milliseconds per probe, None for a lost one; or `Unsupported`."""
        ...

    async def request(self, method: str, url: str, timeout: float) -> HttpAnswer:
        """One HTTP request from the target, without body, cookies, credentials, proxy or redirects."""
        ...


# --- Docker ----------------------------------------------------------------------------------------------------------

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log; `truncated` says that fewer lines than asked for are in it, because of the output bound."""

    text: str
    truncated: bool = False


class Docker(Protocol):
    """The Docker Engine's API, as the SDK gives it: answers are the Engine's own JSON objects.

    An engine that is not there, hangs or goes away is `EngineUnavailable`; what it refuses is `EngineRefused`; what it
    does not have is `NotFound`, with the names that are near.
    """

    following: Following | None  # as of a Shell

    async def version(self) -> Json: ...

    async def containers(self) -> Sequence[Json]:
        """All containers as one list call gives them, those that don't run too."""
        ...

    async def inspect(self, name: str) -> Json: ...

    async def act(self, action: Literal["start", "stop", "restart"], name: str) -> None:
        """Waits for the end of it. A container that is stopped or started already is no error."""
        ...

    async def logs(self, name: str, lines: int, *, stamped: bool = False) -> Tail:
        """The last lines of both streams, in the order in which they were written; `stamped`: each behind its time in
        RFC 3339 and a space."""
        ...

    async def images(self) -> Sequence[Json]: ...

    async def inspect_image(self, name: str) -> Json: ...

    async def pull(self, image: str, tag: str, platform: str | None = None) -> Json:
        """Pull one image and answer its inspection. `image@digest` needs no tag. Cancelled, the pull ends there too."""
        ...

    async def digest_now(self, reference: str) -> str:
        """The digest that the registry has under a name now; nothing is pulled."""
        ...

    async def networks(self) -> Sequence[Json]: ...

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Create a container from the body of `POST /containers/create`; answers its id."""
        ...

    async def rename(self, name: str, new_name: str) -> None: ...

    async def remove(self, name: str, force: bool = False) -> None:
        """Remove a container but not its volumes. One that is gone already is no error."""
        ...

    async def connect(self, network: str, name: str, endpoint: Mapping[str, Any]) -> None: ...

    async def disconnect(self, network: str, name: str) -> None: ...


# --- Http ------------------------------------------------------------------------------------------------------------


class Http(Protocol):
    async def request(self, method: str, path: str) -> HttpAnswer:
        """One request to the target's own origin, with its credentials; redirects are not followed off that origin."""
        ...

    @property
    def health_path(self) -> str: ...


# --- Probe: every kind of target has it ------------------------------------------------------------------------------


class Probe(Protocol):
    async def probe(self) -> Mapping[str, str]:
        """Reach the target with its credentials and say what answered, such as `{"engine": "26.1.5"}`."""
        ...


# --- Fleet: the gateway itself ---------------------------------------------------------------------------------------


class Fleet(Protocol):
    """What operations that need no target ask of the gateway; answers are already narrowed to the caller's rights."""

    def targets(self, selector: str | None = None) -> Sequence[Json]: ...

    def explain(self, tool: str, target: str, arguments: Mapping[str, Any]) -> Json: ...

    def audit(self, **filters: Any) -> Iterator[Json]: ...

    def health(self) -> Json: ...

    async def jobs(self, state: str | None) -> Sequence[Json]: ...
    async def job(self, id: str) -> Json: ...
    async def job_output(self, id: str, target: str | None) -> Json: ...
    async def cancel_job(self, id: str) -> Json: ...
