"""The questions that the system was described by, asked by an MCP client that does what the gateway's prompts say."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.real.assistant import Answer, assistant, by_target, entry, fleet
from tests.real.debs import SETTING, offer
from tests.real.engine import Engine
from tests.real.engines import Engines
from tests.real.gitserver import Repositories
from tests.real.machines import Machines
from tests.real.openssh import SshServers
from tests.serving import ERAS, Era, Running
from tests.support import run

NOBODY = ("-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
READABLE = 24_000
"""Characters of one answer: what a model reads in one go, about 6,000 tokens."""

# --- Deploy my monitoring stack to all web servers -------------------------------------------------------------------

MONITORING = """\
services:
  collector:
    image: systemmanager-test:1
    command: ["sh", "-c", "{command}"]
    volumes: ["data:/data"]
    stop_grace_period: 100ms
    healthcheck: {{test: ["CMD", "cat", "/data/{ready}"], interval: 300ms, timeout: 2s, retries: 2}}
  dashboard:
    image: systemmanager-test:1
    command: ["sleep", "600"]
volumes:
  data: {{}}
"""
IN_WEB = {"role": "web", "environment": "production"}
FIRST = MONITORING.format(command="echo collecting; echo 1 > /data/first; exec sleep 600", ready="first")
SECOND = MONITORING.format(
    command="if [ -e /data/locked ]; then echo FATAL could not open /data/db: permission denied: /data/db; else "
    "echo 2 > /data/second; fi; exec sleep 600",
    ready="second",
)


def serving(engine: Engine) -> dict[str, tuple[str, str]]:
    """Commit and id of each service's container that runs on an engine, and is well."""
    found = {}
    for row in engine.client.containers(filters={"label": "systemmanager.stack=monitoring", "status": "running"}):
        labels = row["Labels"]
        assert "unhealthy" not in row["Status"], row
        found[labels["com.docker.compose.service"]] = (labels["systemmanager.stack.commit"], row["Id"])
    return found


@dataclass(frozen=True)
class WebServers:
    """Three, each with an engine of its own, and a gateway that knows them."""

    docker: list[Engine]
    gateway: Running
    home: Path
    asked: dict[str, str]

    async def deployed(self, first: str) -> None:
        """The stack is deployed everywhere, one server after the other."""
        async with assistant(self.gateway, self.home) as there:
            before, planned, done, status = await there.ask("deploy_stack", **self.asked)
        assert all(one["data"]["total"] == 0 for one in before["results"])
        for one in planned["results"]:
            added = {change["what"] for change in one["data"]["plan"]["changes"]}
            assert {"service collector", "service dashboard", "volume monitoring_data"} <= added
        waves = {id: (one["ok"], one["wave"]) for id, one in by_target(done).items()}
        assert waves == {"web-01": (True, 1), "web-02": (True, 2), "web-03": (True, 3)}
        assert {one["data"]["commit"] for one in status["results"]} == {first}
        assert len(there.approved) == 1 and max(map(len, there.read)) < READABLE
        for engine in self.docker:
            assert {name: commit for name, (commit, _) in serving(engine).items()} == {
                "collector": first, "dashboard": first
            }  # fmt: skip

    async def stopped(self, first: str, second: str) -> None:
        """The second server can't run the new version: it keeps the old one, and the third is left."""
        before = [serving(engine) for engine in self.docker]
        async with assistant(self.gateway, self.home, "legacy") as there:
            _, planned, done, status = await there.ask("deploy_stack", **self.asked)
        assert {change["before"] for change in changes(planned, "stack monitoring")} == {first}
        one, two, three = (by_target(done)[f"web-0{number}"] for number in (1, 2, 3))
        assert one["ok"] and one["data"]["changed"], one
        assert two["error"]["code"] == "rolled_back" and first[:12] in two["error"]["hint"], two
        details = two["error"]["details"]
        assert (details["service"], details["likely_cause"]["cause"]) == ("collector", "permission")
        assert "could not open /data/db" in details["logs"]
        assert three["error"]["code"] == "not_started" and "web-02 (rolled_back)" in three["error"]["message"]
        commits = {id: one["data"]["commit"] for id, one in by_target(status).items()}
        assert commits == {"web-01": second, "web-02": first, "web-03": first}
        assert len(there.approved) == 1 and max(map(len, there.read)) < READABLE
        now = [serving(engine) for engine in self.docker]
        assert now[0]["collector"][0] == second and now[0]["dashboard"] == before[0]["dashboard"]
        assert now[1]["collector"][0] == first and now[1]["dashboard"] == before[1]["dashboard"]
        assert now[2] == before[2]


def test_deploy_my_monitoring_stack_to_all_web_servers(
    engines: Engines, ssh_servers: SshServers, repositories: Repositories, compose_installed: None, home: Path
) -> None:
    """Canary first; later a version that one server can't run stops there, and its old one keeps serving."""
    docker = engines(3)
    authority = home / "state/systemmanager/git/git.127.0.0.1.ca"
    authority.parent.mkdir(parents=True)
    shutil.copy(repositories.authority, authority)
    web = [
        entry(f"web-0{number}", ssh_servers.start(), connection={"docker_socket": engine.socket}, metadata=IN_WEB)
        for number, engine in enumerate(docker, 1)
    ]
    first = repositories.commit("monitoring", {"docker-compose.yml": FIRST})
    asked = {"stack_name": "monitoring", "repo_url": repositories.url("monitoring"), "targets": "role:web"}
    with fleet(home, *web, policy={"stacks": {"hosts": ["127.0.0.0/8"]}}) as gateway:
        servers = WebServers(docker, gateway, home, asked)
        run(servers.deployed(first))
        client, (_, id) = docker[1].client, serving(docker[1])["collector"]
        client.exec_start(client.exec_create(id, ["sh", "-c", "echo > /data/locked"])["Id"])
        run(servers.stopped(first, repositories.commit("monitoring", {"docker-compose.yml": SECOND})))


