"""Each rule as a table: what it is asked, what it answers, and the grant that would turn a Deny into an Allow."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from systemmanager.operation import CATALOGUE, Access, Operation, Risk
from systemmanager.policy.gate import decide
from systemmanager.policy.rules import RULES
from systemmanager.references import image_matches
from systemmanager.request import Answer, Load, Request, Verdict
from tests.support import OPERATOR, principal, target

ALLOW, ASK, DENY = Answer.ALLOW, Answer.ASK, Answer.DENY
READ = Access(("system:read",), ("system:read",), Risk.LOW)
BY_NAME = {rule.__name__: rule for rule in RULES}


def request(
    access: Access = READ,
    arguments: dict[str, Any] | None = None,
    roles: dict[str, str] | None = None,
    constraints: dict[str, Any] | None = None,
    **fields: Any,
) -> Request:
    operation: Operation = replace(CATALOGUE["get_system_status"], access=access, roles=roles or {})
    where = fields.pop("target", None) or target(constraints=constraints or {})
    who = fields.pop("principal", OPERATOR)
    fields.setdefault("granted", who.grants)
    return Request("c1", who, operation, access, arguments or {}, where, **fields)


def judged(rule: str, asked: Request) -> Verdict:
    verdict = BY_NAME[rule](asked)
    assert verdict.rule == rule and verdict.reason
    assert verdict.answer is ALLOW or verdict.fix, "whoever is refused learns what would help"
    return verdict


def test_the_rules_are_named_after_what_they_judge() -> None:
    assert list(BY_NAME) == [
        "scopes", "ability", "capabilities", "paths", "units",
        "hosts", "images", "stacks", "sudo", "freeze", "hardening", "concurrency", "rate", "taint", "approval",
    ]  # fmt: skip


# --- ability --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "ssh", "docker", "http"])
@pytest.mark.parametrize(
    ("tool", "kinds"),
    [
        ("get_system_status", ("local", "ssh")),
        ("get_container_list", ("local", "ssh", "docker")),
        ("health_check", ("local", "ssh", "docker", "http")),
        ("list_targets", ("local", "ssh", "docker", "http")),
    ],
)
def test_a_kind_that_lacks_the_port_is_told_before_a_capability_is(
    tool: str, kinds: tuple[str, ...], kind: str
) -> None:
    asked = replace(request(target=target("web", kind)), operation=CATALOGUE[tool])
    verdict = judged("ability", asked)
    assert (verdict.answer, verdict.code) == ((ALLOW, "denied") if kind in kinds else (DENY, "unsupported"))


def test_a_target_that_lacks_a_secret_is_not_usable() -> None:
    verdict = judged("ability", request(fault="${KEY} is not set"))
    assert (verdict.code, verdict.reason) == ("not_configured", "${KEY} is not set")


# --- scopes and capabilities -----------------------------------------------------------------------------------------

SCOPES: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool, Answer, str]] = {
    "held": (("system:read",), ("system:read",), True, ALLOW, ""),
    "one of two": (("network:read", "system:read"), ("system:read",), True, ALLOW, ""),
    "bundle": (("system:read",), ("readonly",), True, ALLOW, ""),
    "alias": (("container:write",), ("container:control",), True, ALLOW, ""),
    "none needed": ((), (), True, ALLOW, ""),
    "none held": (("system:read",), (), True, DENY, "scope_missing"),
    "another": (("system:write",), ("system:read",), True, DENY, "scope_missing"),
    "admin is no read": (("container:read",), ("container:admin",), True, DENY, "scope_missing"),
    "not this target": (("system:read",), ("admin",), False, DENY, "target_not_granted"),
    "not this target, none needed": ((), (), False, DENY, "target_not_granted"),
}


@pytest.mark.parametrize(("needed", "held", "selected", "answer", "code"), SCOPES.values(), ids=SCOPES)
def test_scopes(needed: tuple[str, ...], held: tuple[str, ...], selected: bool, answer: Answer, code: str) -> None:
    who = principal(*held)
    asked = request(Access(needed, (), Risk.LOW), principal=who, granted=who.grants if selected else ())
    verdict = judged("scopes", asked)
    assert (verdict.answer, verdict.code if code else "") == (answer, code)
    assert code != "scope_missing" or needed[0] in (verdict.fix or "")


CAPABILITIES: dict[str, tuple[tuple[str, ...], list[str], Answer]] = {
    "offered": (("system:read",), ["system:read"], ALLOW),
    "by the seed's name": (("container:write",), ["container:control"], ALLOW),
    "stacks": (("stack:admin",), ["stack:deploy"], ALLOW),
    "one of two": (("a:read", "system:read"), ["system:read"], ALLOW),
    "none needed": ((), [], ALLOW),
    "empty list": (("system:read",), [], DENY),
    "another": (("container:write",), ["container:read", "container:admin"], DENY),
}


@pytest.mark.parametrize(("needed", "offered", "answer"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_capabilities(needed: tuple[str, ...], offered: list[str], answer: Answer) -> None:
    asked = request(Access((), needed, Risk.LOW), target=target(capabilities=offered))
    assert judged("capabilities", asked).answer is answer


# --- paths -----------------------------------------------------------------------------------------------------------

PATHS: dict[str, tuple[str | None, list[str], Answer]] = {
    "the folder itself": ("/var/log", ["/var/log"], ALLOW),
    "below": ("/var/log/nginx/a.log", ["/var/log"], ALLOW),
    "second root": ("/srv/a", ["/var/log", "/srv"], ALLOW),
    "everything": ("/etc/shadow", ["/"], ALLOW),
    "one file": ("/etc/hosts", ["/etc/hosts"], ALLOW),
    "no path": (None, [], ALLOW),
    "sibling by prefix": ("/var/logs/a", ["/var/log"], DENY),
    "sibling file": ("/var/log.1", ["/var/log"], DENY),
    "above": ("/var", ["/var/log"], DENY),
    "root": ("/", ["/var/log"], DENY),
    "dots": ("/var/log/../../etc/shadow", ["/var/log"], DENY),
    "case": ("/VAR/LOG/a", ["/var/log"], DENY),
    "empty list": ("/var/log", [], DENY),
}


@pytest.mark.parametrize(("path", "roots", "answer"), PATHS.values(), ids=PATHS)
def test_paths(path: str | None, roots: list[str], answer: Answer) -> None:
    arguments = {} if path is None else {"file": path}
    verdict = judged("paths", request(arguments=arguments, roles={"path": "file"}, constraints={"paths": roots}))
    assert verdict.answer is answer and (answer is ALLOW or verdict.code == "path_outside")


# --- units -----------------------------------------------------------------------------------------------------------

WRITE = Access(("service:write",), ("service:write",), Risk.HIGH)
UNITS: dict[str, tuple[str | None, list[str] | None, Answer]] = {
    "no list": ("nginx", None, ALLOW),
    "no unit": (None, [], ALLOW),
    "same": ("nginx", ["nginx"], ALLOW),
    "suffix asked": ("nginx.service", ["nginx"], ALLOW),
    "suffix listed": ("nginx", ["nginx.service"], ALLOW),
    "dotted name": ("my.app", ["my.app.service"], ALLOW),
    "template": ("worker@1", ["worker@*"], ALLOW),
    "template with suffix": ("worker@1.service", ["worker@*.service"], ALLOW),
    "dotted instance": ("worker@1.2", ["worker@1.2.service"], ALLOW),
    "glob": ("app-web.service", ["app-*"], ALLOW),
    "timer listed": ("backup.timer", ["backup.timer"], ALLOW),
    "timer of a service": ("nginx.timer", ["nginx"], DENY),
    "service of a timer": ("backup", ["backup.timer"], DENY),
    "prefix": ("nginx-evil", ["nginx"], DENY),
    "other template": ("workers@1", ["worker@*"], DENY),
    "case": ("Nginx", ["nginx"], DENY),
    "empty list": ("nginx", [], DENY),
}


@pytest.mark.parametrize(("unit", "allowed", "answer"), UNITS.values(), ids=UNITS)
def test_units(unit: str | None, allowed: list[str] | None, answer: Answer) -> None:
    arguments = {} if unit is None else {"name": unit}
    constraints = {"units": allowed}
    verdict = judged("units", request(WRITE, arguments, {"unit": "name"}, constraints))
    assert verdict.answer is answer and (answer is ALLOW or verdict.code == "unit_not_allowed")
    assert judged("units", request(READ, arguments, {"unit": "name"}, constraints)).answer is ALLOW, "looking is free"


# --- images ----------------------------------------------------------------------------------------------------------

DIGEST = "@sha256:" + "0a" * 32
IMAGES: list[tuple[str, str, str, bool]] = [
    ("nginx", "latest", "nginx", True),
    ("nginx", "1.25", "nginx", True),
    ("docker.io/library/nginx", "latest", "nginx", True),
    ("nginx", "latest", "docker.io/library/nginx", True),
    ("nginx", "latest", "docker.io/nginx", True),
    ("library/nginx", "latest", "nginx", True),
    ("index.docker.io/library/nginx", "latest", "nginx", True),
    ("nginx", "latest", "library/*", True),
    ("org/app", "latest", "docker.io/org/app", True),
    ("docker.io/org/app", "latest", "org/*", True),
    ("ghcr.io/org/app", "latest", "ghcr.io/org/*", True),
    ("ghcr.io/org/team/app", "latest", "ghcr.io/org/*", True),
    ("registry.lan:5000/app", "latest", "registry.lan:5000/*", True),
    ("registry.lan:5000/app", "2", "registry.lan:5000/app:2", True),
    ("localhost/app", "latest", "localhost/app", True),
    ("anything.example/x/y/z", "latest", "*", True),
    ("nginx", "1.25.3", "nginx:1.25*", True),
    ("nginx" + DIGEST, "latest", "nginx", True),
    ("nginx" + DIGEST, "latest", "nginx" + DIGEST, True),
    ("nginx", "1.26", "nginx:1.25*", False),
    ("nginx", "", "nginx:1.25", False),
    ("nginx" + DIGEST, "1.25", "nginx:1.25", False),
    ("nginx", "latest", "nginx" + DIGEST, False),
    ("nginx-evil", "latest", "nginx", False),
    ("evil/nginx", "latest", "nginx", False),
    ("evil.example/nginx", "latest", "nginx", False),
    ("evil.example/library/nginx", "latest", "nginx", False),
    ("evil.example/docker.io/library/nginx", "latest", "docker.io/library/nginx", False),
    ("ghcr.io/org2/app", "latest", "ghcr.io/org/*", False),
    ("ghcr.io.evil.example/org/app", "latest", "ghcr.io/*", False),
    ("evil.example/x.lan/app", "latest", "*.lan/app", False),
    ("registry.lan:5001/app", "latest", "registry.lan:5000/*", False),
    ("registry.lan/app", "latest", "registry.lan:5000/*", False),
    ("localhost/nginx", "latest", "nginx", False),
]


@pytest.mark.parametrize(("image", "tag", "pattern", "named"), IMAGES, ids=lambda value: str(value)[:48])
def test_image_patterns(image: str, tag: str, pattern: str, named: bool) -> None:
    assert image_matches(image, tag, pattern) is named


@pytest.mark.parametrize(
    ("allowed", "answer"),
    [(None, ALLOW), (["nginx"], ALLOW), ([], DENY), (["redis"], DENY)],
    ids=["no list", "listed", "empty list", "another"],
)
def test_images(allowed: list[str] | None, answer: Answer) -> None:
    asked = request(READ, {"image": "nginx", "tag": "1"}, {"image": "image"}, {"images": allowed})
    assert judged("images", asked).answer is answer
    assert judged("images", request(READ, {}, {"image": "image"}, {"images": []})).answer is ALLOW


# --- sudo, concurrency, rate, approval -------------------------------------------------------------------------------

SUDO: dict[str, tuple[bool, bool, str, Answer]] = {
    "needs no root": (False, False, "none", ALLOW),
    "is root": (True, True, "none", ALLOW),
    "limited": (True, False, "limited", ALLOW),
    "full": (True, False, "full", ALLOW),
    "none": (True, False, "none", DENY),
}


@pytest.mark.parametrize(("privileged", "root", "policy", "answer"), SUDO.values(), ids=SUDO)
def test_sudo(privileged: bool, root: bool, policy: str, answer: Answer) -> None:
    access = replace(READ, privileged=privileged)
    assert judged("sudo", request(access, root=root, constraints={"sudo_policy": policy})).answer is answer


@pytest.mark.parametrize(("running", "answer"), [(0, ALLOW), (2, ALLOW), (21, ALLOW), (22, DENY), (1000, DENY)])
def test_concurrency(running: int, answer: Answer) -> None:
    verdict = judged("concurrency", request(load=Load(running=running), constraints={"concurrency": 2}))
    assert verdict.answer is answer and (answer is ALLOW or (verdict.code == "busy" and verdict.retryable))


RATES = [(Risk.LOW, 100), (Risk.MODERATE, 20), (Risk.HIGH, 10), (Risk.CRITICAL, 5)]


@pytest.mark.parametrize(("risk", "limit"), RATES, ids=lambda value: str(value))
def test_rate(risk: Risk, limit: int) -> None:
    access = replace(READ, risk=risk)
    others = {other: 10_000 for other, _ in RATES if other is not risk}
    assert judged("rate", request(access, load=Load({**others, risk: limit - 1}))).answer is ALLOW
    verdict = judged("rate", request(access, load=Load({risk: limit})))
    assert (verdict.answer, verdict.code, verdict.retryable) == (DENY, "rate_limited", True)


@pytest.mark.parametrize(
    ("needed", "by", "answer"),
    [(False, (), ALLOW), (True, ("Ann",), ALLOW), (True, (), ASK)],
    ids=["not needed", "given", "not given"],
)
def test_approval(needed: bool, by: tuple[str, ...], answer: Answer) -> None:
    assert judged("approval", request(replace(READ, approval=needed), approvers=by)).answer is answer
    asked = request(approvers=by, demanded="policy.yaml requires for high calls" if needed else None)
    assert judged("approval", asked).answer is answer


@pytest.mark.parametrize(("by", "answer"), [((), ASK), (("Ann",), ASK), (("Ann", "Bob"), ALLOW)])
def test_dual_approval_needs_two_people(by: tuple[str, ...], answer: Answer) -> None:
    asked = request(replace(READ, approval=True), constraints={"dual_approval": True}, approvers=by)
    assert judged("approval", asked).answer is answer
    write = replace(READ, scopes=("service:write",))
    tainted = request(write, constraints={"dual_approval": True}, approvers=by, tainted=1.0, taint_lasts=600.0)
    assert judged("taint", tainted).answer is answer


# --- the gate --------------------------------------------------------------------------------------------------------


def test_every_rule_is_asked_and_kept_even_after_a_deny() -> None:
    decision = decide(request(principal=principal(), target=target(capabilities=[])))
    assert [verdict.rule for verdict in decision.verdicts] == list(BY_NAME)
    assert decision.permit is None and decision.answer is DENY and decision.against.rule == "scopes"


def test_a_deny_weighs_more_than_an_ask() -> None:
    access = replace(READ, approval=True)
    asked = decide(request(access))
    assert asked.answer is ASK and asked.permit is None
    decision = decide(request(access, principal=principal()))
    assert decision.answer is DENY and decision.against.rule == "scopes"


@pytest.mark.parametrize(("limit", "timeout"), [(None, 15), (3.5, 3.5), (600, 15)])
def test_a_permit_ends_with_the_shorter_of_operation_and_target(limit: float | None, timeout: float) -> None:
    asked = request(constraints={} if limit is None else {"timeout": limit})
    permit = decide(asked).permit
    assert permit is not None and permit.timeout == timeout and permit.target is asked.target


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for size in range(len(names) + 1) for subset in combinations(names, size)]


RIGHTS = ("system:read", "container:read", "container:admin")


@pytest.mark.parametrize("needed", [(), RIGHTS[:1], RIGHTS[1:]], ids=str)
def test_fewer_rights_never_allow_more(needed: tuple[str, ...]) -> None:
    access = Access(needed, needed, Risk.LOW)
    answers = {
        (scopes, capabilities): decide(
            request(access, principal=principal(*scopes), target=target(capabilities=list(capabilities)))
        ).permit
        is not None
        for scopes in _subsets(RIGHTS)
        for capabilities in _subsets(RIGHTS)
    }
    for (scopes, capabilities), allowed in answers.items():
        for (fewer_scopes, fewer_capabilities), still in answers.items():
            if set(fewer_scopes) <= set(scopes) and set(fewer_capabilities) <= set(capabilities):
                assert allowed or not still


def test_a_dry_run_is_judged_like_the_call() -> None:
    for scopes in _subsets(RIGHTS):
        for approval in (True, False):
            asked = request(replace(READ, approval=approval), principal=principal(*scopes))
            assert decide(asked).verdicts == decide(replace(asked, dry_run=True)).verdicts


def test_the_roles_of_every_operation_name_parameters_that_it_has() -> None:
    for operation in (form for whole in CATALOGUE.values() for form in whole.every_form):
        for role, parameters in operation.roles.items():
            assert role in {"path", "unit", "host", "name", "port", "url", "image", "tag", "repo"}, (
                f"{operation.name}: {role}"
            )
            for parameter in parameters.split():
                assert parameter in operation.arguments.model_fields, f"{operation.name}: {role} is {parameter}"


def test_every_operation_that_names_such_a_parameter_has_it_judged() -> None:
    judged_names = {"path": "path", "service_name": "unit", "host": "host", "url": "url", "image_name": "image"}
    for operation in CATALOGUE.values():
        for parameter, role in judged_names.items():
            # Units are judged where they are changed.
            if parameter in operation.arguments.model_fields and (role != "unit" or operation.mutates):
                assert parameter in operation.roles.get(role, "").split(), f"{operation.name}.{parameter} is not judged"
