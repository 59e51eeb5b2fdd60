"""Compose stacks from a real git server onto a real engine by the real Compose."""

import shutil
from dataclasses import replace

import pytest

from tests.real.engine import Containers
from tests.real.openssh import SshServer
from tests.real.stacks import Stacks

WEB = """\
services:
  web:
    image: systemmanager-test:1
    stop_grace_period: 100ms
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
    stop_grace_period: 100ms
    command: ["sh", "-c", "{command}"]
    healthcheck: {{test: ["CMD", "cat", "{file}"], interval: 300ms, timeout: 2s, retries: 2}}
    volumes: ["data:/data"]
  other:
    image: systemmanager-test:1
    stop_grace_period: 100ms
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
    assert "no database at db:5432" in error["details"]["logs"] and "unhealthy" in error["details"]["problem"], error
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
    assert "exit status 3" in error["details"]["problem"] and "port 80 is taken" in error["details"]["logs"], error
    assert not stacks.containers(name) and f"{name}_data" in str(stacks.engine.client.volumes()), "what is in it stays"


@pytest.mark.parametrize("part", ['ports: ["127.0.0.1::80"]', ""])
def test_what_ends_at_once_although_it_is_to_go_on_is_taken_back(stacks: Stacks, part: str) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    ends = WEB.replace("exec sleep 600", "exit 0").replace("    environment", f"    {part}\n    environment")
    if not part:
        stacks.repositories.commit("app", {"docker-compose.yml": WEB})
        stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    stacks.repositories.commit("app", {"docker-compose.yml": ends})
    error = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert error["code"] == "rolled_back" and "exit status 0" in error["details"]["problem"], error
    assert "serving nothing" in error["details"]["logs"] and bool(stacks.containers(name)) is not bool(part)


def test_a_service_that_others_wait_for_may_end(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    text = WEB.replace(
        "    environment", "    depends_on: {job: {condition: service_completed_successfully}}\n    environment"
    )
    job = '  job: {image: "systemmanager-test:1", command: ["true"], ports: ["127.0.0.1::81"]}\n'
    stacks.repositories.commit(
        "app", {"docker-compose.yml": text.replace("volumes:\n  data", f"{job}volumes:\n  data")}
    )
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    assert stacks.containers(name)["job"]["State"]["Status"] == "exited"
    assert stacks.data("get_stack_status", stack_name=name)["ok"]


def test_the_likely_cause_of_a_failed_deployment_is_told(stacks: Stacks) -> None:
    name = stacks.name()
    said = "listen tcp 0.0.0.0:80: bind: address already in use"
    stacks.repositories.commit("app", healthy(f"echo 'Error: {said}' >&2; exit 1"))
    error = stacks.error("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"))
    assert error["details"]["likely_cause"]["cause"] == "port_conflict", error
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
        plan = stacks.data("deploy_stack", stack_name=name, repo_url=repo, dry_run=True)["plan"]
        assert any(one["what"] == f"volume {name}_data" for one in plan["changes"]) is not volumes, plan
        again = f"Volumes that are mounted again: {name}_data."
        assert (again in plan["notes"]) is volumes, "it stayed, with what is in it"
        stacks.data("deploy_stack", stack_name=name, repo_url=repo)
        gone = stacks.data("remove_stack", stack_name=name, remove_volumes=volumes)
        assert len(gone["containers"]) == 1 and not stacks.containers(name)
        kept = [f"{name}_data"]
        assert (gone["volumes_kept"], gone["volumes_removed"]) == (([], kept) if volumes else (kept, []))
    assert stacks.error("get_stack_status", stack_name=name)["code"] == "not_found"


def test_a_stack_is_deployed_on_an_ssh_target_with_its_files(stacks: Stacks, ssh_server: SshServer) -> None:
    """Neither the repository's files nor the engine's socket are where Compose runs."""
    stacks.target = ssh_server.target("web-01", connection={"docker_socket": stacks.engine.socket})
    text = WEB.replace('"data:/data"', '"./conf:/etc/app:ro", "./one.sh:/one.sh", "data:/data"')
    text += "secrets: {s: {file: ./secret.txt}}\n"
    text = text.replace("    environment", "    secrets: [s]\n    environment")
    files = {"docker-compose.yml": text, "conf/a/b.conf": "cost: $5\n", "one.sh": "echo $HOME", "secret.txt": "s3same"}
    stacks.repositories.commit("app", files)
    name = stacks.name()
    stacks.data("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"))
    found = stacks.containers(name)["web"]
    read = ["cat", "/etc/app/a/b.conf", "/one.sh", "/run/secrets/s"]
    client = stacks.engine.client
    said = client.exec_start(client.exec_create(found["Id"], read)["Id"]).decode()
    assert said == "cost: $5\necho $HOMEs3same"
    stacks.repositories.commit("app", {**files, "conf/a/b.conf": "cost: $6\n"})
    done = stacks.data("update_stack", stack_name=name)
    assert done["changed"] and [one["service"] for one in done["difference"]["services_changed"]] == ["web"], done
    assert stacks.data("remove_stack", stack_name=name)["containers"]


def test_a_repository_is_fetched_over_ssh_with_the_key_of_its_host(stacks: Stacks, ssh_server: SshServer) -> None:
    stacks.repositories.commit("app", {"docker-compose.yml": WEB})
    repo = f"ssh://{ssh_server.username}@{ssh_server.host}:{ssh_server.port}{stacks.repositories.bare('app')}"
    name = stacks.name()
    refused = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert refused["code"] == "host_key_unknown", refused
    (stacks.state / "known_hosts").write_text(ssh_server.known_hosts_line)
    refused = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert refused["code"] == "auth_refused" and f"git.{ssh_server.host}.key" in refused["hint"], refused
    shutil.copy(ssh_server.client_key, stacks.state / "git" / f"git.{ssh_server.host}.key")
    assert stacks.data("deploy_stack", stack_name=name, repo_url=repo)["changed"]


def test_a_token_opens_a_repository_and_is_told_nowhere(stacks: Stacks, capfd: pytest.CaptureFixture[str]) -> None:
    token = "robot:correct-horse-battery"
    stacks.repositories.token = token
    stacks.repositories.commit("app", {"docker-compose.yml": WEB})
    name, repo = stacks.name(), stacks.repositories.url("app")
    error = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert error["code"] == "auth_refused" and "git.127.0.0.1.token" in error["hint"], error
    (stacks.state / "git" / "git.127.0.0.1.token").write_text(token + "\n")
    assert stacks.data("deploy_stack", stack_name=name, repo_url=repo)["changed"]
    told = "".join(map(str, capfd.readouterr())) + (stacks.state / "audit.jsonl").read_text()
    assert "correct-horse" not in told
    left = [path for path in stacks.state.rglob("*") if path.is_file() and path.name != "git.127.0.0.1.token"]
    assert not [path for path in left if b"correct-horse" in path.read_bytes()], "it stays nowhere"
    assert not list(stacks.state.glob("stacks/*/*/checkout-*")), "a checkout goes with its call"


def test_variables_that_look_secret_are_kept_closed_and_told_nowhere(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    stacks.repositories.commit("app", healthy("echo the password is $$PASSWORD; exit 1", "/x"))
    text = HEALTHY.format(command="echo it is $$PASSWORD; exit 1", file="/x")
    text = text.replace("    healthcheck", '    environment: {PASSWORD: "${DB_PASSWORD}"}\n    healthcheck')
    stacks.repositories.commit("app", {"docker-compose.yml": text})
    error = stacks.error("deploy_stack", stack_name=name, repo_url=repo, env_vars={"DB_PASSWORD": "tr0ub4dor&3"})
    assert "it is [redacted]" in error["details"]["logs"], error
    assert "tr0ub4dor" not in str(error) + (stacks.state / "audit.jsonl").read_text()
    stacks.repositories.commit("app", {"docker-compose.yml": text.replace("; exit 1", " > /x; exec sleep 600")})
    stacks.data("deploy_stack", stack_name=name, repo_url=repo, env_vars={"DB_PASSWORD": "tr0ub4dor&3"})
    assert "PASSWORD=tr0ub4dor&3" in stacks.containers(name)["web"]["Config"]["Env"]
    file = stacks.state / "stacks.sqlite"
    assert file.stat().st_mode & 0o777 == 0o600 and b"tr0ub4dor" in file.read_bytes()
    stacks.repositories.commit("app", {"docker-compose.yml": text.replace("; exit 1", "1 > /x; exec sleep 600")})
    assert stacks.data("update_stack", stack_name=name)["changed"], "with the same variables"
    assert "PASSWORD=tr0ub4dor&3" in stacks.containers(name)["web"]["Config"]["Env"]


def test_the_gateways_own_environment_reaches_no_stack(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "of the gateway")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    text = WEB.replace("${PASSWORD:-}", "${LEAK:-}")
    stacks.repositories.commit("app", {"docker-compose.yml": text})
    name = stacks.name()
    stacks.data("deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"))
    assert "of the gateway" not in str(stacks.containers(name))


def test_what_the_policy_refuses_is_told_with_its_line_and_touches_nothing(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    stacks.repositories.commit("app", {"docker-compose.yml": WEB.replace("    command", "    ipc: host\n    command")})
    error = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert error["code"] == "compose_refused" and error["message"].startswith("docker-compose.yml:5: "), error
    assert error["details"]["findings"][0]["field"] == "services.web.ipc" and not stacks.containers(name)
    stacks.exempt(name, repo, "ipc:host")
    assert stacks.data("deploy_stack", stack_name=name, repo_url=repo)["difference"]["exempted"] == ["ipc:host"]
    stacks.rules = replace(stacks.rules, exemptions=())
    stacks.repositories.commit("app", {"docker-compose.yml": WEB})
    error = stacks.error("update_stack", stack_name=name)
    assert error["code"] == "engine_refused" and "no way back" in error["message"], error
    assert stacks.containers(name)["web"]["HostConfig"]["IpcMode"] == "host", "it was left alone"


def test_names_of_others_are_not_taken(stacks: Stacks, containers: Containers) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    other = containers()
    stacks.repositories.commit(
        "app", {"docker-compose.yml": WEB.replace("    command", f"    container_name: {other}\n    command")}
    )
    error = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
    assert error["code"] == "engine_refused" and other in error["message"], error
    stacks.engine.client.create_volume(f"{name}_data", labels={"com.docker.compose.project": "other"})
    try:
        stacks.repositories.commit("app", {"docker-compose.yml": WEB})
        error = stacks.error("deploy_stack", stack_name=name, repo_url=repo)
        assert error["code"] == "engine_refused" and f"{name}_data" in error["message"], error
    finally:
        stacks.engine.client.remove_volume(f"{name}_data")
    containers(labels={"com.docker.compose.project": name, "com.docker.compose.service": "web"})
    assert stacks.error("deploy_stack", stack_name=name, repo_url=repo)["code"] == "engine_refused"
    assert stacks.error("remove_stack", stack_name=name)["code"] == "engine_refused"


def test_what_was_built_from_the_repository_runs(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    text = 'services:\n  web:\n    build: .\n    command: ["cat", "/made"]\n    restart: "no"\n'
    dockerfile = "FROM systemmanager-test:1\nRUN echo first > /made\n"
    stacks.repositories.commit("app", {"docker-compose.yml": text, "Dockerfile": dockerfile})
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    assert b"first" in stacks.engine.client.logs(stacks.containers(name)["web"]["Id"])
    broken = dockerfile.replace("first > /made", "second > /made; rm /bin/cat")
    stacks.repositories.commit("app", {"docker-compose.yml": text, "Dockerfile": broken})
    error = stacks.error("update_stack", stack_name=name)
    assert error["code"] == "rolled_back", error
    assert b"first" in stacks.engine.client.logs(stacks.containers(name)["web"]["Id"]), "on the image that ran before"


def test_a_call_that_is_cut_off_brings_back_what_ran(stacks: Stacks) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = stacks.repositories.commit("app", healthy())
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    stacks.repositories.commit("app", healthy("exec sleep 601", "/never").copy())
    slow = HEALTHY.format(command="exec sleep 601", file="/never").replace("retries: 2", "retries: 1000")
    stacks.repositories.commit("app", {"docker-compose.yml": slow})
    stacks.limit(12)
    error = stacks.error("update_stack", stack_name=name)
    assert error["code"] == "deadline_exceeded", error
    found = stacks.containers(name)["web"]
    assert found["State"]["Running"] and found["Config"]["Labels"]["systemmanager.stack.commit"] == first