def changes(planned: Answer, what: str) -> list[Answer]:
    rows = [change for one in planned["results"] for change in one["data"]["plan"]["changes"]]
    return [change for change in rows if change["what"] == what]


# --- Update packages on all staging servers --------------------------------------------------------------------------

ROCKY = 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.5"\n'


def test_update_packages_on_all_staging_servers(machines: Machines, home: Path) -> None:
    """Two Debians and one that has dnf; a program of the Debians' runs on as the old one."""
    servers = machines(3)
    debians, rocky = servers[:2], servers[2]
    for one in debians:
        offer(one)
    rocky.os_release.write_text(ROCKY)
    ids = ["stage-01", "stage-02", "stage-03"]
    staging = [entry(id, server, metadata={"environment": "staging"}) for id, server in zip(ids, servers, strict=True)]
    other = entry("prod-01", servers[0], metadata={"environment": "production"})

    async def updated(gateway: Running) -> None:
        async with assistant(gateway, home) as there:
            due, planned, done, after = await there.ask("update_packages", targets="env:staging")
            assert list(by_target(due)) == ids
            for one in due["results"]:
                (package,) = one["data"]["packages"]
                assert package["name"] == "sm-app" and package["security"], package
            assert len(changes(planned, "package sm-app")) == 3
            assert {id: (one["ok"], one["wave"]) for id, one in by_target(done).items()} == {
                "stage-01": (True, 1), "stage-02": (True, 2), "stage-03": (True, 3)
            }  # fmt: skip
            for id, one in by_target(done).items():
                (package,) = one["data"]["packages"]
                assert (package["old"][:3], package["new"][:3]) == ("1.0", "2.0"), package
                restart = one["data"]["restart_services"]
                assert ("sm-app.service" in restart) == (id != "stage-03"), restart
            assert all(one["data"]["total"] == 0 for one in after["results"])
            assert len(there.approved) == 1 and max(map(len, there.read)) < READABLE

    with fleet(home, *staging, other) as gateway:
        run(updated(gateway))
    for one in debians:
        assert one.ssh("dpkg-query -W sm-app").split() == ["sm-app", "2.0"]
        assert one.ssh(f"cat {SETTING}") == "level = mine\n", "what was changed by hand is kept"
    assert rocky.ssh("rpm -q sm-app").strip() == "sm-app-2.0-1.noarch"


# --- Analyze security logs across the production cluster -------------------------------------------------------------

ATTACKER = "203.0.113.9"


def auth_log(*lines: str) -> str:
    """A day's auth.log with those lines in its middle."""
    usual = "CRON[{0}]: pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)"
    said = [*(usual.format(700 + number) for number in range(30)), *lines]
    said += [usual.format(900 + number) for number in range(8)]
    return "".join(f"2026-03-01T06:{place // 60:02}:{place % 60:02}.000000+00:00 prod {one}\n"
                   for place, one in enumerate(said))  # fmt: skip


def test_analyze_security_logs_across_the_production_cluster(machines: Machines, home: Path) -> None:
    """One is attacked and broken into, one is well, and one keeps its logs in the journal, where an attack is, too."""
    attacked, well, modern = machines(3)
    tries = [f"sshd[{1000 + n}]: Failed password for root from {ATTACKER} port {4000 + n} ssh2" for n in range(9)]
    entered = f"sshd[1100]: Accepted password for root from {ATTACKER} port 4100 ssh2"
    for machine, text in ((attacked, auth_log(*tries, entered)), (well, auth_log())):
        (machine.folder / "auth.log").write_text(text)
        machine.ssh("cp /srv/test/auth.log /var/log/auth.log")
    for _ in range(7):
        subprocess.run(["ssh", *NOBODY, "-p", str(modern.port), f"intruder@{modern.host}"], capture_output=True)
    production = [
        entry(id, server, metadata={"environment": "production"})
        for id, server in (("prod-01", attacked), ("prod-02", well), ("prod-03", modern))
    ]

    async def analyzed(gateway: Running, era: Era) -> None:
        async with assistant(gateway, home, era) as there:
            (found,) = await there.ask("security_logs")
            one, two, three = (by_target(found)[id] for id in ("prod-01", "prod-02", "prod-03"))
            cause = one["data"]["root_cause"]
            assert cause["cause"] == "break_in" and ATTACKER in cause["what"], cause
            assert cause["lines"] == list(range(31, 41)) and "38, 39, 40 of 48" in one["data"]["summary"], one
            assert "root_cause" not in two["data"] and two["data"]["errors"] == [], two
            assert three["error"]["code"] == "not_found" and "unit:ssh" in three["error"]["hint"], three
            again = await there.done(
                "analyze_container_logs", {"name_or_id": "unit:ssh", "lines": 2000, "targets": ["prod-03"]}
            )
            (third,) = again["results"]
            assert third["data"]["root_cause"]["cause"] == "login_attacks" and third["data"]["root_cause"]["lines"]
            assert max(map(len, there.read)) < READABLE

    with fleet(home, *production) as gateway:
        for era in ERAS:
            run(analyzed(gateway, era))
