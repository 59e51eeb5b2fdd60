"""The gateway as `make install` puts it on Debian 13: its unit, in the flake's text, under systemd 257."""

import json
import re
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from tests.real.appliance import (
    ALLOWED,
    CLIENT,
    FORBIDDEN,
    MACHINE,
    OFFLINE,
    PREFIX,
    SECRET,
    SOURCE,
    asked,
    cable,
    done,
    operator_says,
    put,
    token,
)  # fmt: skip
from tests.real.machine import Machine
from tests.real.test_unit import CLIENT as CLIENT_SCRIPT
from tests.real.test_unit import RUNS, STATUS, UNIT, wait_for

RELEASE = f"{PREFIX}/lib/systemmanager/current"
API_TOKEN = secrets.token_hex(16)
LOCAL: dict[str, Any] = {
    "id": "local",
    "type": "local",
    "executor": "local",
    "capabilities": ["system:read", "network:read", "service:control", "system:admin"],
    "constraints": {"hosts": ["*", ALLOWED, FORBIDDEN], "sudo_policy": "limited"},
}
API: dict[str, Any] = {
    "id": "api",
    "executor": "http",
    "connection": {"base_url": f"http://{ALLOWED}:1", "auth": {"type": "bearer", "token": "${API_TOKEN}"}},
    "capabilities": ["network:read"],
}
TARGETS = json.dumps({"version": "1.0", "targets": {"local": LOCAL, "api": API}})
INSTALL = f"cd {SOURCE} && {OFFLINE} make --silent install PREFIX={PREFIX}"


@pytest.fixture(scope="module")
def installed(debian: Machine) -> Machine:
    """The gateway, configured, installed and up."""
    put(debian, "/etc/systemmanager/targets.yaml", TARGETS)
    put(debian, "/etc/systemmanager/policy.yaml", 'version: "1.0"\napprovals: {channels: [operator]}')
    put(debian, "/etc/systemmanager/networks", f"{ALLOWED}/32  # the API\n{CLIENT}")
    put(debian, "/etc/systemmanager/settings", f"MCP_HOST=0.0.0.0\nSYSTEMMANAGER_ALLOWED_HOSTS={MACHINE}")
    put(debian, "/root/client.py", CLIENT_SCRIPT)
    done(
        debian,
        "umask 077; mkdir -p /etc/credstore; cd /etc/credstore;"
        f"echo {SECRET} > systemmanager.SYSTEMMANAGER_SHARED_SECRET; echo {API_TOKEN} > systemmanager.API_TOKEN;"
        "useradd -m somebody; touch /tmp/everybodys; chmod 644 /tmp/everybodys",
    )
    said = done(debian, INSTALL)
    settled(debian)
    assert f"runs: {PREFIX}/lib/systemmanager/" in said and "2 targets" in debian.ssh(STATUS), said
    return debian


def settled(machine: Machine) -> None:
    """Wait until it is reached from outside.

    systemd 257 in a container sometimes loads a unit's networks so that nobody gets in; the next start mends that.
    """
    for _ in range(5):
        wait_for(machine, RUNS, "it runs")
        with suppress(TimeoutError), socket.create_connection((MACHINE, 8080), 2):
            return
        done(machine, f"systemctl restart {UNIT}")
    raise AssertionError(machine.ssh(f"systemctl status {UNIT}; journalctl -u {UNIT} --no-pager -n 20"))


def pid(machine: Machine) -> str:
    return machine.ssh(f"systemctl show -P MainPID {UNIT}").strip()


def test_it_is_ready_within_seconds_as_a_user_of_its_own(installed: Machine) -> None:
    shown = f"systemctl show -P ActiveEnterTimestampMonotonic -P InactiveExitTimestampMonotonic {UNIT}"
    times = [int(line) for line in installed.ssh(shown).split()]
    assert abs(times[0] - times[1]) < 20_000_000
    assert installed.ssh(f"ps -o user= -p {pid(installed)}").startswith("systemm")
    assert "Unknown key" not in installed.ssh(f"journalctl -u {UNIT} -u init.scope --no-pager")


