"""Compose stacks from a real git server onto a real engine by the real Compose."""

from tests.real.stacks import Stacks

WEB = """\
services:
  web:
    image: systemmanager-test:1
    command: ["sh", "-c", "echo serving ${DOMAIN:-nothing}; exec sleep 600"]
    environment: {PASSWORD: "${PASSWORD:-}"}
    volumes: ["data:/data"]
volumes:
  data: {}
"""


def test_a_stack_is_deployed_from_git(stacks: Stacks) -> None:
    name = stacks.name()
    commit = stacks.repositories.commit("app", {"docker-compose.yml": WEB})
    repo = stacks.repositories.url("app")
    done = stacks.data("deploy_stack", stack_name=name, repo_url=repo, env_vars={"DOMAIN": "metrics.home.lab"})
    assert done["changed"] and done["difference"]["services_added"] == ["web"], done
    assert done["difference"]["commit"] == commit
    found = stacks.containers(name)["web"]
    assert found["State"]["Running"] and found["Config"]["Cmd"][-1].startswith("echo serving metrics.home.lab")
    labels = found["Config"]["Labels"]
    assert labels["systemmanager.stack"] == name and labels["systemmanager.stack.commit"] == commit
    assert labels["systemmanager.stack.repo"] == repo
    listed = stacks.data("list_stacks")["stacks"]
    assert {"stack": name, "commit": commit, "repo": repo, "branch": "main", "file": "docker-compose.yml",
            "services": 1, "running": 1} in listed  # fmt: skip


HEALTHY = """\
services:
  web:
    image: systemmanager-test:1
    command: ["sh", "-c", "{command}"]
    healthcheck: {{test: ["CMD", "cat", "{file}"], interval: 300ms, timeout: 2s, retries: 2}}
    volumes: ["data:/data"]
  other:
    image: systemmanager-test:1
volumes:
  data: {{}}
"""


def healthy(command: str = "echo kept > /data/kept; exec sleep 600", file: str = "/data/kept") -> dict[str, str]:
    return {"docker-compose.yml": HEALTHY.format(command=command, file=file)}


def test_a_deployment_that_does_not_become_healthy_leaves_the_old_stack_serving(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = stacks.repositories.commit("app", healthy())
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    before = stacks.containers(name)
    stacks.repositories.commit("app", healthy("echo no database at db:5432; exec sleep 600", "/nowhere"))
    error = stacks.error("update_stack", stack_name=name)
    assert error["code"] == "rolled_back" and "web" in error["message"] and first[:12] in error["hint"], error
    assert "no database at db:5432" in error["details"]["logs"] and "unhealthy" in error["details"]["cause"], error
    after = stacks.containers(name)
    assert after["web"]["Config"]["Labels"]["systemmanager.stack.commit"] == first
    assert after["web"]["State"]["Running"] and "kept" in after["web"]["Config"]["Cmd"][-1]
    assert after["other"]["Id"] == before["other"]["Id"], "what did not change was not touched"
    status = stacks.data("get_stack_status", stack_name=name)
    assert status["commit"] == first and status["volumes"] == [f"{name}_data"], status
    stacks.repositories.commit("app", healthy("echo mended; cat /data/kept && exec sleep 600"))
    assert stacks.data("update_stack", stack_name=name)["changed"]
    assert stacks.data("get_stack_status", stack_name=name)["ok"]


def test_a_first_deployment_that_fails_is_removed_and_says_why(stacks: Stacks) -> None:
    name = stacks.name()
    stacks.repositories.commit("app", healthy("echo port 80 is taken; exit 3"))
    error = stacks.error("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"))
    assert error["code"] == "rolled_back" and "volumes stay" in error["hint"], error
    assert "exit status 3" in error["details"]["cause"] and "port 80 is taken" in error["details"]["logs"], error
    assert not stacks.containers(name)


def test_a_commit_that_changes_one_service_restarts_that_one_alone(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = stacks.repositories.commit("app", healthy())
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    before = stacks.containers(name)
    second = stacks.repositories.commit("app", healthy("echo again; echo kept > /data/kept; exec sleep 600"))
    done = stacks.data("update_stack", stack_name=name)["difference"]
    assert done["services_changed"] == [{"service": "web", "fields": ["command"]}], done
    assert (done["previous_commit"], done["commit"]) == (first, second)
    after = stacks.containers(name)
    assert after["other"]["Id"] == before["other"]["Id"] and after["web"]["Id"] != before["web"]["Id"]
    stacks.repositories.commit("app", {**healthy("echo again; echo kept > /data/kept; exec sleep 600"), "README": "x"})
    assert not stacks.data("update_stack", stack_name=name)["changed"]
    assert {one["Id"] for one in stacks.containers(name).values()} == {one["Id"] for one in after.values()}


def test_a_stack_is_removed_and_its_volumes_only_when_that_is_asked_for(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    stacks.repositories.commit("app", {"docker-compose.yml": WEB})
    for volumes in (False, True):
        stacks.data("deploy_stack", stack_name=name, repo_url=repo)
        gone = stacks.data("remove_stack", stack_name=name, remove_volumes=volumes)
        assert len(gone["containers"]) == 1 and not stacks.containers(name)
        kept = [f"{name}_data"]
        assert (gone["volumes_kept"], gone["volumes_removed"]) == (([], kept) if volumes else (kept, []))
    assert stacks.error("get_stack_status", stack_name=name)["code"] == "not_found"
