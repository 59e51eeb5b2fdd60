"""Hostile and benign Compose files, each through the real Compose and the judge, as a deployment does it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from systemmanager.errors import CommandFailed, Denied, GatewayError
from systemmanager.executors.compose import Compose, Engine
from systemmanager.executors.git import check_links
from systemmanager.executors.stacks import judged
from systemmanager.policy.compose.judge import Judge
from systemmanager.stacks import Exemption, Judged, Source, StackRules
from tests.support import run, target

FOLDER = Path(__file__).parent / "compose"
HOSTILE, BENIGN = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("hostile", "benign"))
RULES = StackRules(hosts=("git.example",), roots=("/srv/data",))
SOURCE = Source("web", "https://git.example/web", "main", "docker-compose.yml")


class Watched(Compose):
    """Compose that knows whether it was asked."""

    asked = False

    async def config(self, file: Path, environment: Any) -> tuple[dict[str, Any], list[str]]:
        self.asked = True
        return await super().config(file, environment)


def written(case: dict[str, Any], checkout: Path) -> str:
    """The case's files in a checkout; answers the Compose file's name."""
    name = str(case.get("file", "docker-compose.yml"))
    body = {"services": {"web": {"image": "systemmanager-test:1", **case.get("service", {})}}, **case.get("top", {})}
    text = case.get("text") or yaml.safe_dump(body, sort_keys=False)
    if "nested" in case:
        text = "services: {web: {image: a}}\nx-a: " + "[" * case["nested"] + "]" * case["nested"] + "\n"
    text += "#" * case.get("padded", 0)
    for path, content in {name: text, **case.get("files", {})}.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(content)
    for path, leads in case.get("links", {}).items():
        (checkout / path).symlink_to(leads)
    return name


def outcome(case: dict[str, Any], tmp_path: Path, rules: StackRules = RULES) -> tuple[Judged | GatewayError, Watched]:
    """What a deployment of the case comes to, and whether Compose was asked on the way."""
    checkout, home = tmp_path / "stacks" / "files", tmp_path / "home"
    checkout.mkdir(parents=True, exist_ok=True)
    home.mkdir(exist_ok=True)
    file = written(case, checkout)
    limits = {"images": case["images"]} if "images" in case else {}
    where = target("host-01", "docker", connection={"socket_path": "/opt/engine/sock"}, constraints=limits)
    compose = Watched("web", Engine("unix:///nonexistent"), home, (checkout / file).parent)
    source = replace(SOURCE, file=file)
    try:
        check_links(checkout, [str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_symlink()])
        work = judged(Judge(where, rules), compose, source, "0" * 40, checkout, case.get("given", {}))
        return run(work), compose
    except GatewayError as error:
        return error, compose


def seen(found: Judged | GatewayError, compose: Watched) -> tuple[str, ...]:
    """How the case file names the outcome: the finding with its detail and without."""
    if isinstance(found, CommandFailed):
        return ("compose",)
    assert isinstance(found, Denied), found
    if found.details and "findings" in found.details:
        name = found.details["findings"][0]["exemption"]
        return (name, name.partition(":")[0])
    if found.code == "variable_not_allowed":
        return ("variable",)
    assert not compose.asked, "it was refused too late"
    return ("link",) if "is a link" in found.message else ("before",)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case["id"])
def test_a_hostile_compose_file_does_not_run(case: dict[str, Any], tmp_path: Path, compose_installed: None) -> None:
    found, compose = outcome(case, tmp_path)
    wanted = case["finds"] if isinstance(case["finds"], list) else [case["finds"]]
    assert set(wanted) & set(seen(found, compose)), (found, getattr(found, "details", None))
    assert isinstance(found, GatewayError)
    assert found.code in ("compose_refused", "variable_not_allowed", "command_failed") and found.message
    if "line" in case:
        assert found.message.startswith(f"docker-compose.yml:{case['line']}:"), found.message
    assert "root:" not in str(found.as_dict()), "it was read"


@pytest.mark.parametrize("case", BENIGN, ids=lambda case: case["id"])
def test_a_usual_compose_file_is_judged_well(case: dict[str, Any], tmp_path: Path, compose_installed: None) -> None:
    found, _ = outcome(case, tmp_path)
    assert isinstance(found, Judged), (found, getattr(found, "details", None))
    assert found.source.stack == found.config["name"] == "web" and not found.exempted
    assert all(one["labels"]["systemmanager.stack"] == "web" for one in yaml.safe_load(found.text)["services"].values())
    assert str(tmp_path) not in found.text.replace(f'"context": "{tmp_path}', ""), "the gateway's folders are told"
    if "carries" in case:
        service = found.config["services"]["web"]
        own = {one["target"]: found.config["configs"][one["source"]]["content"] for one in service["configs"]}
        assert own == case["carries"] and not service.get("volumes")


EXEMPTABLE = [
    case for case in HOSTILE
    if isinstance(case["finds"], str) and case["finds"] not in ("before", "link", "variable", "compose")
]  # fmt: skip


@pytest.mark.parametrize("case", EXEMPTABLE, ids=lambda case: case["id"])
def test_an_exception_allows_it_by_name_for_that_stack_and_repository_alone(
    case: dict[str, Any], tmp_path: Path, compose_installed: None
) -> None:
    refused, _ = outcome(case, tmp_path)
    assert isinstance(refused, Denied) and refused.details
    names = {one["exemption"] for one in refused.details["findings"]}
    right = Exemption("web", SOURCE.repo, frozenset(names))
    allowed, _ = outcome(case, tmp_path, replace(RULES, exemptions=(right,)))
    assert isinstance(allowed, Judged) and set(allowed.exempted) == names, allowed
    for wrong in (
        replace(right, stack="other"),
        replace(right, repo="https://git.example/other"),
        replace(right, allow=frozenset({"privilegedd", "bind:/other"})),
        replace(right, services=frozenset({"db"})),
    ):
        found, _ = outcome(case, tmp_path, replace(RULES, exemptions=(wrong,)))
        assert isinstance(found, Denied), wrong


def test_the_catalogue_is_as_large_as_promised() -> None:
    assert len(HOSTILE) >= 100 and len(BENIGN) >= 30
    assert len({case["id"] for case in [*HOSTILE, *BENIGN]}) == len(HOSTILE) + len(BENIGN)