def test_clients_inside_and_at_the_other_end_of_the_cable_are_answered(installed: Machine) -> None:
    inside = f"{RELEASE}/bin/python /root/client.py {token(installed)} get_system_status '{{}}'"
    assert '"uptime' in done(installed, inside)
    answer = asked(installed, "health_check")
    assert answer["results"][0]["data"]["status"] == "ok" and "sandbox" not in json.dumps(answer), answer


def test_a_stranger_at_the_other_end_gets_nothing(installed: Machine) -> None:
    with closing(socket.create_connection((MACHINE, 8080), 5)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(f"POST /mcp HTTP/1.1\r\nHost: {MACHINE}\r\nContent-Length: 0\r\n\r\n".encode())
        assert b" 401 " in stranger.recv(4096).split(b"\r\n")[0]


def test_the_journal_has_structured_lines(installed: Machine) -> None:
    lines = installed.ssh(f"journalctl -u {UNIT} -o cat --no-pager").splitlines()
    ready = next(json.loads(line) for line in lines if line.startswith("{"))
    assert ready["event"] == "ready" and ready["targets"] == 2


def test_secrets_arrive_and_are_the_gateways_alone(installed: Machine) -> None:
    place = f"/run/credentials/{UNIT}.service"
    root = f"/proc/{pid(installed)}/root"
    assert installed.ssh(f"cat {root}{place}/API_TOKEN").strip() == API_TOKEN
    assert "denied" in installed.ssh(f"runuser -u somebody -- cat {place}/API_TOKEN 2>&1")
    assert installed.ssh("stat -c %a:%U /etc/credstore").strip() == "700:root"
    shown = installed.ssh(f"tr '\\0' '\\n' < /proc/{pid(installed)}/environ; cat /proc/{pid(installed)}/cmdline")
    everywhere = shown + installed.ssh(f"systemctl show {UNIT}; journalctl --no-pager")
    assert API_TOKEN not in everywhere and SECRET not in everywhere


def test_systemd_calls_its_exposure_at_most_one(installed: Machine) -> None:
    said = installed.ssh(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(said.split(": ")[1].split()[0]) <= 1.1, said


# ---- what the sandbox forbids

WEAKER = {
    "NoNewPrivileges=no RestrictSUIDSGID=no": {"make a set-uid program"},
    "ProtectSystem=no User=root PrivateUsers=no CapabilityBoundingSet=~ ProtectControlGroups=no ProtectHome=no": {
        "write /etc", "write /usr", "write /var", "read the passwords", "read root's home", "make a control group",
    },
    "ProtectHome=no": {"read homes"},
    "PrivateTmp=no": {"read everybody's /tmp"},
    "MemoryDenyWriteExecute=no": {"have memory to write and execute", "execute memory that was written"},
    "NoExecPaths=": {"execute from the state folder", "execute from /tmp", "execute from /dev/shm"},
    "LockPersonality=no": {"change the personality"},
    "RestrictNamespaces=no SystemCallFilter=": {"make a user namespace", "trace a process"},
    "IPAddressDeny= IPAddressAllow=": set(),
}  # fmt: skip
"""What a unit without those lines lets be done: so much is known of what each of them is worth."""


def self_test(machine: Machine, weaker: str = "", tries: str = "forbidden") -> dict[str, str]:
    """What comes of each action of a script in the gateway's place: its unit with another program."""
    text = machine.ssh(f"cat /etc/systemd/system/{UNIT}.service")
    text = re.sub(r"^(Watchdog|Restart|EnvironmentFile|Type|NotifyAccess)\S*=.*\n", "", text, flags=re.M)
    state, where = "/var/lib/systemmanager", f"{FORBIDDEN}:{PORT}"
    program = f"ExecStart=/usr/bin/python3 -I /srv/tests/{tries}.py {state} {where}\nType=oneshot\n"
    text = re.sub(r"^ExecStart=.*\n", program + "StandardOutput=truncate:/run/self-test\n", text, flags=re.M)
    text = text.replace("[Install]", "\n".join(weaker.split()) + "\n[Install]")
    put(machine, "/etc/systemd/system/self-test.service", text)
    done(machine, "systemctl daemon-reload; systemctl start self-test || { journalctl -u self-test; exit 1; }")
    said: dict[str, str] = json.loads(machine.ssh("cat /run/self-test"))
    return said


@contextmanager
def listening(host: str, port: int = 0) -> Iterator[int]:
    """A server outside that takes connections and says nothing."""
    with socket.create_server((host, port)) as server:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                server.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            with closing(socket.create_connection(server.getsockname())):
                thread.join(10)


PORT = 4711


def test_more_than_twenty_forbidden_actions_fail_and_would_not_without_the_sandbox(installed: Machine) -> None:
    with listening(FORBIDDEN, PORT):
        free = f"mkdir -p /srv/free && python3 -I /srv/tests/forbidden.py /srv/free {FORBIDDEN}:{PORT}"
        possible = {name for name, came in json.loads(done(installed, free)).items() if came == "done"}
        confined = self_test(installed)
    assert len(possible) >= 30, possible
    assert [name for name, came in confined.items() if came == "done"] == []
    assert len(confined) >= 40


@pytest.mark.parametrize("weaker", WEAKER)
def test_a_weaker_unit_is_found_by_the_same_actions(installed: Machine, weaker: str) -> None:
    with listening(FORBIDDEN, PORT):
        open_ways = {name for name, came in self_test(installed, weaker).items() if came == "done"}
    assert WEAKER[weaker] <= open_ways, self_test(installed, weaker)


def test_what_stacks_are_deployed_with_runs_in_the_sandbox(installed: Machine) -> None:
    found = self_test(installed, tries="needed")
    assert found == {"git keeps a commit": "done", "git starts ssh": "done", "Compose resolves a file": "done"}


# ---- the way out


def reached(machine: Machine, host: str, port: int) -> bool:
    """Whether the gateway itself gets through to an address."""
    answer = asked(machine, "test_port_connectivity", host=host, ports=[port], timeout=3)
    return '"open": true' in json.dumps(answer) or '"state": "open"' in json.dumps(answer)


@contextmanager
def drop_in(machine: Machine, text: str) -> Iterator[None]:
    folder = f"/run/systemd/system/{UNIT}.service.d"
    put(machine, f"{folder}/test.conf", f"[Service]\n{text}")
    done(machine, f"systemctl daemon-reload; systemctl restart {UNIT}")
    settled(machine)
    try:
        yield
    finally:
        done(machine, f"rm -r {folder}; systemctl daemon-reload; systemctl restart {UNIT}")
        settled(machine)


LISTS = {
    "both": ("", "true", False),
    "systemd's alone": ("", "nft delete table inet systemmanager", False),
    "the firewall's alone": ("IPAddressDeny=\nIPAddressAllow=\n", "true", False),
    "neither": ("IPAddressDeny=\nIPAddressAllow=\n", "nft delete table inet systemmanager", True),
}


@pytest.mark.parametrize("lists", LISTS)
def test_what_is_not_in_the_list_is_not_reached(installed: Machine, lists: str) -> None:
    lines, command, open_ = LISTS[lists]
    with listening(ALLOWED) as allowed, listening(FORBIDDEN) as forbidden, drop_in(installed, lines):
        done(installed, command)
        try:
            assert reached(installed, ALLOWED, allowed)
            assert reached(installed, FORBIDDEN, forbidden) is open_
        finally:
            done(installed, "systemctl reload systemmanager-egress")


def test_what_the_kernel_sends_is_nobodys(installed: Machine) -> None:
    """Neighbours of IPv6 are found by packets without a user, which the firewall must let pass."""
    own = subprocess.run(
        ["ip", "-o", "-6", "address", "show", "dev", cable()], capture_output=True, text=True, check=True
    )
    address = own.stdout.split()[3].partition("/")[0]
    connect = f"import socket; socket.create_connection(('{address}%host0', 9), 3)"
    said = installed.ssh(f'ip -6 neigh flush dev host0; python3 -c "{connect}" 2>&1')
    assert "Connection refused" in said, said


# ---- its life


def test_a_reload_takes_a_good_file_and_keeps_the_old_one_before_a_bad_or_missing_one(installed: Machine) -> None:
    before, targets = pid(installed), "/etc/systemmanager/targets.yaml"
    one = json.dumps({"version": "1.0", "targets": {"local": LOCAL}})
    for change, said in (
        (f"echo nonsense > {targets}", "2 targets; degraded: targets.yaml was not reloaded"),
        (f"printf %s '{one}' > {targets}", "1 targets"),
        (f"rm {targets}", "1 targets; degraded: targets.yaml was not reloaded"),
        (f"printf %s '{TARGETS}' > {targets}", "2 targets"),
    ):
        done(installed, f"{change}; systemctl reload {UNIT}")
        assert wait_for(installed, STATUS, said).startswith(said)
    assert pid(installed) == before


def test_a_killed_gateway_comes_back(installed: Machine) -> None:
    before = pid(installed)
    installed.ssh(f"kill -KILL {before}")
    wait_for(installed, f"test $(systemctl show -P MainPID {UNIT}) != {before} && {RUNS}", "it runs")
    assert asked(installed, "health_check")["ok"]


def test_a_gateway_that_hangs_is_ended_by_the_watchdog_and_comes_back(installed: Machine) -> None:
    before = pid(installed)
    with drop_in(installed, "WatchdogSec=2s"):  # its own is 30 s, which is read from the unit's text elsewhere
        before = pid(installed)
        installed.ssh(f"kill -STOP {before}")
        wait_for(installed, f"journalctl -u {UNIT} --no-pager | grep -i watchdog", "Watchdog timeout")
        wait_for(installed, f"test $(systemctl show -P MainPID {UNIT}) != {before} && {RUNS}", "it runs")


def test_what_a_drop_in_takes_away_is_told_and_nothing_is_changed_then(installed: Machine) -> None:
    with drop_in(installed, "MemoryDenyWriteExecute=no"):
        assert "no_writable_code: memory can be written and executed" in json.dumps(asked(installed, "health_check"))
        asks = {"tool": "manage_service", "arguments": {"action": "restart", "service_name": "sm-steady"}}
        assert '"rule": "hardening", "answer": "deny"' in json.dumps(asked(installed, "explain_access", **asks))


# ---- upgrade and farewell


def version(machine: Machine) -> str:
    return done(machine, f"{PREFIX}/bin/systemmanager --version").split()[-1]


def audited(machine: Machine) -> str:
    state = "SYSTEMMANAGER_STATE_DIR=/var/lib/systemmanager"
    return done(machine, f"runuser -u systemmanager -- env {state} {PREFIX}/bin/systemmanager audit verify")


@contextmanager
def source_changed(machine: Machine, command: str) -> Iterator[None]:
    done(machine, f"cp -r {SOURCE} {SOURCE}.kept; cd {SOURCE}/src/systemmanager; {command}")
    try:
        yield
    finally:
        done(machine, f"rm -rf {SOURCE}; mv {SOURCE}.kept {SOURCE}")


def test_an_upgrade_keeps_state_and_can_be_rolled_back(installed: Machine) -> None:
    kept, before = token(installed), version(installed)
    install = {"package_name": "sm-nothing", "target": "local", "idempotency_key": "once"}
    (asking,) = asked(installed, "install_package", **install)["results"]
    assert asking["error"]["code"] == "approval_required", asking
    request = asking["error"]["details"]["approval_id"]
    with source_changed(installed, "sed -i 's/^__version__ = .*/__version__ = \"99.1\"/' __init__.py"):
        assert "install.sh rollback" in done(installed, INSTALL)
    settled(installed)
    assert version(installed) == "99.1"
    assert request in operator_says(installed, "approvals list")
    operator_says(installed, f"approvals approve --yes {request}")
    asked(installed, "install_package", **install, approval_id=request)
    (job,) = asked(installed, "list_jobs")["results"][0]["data"]["jobs"]
    for expected in ("99.1", before):
        assert f'"version": "{expected}"' in json.dumps(asked(installed, "health_check"))
        inside = f"{RELEASE}/bin/python /root/client.py {kept} get_system_status '{{}}'"
        assert '"uptime' in done(installed, inside)
        assert audited(installed).startswith("whole: ")
        if expected != before:
            done(installed, f"cd {SOURCE} && make --silent rollback PREFIX={PREFIX}")
            settled(installed)
    assert version(installed) == before
    assert asked(installed, "job_status", job_id=job["job_id"])["results"][0]["data"]["tool"] == "install_package"


def test_a_bad_file_fails_the_upgrade_and_not_the_gateway(installed: Machine) -> None:
    running = pid(installed)
    for path, said in (
        ("/etc/systemmanager/targets.yaml", "nothing was changed"),
        ("/etc/systemmanager/networks", "is no address or CIDR block"),
    ):
        done(installed, f"cp -p {path} /root/kept; echo nonsense > {path}")
        assert said in done(installed, INSTALL.replace("make", "PIP_NO_COMPILE=1 make"), 2)
        done(installed, f"cp -p /root/kept {path}")
    assert pid(installed) == running and len(installed.ssh(f"ls -d {PREFIX}/lib/systemmanager/*Z").split()) == 2


def test_a_release_that_does_not_come_up_is_taken_back(installed: Machine) -> None:
    before = installed.ssh(f"readlink {RELEASE}")
    with source_changed(installed, "echo 'raise SystemExit(7)' >> server/app.py"):
        said = done(installed, INSTALL.replace("make", "PIP_NO_COMPILE=1 make"), 2)
    assert "did not come up and was taken back" in said
    settled(installed)
    assert installed.ssh(f"readlink {RELEASE}") == before and asked(installed, "health_check")["ok"]


def test_an_uninstall_leaves_state_and_configuration_and_says_so(installed: Machine) -> None:
    said = done(installed, f"cd {SOURCE} && make --silent uninstall PREFIX={PREFIX}")
    assert "left: /etc/systemmanager, /etc/credstore/systemmanager.*, /var/lib/systemmanager" in said
    left = "find /etc /usr /run /tmp /var -xdev -path '/var/lib/systemmanager/*' -prune -o"
    names = installed.ssh(f"{left} -name '*systemmanager*' -print; ls -d {PREFIX} 2>/dev/null").split()
    assert sorted(names) == [
        "/etc/credstore/systemmanager.API_TOKEN",
        "/etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET",
        "/etc/systemmanager",
        "/var/lib/systemmanager",
    ]
    assert "systemmanager" not in installed.ssh("nft list ruleset; getent passwd; getent group; ls /etc/systemd/system")
    assert installed.ssh("find /var/lib/systemmanager ! -user root") == ""
    assert "nothing is installed" in done(installed, f"cd {SOURCE} && make --silent rollback PREFIX={PREFIX}", 2)


def test_an_install_after_that_goes_on_with_the_same_state_and_a_witness_elsewhere(installed: Machine) -> None:
    witness = "/srv/witness/audit.jsonl"
    done(installed, f"echo SYSTEMMANAGER_AUDIT_WITNESS={witness} >>/etc/systemmanager/settings")
    done(installed, INSTALL)
    settled(installed)
    assert installed.ssh("stat -c '%a %U' /srv/witness") == "700 systemmanager\n"
    written = f"for i in $(seq 60); do test -s {witness} && echo yes && break; sleep 1; done"
    assert installed.ssh(written) == "yes\n"
    assert audited(installed).startswith("whole: ")
    assert asked(installed, "health_check")["ok"]
