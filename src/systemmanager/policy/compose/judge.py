"""The judge of one stack on one target: the only maker of `Judged`, and so the only way to run a stack."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from systemmanager.errors import Denied
from systemmanager.policy.compose import files, repository
from systemmanager.policy.compose.document import read
from systemmanager.policy.compose.findings import Finding, each, shown
from systemmanager.policy.compose.resources import resources
from systemmanager.policy.compose.services import Surroundings, service
from systemmanager.stacks import LABEL, Document, Judged, Repository, Source, StackRules
from systemmanager.target import Target

MOST_SERVICES = 100
MOST_TOLD = 10

_TOP = {"name", "services", "volumes", "networks", "configs", "secrets"}


@dataclass(frozen=True, slots=True)
class Judge:
    """What the policy says of stacks on one target; a `stacks.StackJudge`."""

    target: Target
    rules: StackRules

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.rules.hosts

    def repository(self, url: str) -> Repository:
        return repository.repository(url, self.rules)

    def document(self, name: str, text: str) -> Document:
        return files.document(name, text)

    def variables(self, given: Mapping[str, str], text: str) -> dict[str, str]:
        return files.variables(given, text)

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
        found = list(self._findings(source, config, checkout))
        refused = [one for one in found if not self._exempted(source, one)]
        if refused:
            raise _denied(source, refused, documents)
        plain = {name: value for name, value in config.items() if not str(name).startswith("x-")}
        digests = _digests(plain)
        text = _labelled(plain, source, dict.fromkeys(digests, commit), digests)
        names = tuple(sorted({one.name for one in found}))
        return Judged(source, commit, text, plain, dict(environment), digests, names)

    def adjusted(self, judged: Judged, commits: Mapping[str, str], images: Mapping[str, str]) -> Judged:
        of = {name: commits.get(name, judged.commit) for name in judged.digests}
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", id) for id in images.values()), "only what has run by its id"
        services = {
            name: {**one, "image": images[name]} if name in images else one
            for name, one in judged.config["services"].items()
        }
        config = {**judged.config, "services": services}
        return replace(judged, text=_labelled(config, judged.source, of, judged.digests))

    def _findings(self, source: Source, config: Mapping[str, Any], checkout: str) -> Iterator[Finding]:
        for name, value in config.items():
            if name not in _TOP and not str(name).startswith("x-") and value:
                yield Finding("unknown_field", str(name), (name,), "is a field that the gateway does not judge")
        if config.get("name") != source.stack:
            yield Finding("name", str(config.get("name")), ("name",), f"is not the stack's name, {source.stack}")
        services = config.get("services") or {}
        if not 0 < len(services) <= MOST_SERVICES:
            yield Finding("services", "", ("services",), f"must hold 1 to {MOST_SERVICES} services")
        connection, limits = self.target.connection, self.target.constraints
        names = ("socket_path", "docker_socket")
        sockets = tuple(str(path) for name in names if (path := getattr(connection, name, None)))
        around = Surroundings(source.stack, checkout, self.rules.roots, sockets, limits.images)
        for one, at in each(services, ("services",)):
            yield from service(one, at, around)
        yield from resources(config, source.stack)

    def _exempted(self, source: Source, finding: Finding) -> bool:
        return any(
            (one.stack, one.repo) == (source.stack, source.repo)
            and not one.allow.isdisjoint((finding.name, finding.code))
            and (one.services is None or finding.service in one.services)
            for one in self.rules.exemptions
        )


def _denied(source: Source, findings: Sequence[Finding], documents: Sequence[Document]) -> Denied:
    told = [_told(one, source, documents) for one in findings[:MOST_TOLD]]
    more = f" (and {len(findings) - MOST_TOLD} more)" if len(findings) > MOST_TOLD else ""
    first = told[0]
    names = ", ".join(dict.fromkeys(one["exemption"] for one in told))
    return Denied(
        f"{first['file']}:{first['line']}: {first['field']} {first['why']}{more}",
        code="compose_refused",
        hint=f"Change the Compose file, or allow it for {source.stack!r} from this repository in stacks.exceptions of "
        f"policy.yaml: {names}.",
        details={"findings": told},
    )


def _told(finding: Finding, source: Source, documents: Iterable[Document]) -> dict[str, Any]:
    """A finding with its place: in the file that holds the most of its location."""
    places = [(*read(one.name, one.text).line(finding.location), one.name) for one in documents]
    depth, line, file = max(places, key=lambda place: place[0], default=(0, 1, source.file))
    why = finding.why.replace(finding.what, shown(finding.what)) if finding.what else finding.why
    return {
        "file": file,
        "line": line if depth else 1,
        "field": ".".join(map(shown, finding.location))[:200],
        "why": why[:300],
        "exemption": re.sub(r"[^\x21-\x7e]", "?", finding.name)[:200],
    }


def _digests(config: Mapping[str, Any]) -> dict[str, str]:
    """What tells each service's configuration from others, with the configs and secrets that it uses."""
    found = {}
    for name, one in config["services"].items():
        own = {field: value for field, value in one.items() if field != "build"}
        used = [
            (config.get(kind) or {}).get(entry.get("source"))
            for kind in ("configs", "secrets")
            for entry in one.get(kind) or ()
        ]
        found[str(name)] = hashlib.sha256(json.dumps([own, used], sort_keys=True).encode()).hexdigest()[:16]
    return found


def _labelled(config: Mapping[str, Any], source: Source, commits: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The configuration as JSON, with labels on every service that say where it comes from."""
    final = {name: copy.deepcopy(value) for name, value in config.items()}
    for name, one in final["services"].items():
        own = one.get("labels") or {}
        own = own if isinstance(own, Mapping) else dict(str(label).partition("=")[::2] for label in own)
        one["labels"] = {
            **own,
            LABEL: source.stack,
            f"{LABEL}.repo": source.repo,
            f"{LABEL}.branch": source.branch,
            f"{LABEL}.file": source.file,
            f"{LABEL}.commit": commits[name],
            f"{LABEL}.digest": digests[name],
        }
    return json.dumps(final)
