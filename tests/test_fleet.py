"""The gateway about itself: explanations whose grants suffice, and answers narrowed to who asks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.fleet import FleetView, Usable
from systemmanager.gateway import Gateway
from systemmanager.registry import Registry, load
from systemmanager.request import Grant, Principal
from tests.support import OPERATOR, fake_gateway, principal, run, target


def gateway(tmp_path: Path, *targets: Any) -> Gateway:
    def never(permit: Any, name: str) -> Any:
        raise AssertionError("an explanation opens nothing")

    return fake_gateway(tmp_path, never, *targets)


def explained(
    gateway: Gateway, who: Principal, tool: str, arguments: dict[str, Any], on: str = "web"
) -> dict[str, Any]:
    asked = {"tool": tool, "target": on, "arguments": arguments}
    reply = run(gateway.call(who, "explain_access", asked)).as_dict()
    data: dict[str, Any] = reply["results"][0].get("data") or reply["results"][0]["error"]
    return data


RESTART = {"action": "restart", "service_name": "nginx"}
REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any], list[str]]] = {
    "everything is missing": (
        "manage_service", RESTART, (), {"capabilities": [], "constraints": {"units": []}},
        [
            "scope service:write for 'tester' on 'web'", "service:write in capabilities of 'web' in targets.yaml",
            "nginx in constraints.units of 'web'",
            "constraints.sudo_policy: limited on 'web' (and `sudo -n` for its user there)",
        ],
    ),
    "only the unit": (
        "manage_service", RESTART, ("service:write",),
        {"constraints": {"units": ["redis"], "sudo_policy": "limited"}}, ["nginx in constraints.units of 'web'"],
    ),
    "a path": (
        "file_operations", {"action": "read", "path": "/etc/hosts"}, ("file:read",), {},
        ["/etc/hosts in constraints.paths of 'web'"],
    ),
    "host and port": (
        "test_port_connectivity", {"host": "db.lan", "port": 22}, ("network:diag",),
        {"constraints": {"hosts": [], "ports": []}},
        ["db.lan in constraints.hosts of 'web' and 22 in constraints.ports of 'web'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tool", "arguments", "scopes", "fields", "grant"), REFUSED.values(), ids=REFUSED)
def test_an_explanation_names_every_verdict_and_the_smallest_grant(
    tmp_path: Path,
    tool: str,
    arguments: dict[str, Any],
    scopes: tuple[str, ...],
    fields: dict[str, Any],
    grant: list[str],
) -> None:
    one = gateway(tmp_path, target("web", "ssh", connection={"host": "h", "username": "me"}, **fields))
    (row,) = explained(one, principal(*scopes), tool, arguments)["results"]
    assert row["answer"] == "deny" and row["grant"] == grant
    assert [verdict["rule"] for verdict in row["verdicts"]] == [
        "scopes", "ability", "capabilities", "paths", "units",
        "hosts", "images", "stacks", "sudo", "freeze", "hardening", "concurrency", "rate", "taint", "approval",
    ]  # fmt: skip


def test_the_grants_of_an_explanation_suffice(tmp_path: Path) -> None:
    limited = {"units": ["nginx"], "sudo_policy": "limited"}
    connection = {"host": "h", "username": "me"}
    web = target("web", "ssh", connection=connection, capabilities=["service:write"], constraints=limited)
    (row,) = explained(gateway(tmp_path, web), principal("service:write"), "manage_service", RESTART)["results"]
    assert row["answer"] == "allow" and "grant" not in row


def test_an_explanation_asks_for_an_approval_where_the_call_would(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web", "docker"))
    (row,) = explained(one, OPERATOR, "pull_docker_image", {"image_name": "nginx"})["results"]
    assert row["answer"] == "ask" and "approvals list" in row["grant"][0]


def test_explanations_count_for_no_rate(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    view = FleetView(one, OPERATOR)
    for _ in range(200):
        assert view.explain("get_system_status", "web", {})["results"][0]["answer"] == "allow"
    assert one._recent.counts(OPERATOR.subject) == {}


@pytest.mark.parametrize(
    ("tool", "arguments", "on", "code"),
    [
        ("no_such_tool", {}, "web", "unknown_tool"),
        ("get_system_status", {"limit": 3}, "web", "invalid_arguments"),
        ("get_system_status", {}, "wbe", "unknown_target"),
    ],
)
def test_what_can_t_be_explained_is_said(tmp_path: Path, tool: str, arguments: Any, on: str, code: str) -> None:
    assert explained(gateway(tmp_path, target("web")), OPERATOR, tool, arguments, on)["code"] == code


def test_a_principal_sees_its_own_targets_alone(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web-1"), target("web-2", metadata={"tags": ["a"], "role": "db"}), target("db-1"))
    agent = principal("system:read", targets="web-*")
    assert [row["id"] for row in FleetView(one, agent).targets()] == ["web-1", "web-2"]
    assert FleetView(one, agent).targets("role:db")[0]["tags"] == ["a"]
    reply = run(one.call(agent, "list_targets", {"selector": "db-*"})).as_dict()
    error = reply["results"][0]["error"]
    assert error["code"] == "unknown_target" and "db-1" not in str(error)


def test_an_unreadable_grant_shows_nothing(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    agent = principal("admin", targets="((")
    assert FleetView(one, agent).targets() == []
    assert not Usable(agent, one.registry).on(one.registry.targets["web"])


def test_a_fault_is_shown_with_its_target(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    one.replace_registry(Registry(one.registry.targets, faults={"web": "${KEY} is not set"}))
    assert FleetView(one, OPERATOR).targets()[0]["fault"] == "${KEY} is not set"
    health = run(one.call(OPERATOR, "health_check", {})).as_dict()["results"][0]["data"]
    assert health["status"] == "degraded" and health["problems"] == {"target 'web'": "${KEY} is not set"}


def test_a_name_without_a_value_is_told_wherever_its_target_is(tmp_path: Path) -> None:
    """As in the published example without an environment, and for a target whose own id sounds like a secret."""
    text = (Path(__file__).parent.parent / "targets.example.yaml").read_text()
    (tmp_path / "targets.yaml").write_text(text.replace("  grafana:", "  nosecret:").replace('"grafana"', '"nosecret"'))
    one = gateway(tmp_path)
    one.replace_registry(load(tmp_path / "targets.yaml", {}))
    said = "${GRAFANA_TOKEN} is neither a credential in $CREDENTIALS_DIRECTORY nor set in the environment"
    rows = run(one.call(OPERATOR, "list_targets", {})).as_dict()["results"][0]["data"]["targets"]
    assert {row["id"]: row.get("fault") for row in rows}["nosecret"] == said
    health = run(one.call(OPERATOR, "health_check", {})).as_dict()["results"][0]["data"]
    assert health["problems"]["target 'nosecret'"] == said
    (row,) = explained(one, OPERATOR, "health_check", {}, "nosecret")["results"]
    assert {verdict["rule"]: verdict["reason"] for verdict in row["verdicts"]}["ability"] == said
    refused = run(one.call(OPERATOR, "health_check", {"target": "nosecret"})).as_dict()["results"][0]["error"]
    assert refused["message"] == said and "a value for ${GRAFANA_TOKEN}" in refused["hint"]


def test_the_audit_log_is_for_those_who_may(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    refused = run(one.call(replace(OPERATOR, grants=(Grant(frozenset()),)), "query_audit", {})).as_dict()
    assert refused["results"][0]["error"]["code"] == "scope_missing"
    found = run(one.call(OPERATOR, "query_audit", {"phase": "refused"})).as_dict()["results"][0]["data"]
    assert [row["code"] for row in found["records"]] == ["scope_missing"]
    assert run(one.call(OPERATOR, "query_audit", {"since": "x"})).as_dict()["results"][0]["error"]["code"] == (
        "invalid_arguments"
    )


def test_an_audit_log_that_can_t_be_read_is_said(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    (tmp_path / "audit.jsonl").mkdir()
    reply = run(one.call(OPERATOR, "query_audit", {})).as_dict()
    assert reply["results"][0]["error"]["code"] == "audit_unavailable"


def test_who_holds_nothing_on_a_target_learns_nothing_of_it(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"), target("db", constraints={"paths": ["/srv/secret-project"]}))
    who = principal("admin", targets="web")
    (row,) = explained(one, who, "file_operations", {"action": "read", "path": "/etc/passwd"}, "db")["results"]
    assert [verdict["rule"] for verdict in row["verdicts"]] == ["scopes"] and "secret-project" not in str(row)


def test_a_page_of_the_audit_log_claims_no_count(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    for _ in range(3):
        run(one.call(OPERATOR, "list_targets", {}))
    data = run(one.call(OPERATOR, "query_audit", {"limit": 2})).as_dict()["results"][0]["data"]
    assert len(data["records"]) == 2 and (data["truncated"], data["next"]) == (True, "2") and "total" not in data


def test_a_record_is_told_with_what_counts_first_and_without_the_hashes_of_the_file(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"))
    run(one.call(OPERATOR, "get_system_status", {"target": "web"}))
    reply = run(one.call(OPERATOR, "query_audit", {"tool": "get_system_status", "phase": "outcome"})).as_dict()
    (record,) = reply["results"][0]["data"]["records"]
    assert [*record][:6] == ["time", "phase", "code", "tool", "target", "subject"]
    assert record.keys() >= {"call_id", "n", "risk"} and record.keys().isdisjoint({"after", "hash"})


def test_the_audit_log_is_narrowed_to_the_targets_of_a_grant(tmp_path: Path) -> None:
    one = gateway(tmp_path, target("web"), target("db"))
    for id in ("web", "db"):
        run(one.call(principal(), "get_system_status", {"target": id}))
    rows = run(one.call(principal("audit:read", targets="web"), "query_audit", {})).as_dict()["results"][0]["data"]
    assert [row["target"] for row in rows["records"]] == ["web"]
    everything = run(one.call(principal("audit:read"), "query_audit", {})).as_dict()["results"][0]["data"]
    assert {row.get("target") for row in everything["records"]} >= {"web", "db"}
