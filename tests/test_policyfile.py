"""policy.yaml: what it grants, and that nothing wrong in it goes unsaid."""

from pathlib import Path

import pytest

from systemmanager import policyfile, settings
from systemmanager.errors import ConfigError
from systemmanager.operation import Risk
from systemmanager.request import Grant
from systemmanager.scopes import BUNDLES
from systemmanager.server import app
from tests.support import run, target

GOOD = """\
version: "1.0"
grants:
  - subjects: ["ann@example.com", "*@ops.example"]
    groups: ["sre", "Infra Team"]
    scopes: [readonly]
  - tags: ["tag:ci"]
    scopes: ["docker:read", "container:control"]
    targets: "tag:web and not env:prod"
"""


def load(tmp_path: Path, text: str) -> policyfile.Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return policyfile.load(path)


def test_what_a_policy_grants(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)
    read = Grant(BUNDLES["readonly"])
    assert policy.grants_for("ann@example.com") == policy.grants_for("x@ops.example") == (read,)
    assert policy.grants_for("bob", groups=["Infra Team"]) == (read,)
    in_ci = Grant(frozenset({"container:read", "container:write"}), "tag:web and not env:prod")
    assert policy.grants_for("runner", tags=["tag:ci"]) == (in_ci,)
    assert policy.grants_for("eve@example.com") == policyfile.BUILTIN.grants_for("ann@example.com") == ()
    assert policy.source == str(tmp_path / "policy.yaml") and len(policy.version) == 12
    assert load(tmp_path, GOOD.replace("tag:ci", "tag:cd")).version != policy.version


APPROVALS = """\
version: "1.0"
approvals:
  channels: [operator, webhook]
  elicitation: moderate
  approvers: [root, "*@ops.example"]
  lifetime_minutes: 5
  require:
    - risks: [high, critical]
      targets: env:prod
    - risks: [critical]
"""


def test_what_a_policy_says_of_approvals(tmp_path: Path) -> None:
    policy = load(tmp_path, APPROVALS)
    said = policy.approvals
    assert (said.channels, said.approvers, said.lifetime) == (("operator", "webhook"), ("root", "*@ops.example"), 300)
    assert not said.elicits(Risk.LOW), "it is no channel here"
    prod, other = target("a", metadata={"environment": "prod"}), target("b")
    demanded = [(risk, one.id) for risk in Risk for one in (prod, other) if policy.demands(risk, one)]
    assert demanded == [(Risk.HIGH, "a"), (Risk.CRITICAL, "a"), (Risk.CRITICAL, "b")]
    default = policyfile.BUILTIN
    assert default.approvals == load(tmp_path, GOOD).approvals and default.demands(Risk.CRITICAL, prod) is None


@pytest.mark.parametrize("limit", ["none", *Risk])
def test_how_far_the_client_itself_may_be_asked(tmp_path: Path, limit: str) -> None:
    said = load(tmp_path, f'version: "1.0"\napprovals: {{elicitation: {limit}}}').approvals
    order = ["none", *Risk]
    assert [said.elicits(risk) for risk in Risk] == [order.index(risk) <= order.index(limit) for risk in Risk]


def test_how_long_who_read_untrusted_text_is_tainted(tmp_path: Path) -> None:
    assert load(tmp_path, 'version: "1.0"').taint_minutes == policyfile.BUILTIN.taint_minutes == 10
    assert load(tmp_path, 'version: "1.0"\ntaint_minutes: 0').taint_minutes == 0


