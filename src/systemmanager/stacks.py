"""Words of Compose stacks: where one comes from, what the policy says of them, and what may run at all."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from systemmanager.ports import Docker, Json

LABEL = "systemmanager.stack"
"""Label of every container of a stack, with its name; the others are below it: `.repo`, `.branch`, `.file`,
`.commit` (the last one that changed that service) and `.digest` (of its configuration)."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A git repository as it may be fetched: its one spelling, and the parts of it."""

    url: str
    scheme: str
    host: str
    port: int
    user: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a stack comes from. `repo` is the repository's one spelling, `file` a path inside the checkout."""

    stack: str
    repo: str
    branch: str
    file: str


@dataclass(frozen=True, slots=True)
class Exemption:
    """What one stack from one repository may have although no stack may: `bind:/proc`, `host_pid` ...

    `services` narrows it to these; None is all.
    """

    stack: str
    repo: str
    allow: frozenset[str]
    services: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class StackRules:
    """What `policy.yaml` says of stacks. Without hosts nothing is fetched, without roots no folder is mounted."""

    hosts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    exemptions: tuple[Exemption, ...] = ()


NO_STACKS = StackRules()


@dataclass(frozen=True, slots=True)
class Judged:
    """A resolved configuration that the policy lets run, and nothing else is run. Only `policy/compose` makes one.

    `text` is JSON and what Compose gets, to the letter: `config` and the gateway's labels. `environment` is what
    Compose's own process gets, of which secrets and configs may be made. `digests` tell each service's configuration
    from every other; `exempted` names what only an exemption allowed, `unset` the variables that nobody set.
    """

    source: Source
    commit: str
    text: str
    config: Mapping[str, Any]
    environment: Mapping[str, str] = field(repr=False, default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    exempted: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a gateway deployed. `given` are the caller's variables, `environment` what Compose got, of `.env` too."""

    source: Source
    commit: str
    config: dict[str, Any]
    given: dict[str, str] = field(repr=False)
    environment: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """One Compose file of a checkout: its name there, its text, and the files that Compose reads because of it.

    `more` are Compose files themselves, `plain` are others (env files). Paths are relative to the file's folder.
    """

    name: str
    text: str
    more: tuple[str, ...]
    plain: tuple[str, ...]


class StackJudge(Protocol):
    """What the policy says of one stack on one target. A Permit carries it; every method raises `Denied`."""

    def repository(self, url: str) -> Repository:
        """The repository, when it may be fetched."""
        ...

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts and addresses that git may reach."""
        ...

    def document(self, name: str, text: str) -> Document:
        """One Compose file before Compose reads it: bounded, and naming no file that it must not read."""
        ...

    def variables(self, given: Mapping[str, str], text: str) -> dict[str, str]:
        """The variables for `${...}`: those of the checkout's `.env`, and over them what the caller gave."""
        ...

    def resolved(
        self,
        source: Source,
        commit: str,
        config: Mapping[str, Any],
        *,
        checkout: str,
        environment: Mapping[str, str],
        documents: Sequence[Document] = (),
    ) -> Judged:
        """What `docker compose config` made of all that. The one way to a `Judged`."""
        ...

    def adjusted(self, judged: Judged, commits: Mapping[str, str], images: Mapping[str, str]) -> Judged:
        """The same, these services with other commits in their labels, or with ids in place of their images' names."""
        ...


class Stacks(Docker, Protocol):
    """Compose stacks of one engine, and that engine. Nothing runs that the policy has not judged."""

    async def resolve(
        self, stack: str, repo: str, branch: str, file: str, given: Mapping[str, str], commit: str | None = None
    ) -> Judged:
        """Fetch a branch, or one commit of it, and resolve and judge its configuration; nothing changes on the target.

        Raises `Denied` for what the policy refuses, `CommandMissing` without git or Compose on the gateway.
        """
        ...

    async def kept(self, stack: str) -> Kept | None:
        """What this gateway deployed last; None where it never did, or another one did."""
        ...

    async def keep(self, judged: Judged, given: Mapping[str, str]) -> None: ...

    async def forget(self, stack: str) -> None: ...

    async def again(self, kept: Kept) -> Judged:
        """What was kept, judged by the policy of today."""
        ...

    def adjusted(
        self, judged: Judged, commits: Mapping[str, str] | None = None, images: Mapping[str, str] | None = None
    ) -> Judged:
        """The same, with services labelled as of other commits, those that did not change since, or by image id."""
        ...

    def alone(self, stack: str) -> AbstractAsyncContextManager[None]:
        """Nobody else of this gateway changes the stack meanwhile. Raises `EngineRefused` when somebody does."""
        ...

    async def build(self, judged: Judged) -> None: ...

    async def up(self, judged: Judged) -> None:
        """Make the stack what is judged. All its images must be there."""
        ...

    async def down(self, stack: str, volumes: bool) -> None:
        """Remove containers and networks of a stack, with `volumes` its volumes too."""
        ...

    async def volumes(self) -> Sequence[Json]: ...
