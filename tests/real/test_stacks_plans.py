"""What a dry run of a stack's deployment says, and that it is carried out only while that is so."""

from tests.real.stacks import Stacks

IMAGE = 'image: "systemmanager-test:1", stop_grace_period: 100ms'
TEXT = f'services:\n  web: {{{IMAGE}, environment: {{A: "1"}}}}\n  old: {{{IMAGE}}}\n'
NEW = TEXT.replace('A: "1"', 'A: "secret 2"').replace("old:", "new:")


def commit(stacks: Stacks, text: str) -> str:
    return stacks.repositories.commit("app", {"docker-compose.yml": text})


def test_a_dry_run_tells_what_would_change_and_changes_nothing(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = commit(stacks, TEXT)
    said = stacks.data("deploy_stack", stack_name=name, repo_url=repo, dry_run=True)
    assert {one["what"] for one in said["plan"]["changes"]} >= {"service web", "service old", f"network {name}_default"}
    assert said["plan"]["inverse"] == {"tool": "remove_stack", "arguments": {"stack_name": name}}, said
    assert not stacks.containers(name), "nothing ran"
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    before = stacks.containers(name)
    second = commit(stacks, NEW)
    said = stacks.data("update_stack", stack_name=name, dry_run=True)
    by_what = {one["what"]: one for one in said["plan"]["changes"]}
    assert (by_what[f"stack {name}"]["before"], by_what[f"stack {name}"]["after"]) == (first, second)
    assert by_what["service web"]["field"] == "environment.A" and "after" not in by_what["service old"], by_what
    assert by_what["service new"]["after"].startswith("systemmanager-test:1, sha256:") and "secret 2" not in str(said)
    assert {one["Id"] for one in stacks.containers(name).values()} == {one["Id"] for one in before.values()}
    done = stacks.data("apply_plan", plan_id=said["plan_id"])
    assert done["changed"] and set(stacks.containers(name)) == {"web", "new"}
    said = stacks.data("remove_stack", stack_name=name, dry_run=True)
    assert len(said["plan"]["changes"]) == 2 and len(stacks.containers(name)) == 2


def test_variables_that_nobody_set_are_named(stacks: Stacks) -> None:
    text = TEXT.replace('A: "1"', 'A: "${DB_PASSWORD}", B: "${PORT}", C: "${PORT:-80}", D: "$$NONE"')
    commit(stacks, text)
    given = {"stack_name": stacks.name(), "repo_url": stacks.repositories.url("app"), "env_vars": {"PORT": "80"}}
    said = stacks.data("deploy_stack", **given, dry_run=True)
    assert "Variables that nobody set, so that they are empty: DB_PASSWORD." in said["plan"]["notes"], said
    assert stacks.data("deploy_stack", **given)["difference"]["variables_unset"] == ["DB_PASSWORD"]


def test_a_plan_whose_branch_has_moved_is_not_carried_out(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    commit(stacks, TEXT)
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    commit(stacks, NEW)
    said = stacks.data("update_stack", stack_name=name, dry_run=True)
    commit(stacks, NEW.replace("secret 2", "3"))
    error = stacks.error("apply_plan", plan_id=said["plan_id"])
    assert error["code"] == "precondition_failed", error
    assert set(stacks.containers(name)) == {"web", "old"}


def test_a_dry_run_of_what_the_policy_refuses_says_so(stacks: Stacks) -> None:
    commit(stacks, TEXT.replace("environment:", "privileged: true, environment:"))
    name = stacks.name()
    reply = stacks.reply("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"), dry_run=True)
    assert "privileged" in str(reply) and "compose_refused" in str(reply), reply