ENTRY = 'version: "1.0"\ngrants:\n  - '
WRONG: dict[str, tuple[str, str]] = {
    "no channel": ('version: "1.0"\napprovals: {channels: []}', "approvals.channels: must have at least 1"),
    "unknown channel": ('version: "1.0"\napprovals: {channels: [email]}', "approvals.channels.0"),
    "unknown limit": ('version: "1.0"\napprovals: {elicitation: some}', "approvals.elicitation"),
    "no lifetime": ('version: "1.0"\napprovals: {lifetime_minutes: 0}', "approvals.lifetime_minutes"),
    "a boolean lifetime": ('version: "1.0"\napprovals: {lifetime_minutes: true}', "approvals.lifetime_minutes"),
    "everybody approves": ('version: "1.0"\napprovals: {approvers: ["*"]}', "approvals.approvers.0"),
    "no risk": ('version: "1.0"\napprovals: {require: [{risks: []}]}', "approvals.require.0.risks"),
    "low risk": ('version: "1.0"\napprovals: {require: [{risks: [low]}]}', "approvals.require.0.risks.0"),
    "bad selector in a demand": (
        'version: "1.0"\napprovals: {require: [{risks: [high], targets: "tga:web"}]}',
        "there is no 'tga':",
    ),
    "misspelt approvals": ('version: "1.0"\napprovals: {approver: [root]}', "did you mean 'approvers'?"),
    "no mapping": ("[]", "must hold `version` and `grants`"),
    "no version": ("grants: []", "version: is missing"),
    "unknown key": ('version: "1.0"\ngrant: []', "2:1: grant: unknown key; did you mean 'grants'?"),
    "unknown key in a grant": (f"{ENTRY}subject: [ann]\n    scopes: [readonly]", "did you mean 'subjects'?"),
    "nobody named": (f"{ENTRY}scopes: [readonly]", "3:5: grants.0: names nobody"),
    "empty lists name nobody": (f"{ENTRY}subjects: []\n    scopes: [readonly]", "names nobody"),
    "no scope": (f"{ENTRY}subjects: [ann]\n    scopes: []", "grants.0.scopes"),
    "unknown scope": (f"{ENTRY}subjects: [ann]\n    scopes: [system:raed]", "Did you mean 'system:read'"),
    "bad selector": (f'{ENTRY}subjects: [ann]\n    scopes: [readonly]\n    targets: "tga:web"', "there is no 'tga':"),
    "empty selector": (f'{ENTRY}subjects: [ann]\n    scopes: [readonly]\n    targets: ""', "grants.0.targets"),
    "everybody": (f'{ENTRY}subjects: ["*"]\n    scopes: [readonly]', "grants.0.subjects.0"),
    "glob in a name": (f'{ENTRY}subjects: ["ann*"]\n    scopes: [readonly]', "grants.0.subjects.0"),
    "glob in a domain": (f'{ENTRY}subjects: ["*@*.example"]\n    scopes: [readonly]', "grants.0.subjects.0"),
    "confusable": (f'{ENTRY}subjects: ["аnn"]\n    scopes: [readonly]', "grants.0.subjects.0"),
    "no tag": (f"{ENTRY}tags: [ci]\n    scopes: [readonly]", "grants.0.tags.0"),
    "a text for a list": (f"{ENTRY}subjects: ann\n    scopes: [readonly]", "grants.0.subjects"),
    "twice": ('version: "1.0"\ngrants: []\ngrants: []', "3:1: key 'grants' stands twice"),
    "taint for days": ('version: "1.0"\ntaint_minutes: 1441', "taint_minutes"),
    "negative taint": ('version: "1.0"\ntaint_minutes: -1', "taint_minutes"),
    "taint yes": ('version: "1.0"\ntaint_minutes: true', "taint_minutes"),
    "alias": ('version: "1.0"\ngrants: &a []', "anchors and aliases"),
}


def test_a_list_of_faults_is_not_called_too_short_beside_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, 'version: "1.0"\napprovals: {channels: [email]}')
    (only,) = caught.value.problems
    assert "approvals.channels.0: input should be 'webhook'" in str(only)


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


def test_a_reload_takes_a_good_policy_whole_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    given = settings.read(
        {"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"), "SYSTEMMANAGER_POLICY_CONFIG": str(path)}
    )

    async def work() -> None:
        async with app.running(given) as running:
            gateway = running.gateway
            first = gateway.policy
            path.write_text(GOOD.replace("tag:ci", "ci"))
            await running.reload()
            assert gateway.policy is first and "policy.yaml was not reloaded" in gateway.degraded["policy"]
            path.write_text(GOOD.replace("tag:ci", "tag:cd"))
            await running.reload()
            assert gateway.policy.grants_for("x", tags=["tag:cd"]) and not gateway.policy.grants_for(
                "x", tags=["tag:ci"]
            )
            assert gateway.policy.version != first.version and "policy" not in gateway.degraded

    run(work())
