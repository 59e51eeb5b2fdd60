"""Selectors: what each names, what none may name, and that a large fleet is no wait."""

import time
from typing import Any

import pytest

from systemmanager.errors import UnknownTarget
from systemmanager.registry import Registry
from systemmanager.request import Grant
from tests.support import registry, target


def _fleet() -> Registry:
    def one(id: str, executor: str = "ssh", **metadata: Any) -> Any:
        return target(id, executor, metadata=metadata)

    return registry(
        one("local", "local"),
        one("web-1", tags=["web"], environment="prod", role="front"),
        one("web-10", tags=["web"], environment="staging", role="front"),
        one("web-2", tags=["web", "canary"], environment="prod", role="front"),
        one("db-1", tags=["db"], environment="prod", role="db"),
        one("engine", "docker"),
        one("api", "http"),
        one("and"),
    )


FLEET = _fleet()
STAGING = FLEET.within([Grant(frozenset(), "env:staging")])
WEB_1 = Grant(frozenset(), "web-1*")
EVERYTHING = ["local", "web-1", "web-10", "web-2", "db-1", "engine", "api", "and"]

SELECTED: list[tuple[list[str], list[str]]] = [
    (["web-1"], ["web-1"]),
    (["web-10"], ["web-10"]),
    (["db-1", "web-1"], ["web-1", "db-1"]),
    (["web-1", "web-1", "web-?"], ["web-1", "web-2"]),
    (["*"], EVERYTHING),
    (["web-*"], ["web-1", "web-10", "web-2"]),
    (["web-[12]"], ["web-1", "web-2"]),
    (["tag:web"], ["web-1", "web-10", "web-2"]),
    (["tag:c*"], ["web-2"]),
    (["env:prod"], ["web-1", "web-2", "db-1"]),
    (["role:db"], ["db-1"]),
    (["kind:docker"], ["engine"]),
    (["tag:web and env:prod"], ["web-1", "web-2"]),
    (["tag:web and not env:prod"], ["web-10"]),
    (["not tag:web and env:prod"], ["db-1"]),
    (["not (tag:web or kind:ssh)"], ["local", "engine", "api"]),
    # `and` binds closer than `or`; parentheses bind closest.
    (["kind:http or tag:web and env:staging"], ["web-10", "api"]),
    (["(kind:http or tag:web) and env:staging"], ["web-10"]),
    (["env:staging and tag:web or kind:http"], ["web-10", "api"]),
    (["not not tag:db"], ["db-1"]),
    (["  tag:db  "], ["db-1"]),
    (["web-1 "], ["web-1"]),
    (["(tag:db)and(env:prod)"], ["db-1"]),
    (["and"], ["and"]),
    (["* and not and*"], EVERYTHING[:-1]),
]


@pytest.mark.parametrize(("expressions", "ids"), SELECTED, ids=lambda value: ",".join(value))
def test_a_selector_names_these_targets(expressions: list[str], ids: list[str]) -> None:
    assert [one.id for one in FLEET.select(expressions)] == ids


UNKNOWN: list[tuple[list[str], str]] = [
    ([], "There is"),
    ([""], "There is"),
    (["  "], "There is"),
    (["web-3"], "'web-1'"),
    (["web"], "'web-1'"),
    (["WEB-1"], "'web-1'"),
    (["web-1\n"], "Use ids"),
    (["web-1\u200b"], "Use ids"),
    (["\uff57eb-1"], "Use ids"),
    (["web-1\x00"], "Use ids"),
    (["x*"], "There is: and, api"),
    (["tag:wbe"], "'tag:web'"),
    (["tag:"], "'tag:"),
    (["colour:red"], "Use ids"),
    (["web-1", "nobody"], "There is"),
    (["web-1 web-2"], "Use ids"),
    (["tag:web and"], "Use ids"),
    (["and tag:web"], "Use ids"),
    (["(tag:web"], "Use ids"),
    (["tag:web)"], "Use ids"),
    (["()"], "Use ids"),
    (["not"], "Use ids"),
    (["tag:web and tag:db"], "There is"),
    # A word that names nothing is a slip of the pen: `not` would make everything of it.
    (["* and not env:porduction"], "'env:prod'"),
    (["* and not wbe-*"], "'web-1'"),
    (["web-1 or web-3"], "'web-1'"),
    (["not " * 200 + "web-1"], "Use ids"),
    (["(" * 90 + "web-1" + ")" * 90], "Use ids"),
]


@pytest.mark.parametrize(("expressions", "hint"), UNKNOWN, ids=lambda value: str(value)[:40].encode("unicode_escape"))
def test_what_names_nothing_is_an_error_that_says_what_there_is(expressions: list[str], hint: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        FLEET.select(expressions)
    assert hint in (caught.value.hint or ""), caught.value.hint


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownTarget) as caught:
        registry().select(["*"])
    assert caught.value.hint == "The registry holds no target."


def test_who_is_granted_some_targets_learns_of_no_others() -> None:
    assert [one.id for one in FLEET.select(["*"], STAGING)] == ["web-10"]
    assert [one.id for one in FLEET.select(["tag:web"], STAGING)] == ["web-10"]
    with pytest.raises(UnknownTarget) as caught:
        FLEET.select(["web-3"], STAGING)
    assert caught.value.hint == "Did you mean 'web-10'?"
    with pytest.raises(UnknownTarget):
        FLEET.select(["tag:db"], STAGING)
    assert [one.id for one in FLEET.select(["db-1"], STAGING)] == ["db-1"], "the gate denies it, by name"


@pytest.mark.parametrize("grant", ["nobody", "tag:", "((", "", "web-1\n"])
def test_a_grant_that_names_nothing_grants_nothing(grant: str) -> None:
    assert FLEET.granted(Grant(frozenset(), grant)) == frozenset()


def test_ten_thousand_targets_are_selected_at_once() -> None:
    fleet = registry(*(target(f"web-{number}", "ssh", metadata={"tags": ["web"]}) for number in range(10_000)))
    started = time.process_time()
    assert len(fleet.select(["tag:web and not web-1? and (kind:ssh or web-2*) or tag:w*"])) == 10_000
    assert len(fleet.granted(WEB_1)) == 1111
    assert time.process_time() - started < 2, "a selector is read once, not per target"
    started = time.process_time()
    assert sum(id in fleet.granted(WEB_1) for id in fleet.targets) == 1111
    assert time.process_time() - started < 0.5, "what a principal may use is found once"


def test_a_hostile_glob_ends() -> None:
    fleet = registry(*(target("a" * 60 + str(number), "ssh") for number in range(10)))
    with pytest.raises(UnknownTarget):
        fleet.select(["*a" * 200 + "b"])
