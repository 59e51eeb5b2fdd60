"""The unit as the flake renders it (install.sh fills in the paths), under a real systemd in a container."""

import json
import secrets
import sys
import time
from collections.abc import Iterator

import pytest

from tests.real.machine import GATEWAY, Machine
from tests.test_unit_text import unit

UNIT = "systemmanager-mcp"
STATUS = f"systemctl show -P StatusText {UNIT}"
RUNS = f"systemctl is-active --quiet {UNIT} && echo it runs"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = (
    f"env LD_LIBRARY_PATH={GATEWAY}/python/lib PYTHONDONTWRITEBYTECODE=1"
    f" PYTHONPATH={GATEWAY}/src:{GATEWAY}/venv/lib/{VERSION}/site-packages {GATEWAY}/python/bin/{VERSION}"
)
TARGETS = {
    "local": {"id": "local", "type": "local", "executor": "local", "capabilities": ["system:read", "service:control"]},
    "api": {
        "id": "api",
        "executor": "http",
        "connection": {"base_url": "http://127.0.0.1:1", "auth": {"type": "bearer", "token": "${API_TOKEN}"}},
        "capabilities": ["network:read"],
    },
}
BESIDE = (
    f"[Unit]\\nBindsTo={UNIT}.service\\nAfter={UNIT}.service\\n"
    "[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n"
    f"[Install]\\nWantedBy=multi-user.target {UNIT}.service\\n"
)
"""Bound to the gateway as nix/module/network.nix binds systemmanager-serve."""
CLIENT = """
import asyncio, json, sys
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

async def main():
    headers = {"Authorization": "Bearer " + sys.argv[1]}
    async with Client(StreamableHttpTransport("http://127.0.0.1:8080/mcp", headers=headers)) as client:
        done = await client.call_tool(sys.argv[2], json.loads(sys.argv[3]), raise_on_error=False)
        print(json.dumps(done.structured_content))

asyncio.run(main())
"""


def wait_for(machine: Machine, command: str, wanted: str, within: float = 60) -> str:
    """What a command says, once that holds `wanted`."""
    deadline = time.monotonic() + within
    while wanted not in (said := machine.ssh(command)):
        assert time.monotonic() < deadline, said + machine.ssh(f"journalctl -u {UNIT} -n 40 --no-pager")
    return said


@pytest.fixture(scope="module")
def gateway(machine: Machine) -> Iterator[Machine]:
    """The machine with the gateway's unit on it, not started."""
    given = machine.folder / "gateway"
    given.mkdir()
    version = machine.ssh("systemctl --version").split()[1]
    (given / "unit").write_text(unit(f"{GATEWAY}/prefix", ("API_TOKEN", "SYSTEMMANAGER_SHARED_SECRET"), version))
    (given / "targets.yaml").write_text(json.dumps({"version": "1.0", "targets": TARGETS}))
    (given / "policy.yaml").write_text('version: "1.0"\n')
    (given / "client.py").write_text(CLIENT)
    (given / "secret").write_text(secrets.token_urlsafe(48))
    machine.ssh(
        "useradd --system --user-group --home-dir /var/lib/systemmanager systemmanager;"
        f"mkdir -p -m 755 {GATEWAY}/prefix/bin /etc/systemmanager; install -d -m 700 /etc/credstore;"
        f"printf '#!/bin/sh\\nexec {PYTHON} -m systemmanager \"$@\"\\n'"
        f" > {GATEWAY}/prefix/bin/systemmanager; chmod 755 {GATEWAY}/prefix/bin/systemmanager;"
        "cp /srv/test/gateway/*.yaml /etc/systemmanager/;"
        f"cp /srv/test/gateway/unit /etc/systemd/system/{UNIT}.service;"
        f"printf '{BESIDE}' >/etc/systemd/system/beside.service; systemctl daemon-reload; systemctl enable beside"
    )
    yield machine
    machine.ssh(
        f"systemctl disable beside; systemctl stop {UNIT};"
        f"rm /etc/systemd/system/{{{UNIT},beside}}.service; systemctl daemon-reload"
    )


@pytest.fixture(scope="module")
def started(gateway: Machine) -> Machine:
    """The gateway, up: without its secrets it does not start; once they arrive it does, by itself."""
    gateway.ssh(f"systemctl start --no-block {UNIT} beside")
    wait_for(gateway, f"systemctl show -P ExecMainStatus {UNIT}", "243")
    gateway.ssh(
        "umask 077; cp /srv/test/gateway/secret /etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET;"
        "echo an-api-token > /etc/credstore/systemmanager.API_TOKEN"
    )
    wait_for(gateway, RUNS, "it runs")
    return gateway


def asked(machine: Machine, tool: str, arguments: str = "{}") -> str:
    """What a client inside the machine is answered."""
    return machine.ssh(asking(tool, arguments))


def asking(tool: str, arguments: str = "{}") -> str:
    """The command of a client inside the machine."""
    state = "SYSTEMMANAGER_STATE_DIR=/var/lib/systemmanager"
    secret = "SYSTEMMANAGER_SHARED_SECRET=$(cat /etc/credstore/systemmanager.SYSTEMMANAGER_SHARED_SECRET)"
    mint = f"{GATEWAY}/prefix/bin/systemmanager token mint --agent test --scopes admin"
    token = f"$(runuser -u systemmanager -- env {state} {secret} {mint})"
    return f"{PYTHON} /srv/test/gateway/client.py {token} {tool} '{arguments}'"


def test_it_is_ready_and_says_so(started: Machine) -> None:
    assert started.ssh(STATUS) == "2 targets\n", started.ssh(f"journalctl -u {UNIT} --no-pager")
    assert started.ssh(f"systemctl show -P User {UNIT}") == "systemmanager\n"


def test_its_whole_sandbox_is_there(started: Machine) -> None:
    answer = asked(started, "health_check")
    assert '"status": "ok"' in answer and "sandbox" not in answer, answer


def test_a_client_is_answered(started: Machine) -> None:
    assert '"uptime' in asked(started, "get_system_status")


def test_secrets_are_the_gateways_alone(started: Machine) -> None:
    assert "denied" in started.ssh("runuser -u systemmanager -- cat /etc/credstore/systemmanager.API_TOKEN 2>&1")
    assert "API_TOKEN" not in started.ssh(f"tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID {UNIT})/environ")


def test_systemd_calls_its_exposure_at_most_one(started: Machine) -> None:
    said = started.ssh(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(said.split(": ")[1].split()[0]) <= 1.1, said


def test_a_reload_takes_a_good_file_and_keeps_the_old_one_before_a_bad_one(started: Machine) -> None:
    pid = started.ssh(f"systemctl show -P MainPID {UNIT}")
    started.ssh(f"echo nonsense > /etc/systemmanager/targets.yaml; systemctl reload {UNIT}")
    wait_for(started, STATUS, "2 targets; degraded: targets.yaml was not reloaded")
    one = json.dumps({"version": "1.0", "targets": {"local": TARGETS["local"]}})
    started.ssh(f"printf %s '{one}' > /etc/systemmanager/targets.yaml; systemctl reload {UNIT}")
    wait_for(started, STATUS, "1 targets")
    started.ssh(f"cp /srv/test/gateway/targets.yaml /etc/systemmanager/; systemctl reload {UNIT}")
    wait_for(started, STATUS, "2 targets")
    assert started.ssh(f"systemctl show -P MainPID {UNIT}") == pid


def test_a_killed_gateway_comes_back(started: Machine) -> None:
    pid = started.ssh(f"systemctl show -P MainPID {UNIT}").strip()
    started.ssh(f"kill -KILL {pid}")
    wait_for(started, f"test $(systemctl show -P MainPID {UNIT}) != {pid} && {RUNS}", "it runs")


def test_what_is_bound_to_the_gateway_comes_up_with_it_after_a_late_secret_and_after_a_crash(started: Machine) -> None:
    bound = "systemctl is-active --quiet beside && echo it is up"
    wait_for(started, bound, "it is up")
    pid = started.ssh(f"systemctl show -P MainPID {UNIT}").strip()
    started.ssh(f"kill -KILL {pid}")
    wait_for(started, f"test $(systemctl show -P MainPID {UNIT}) != {pid} && {RUNS}", "it runs")
    wait_for(started, bound, "it is up")


def test_a_gateway_that_hangs_is_ended_by_the_watchdog_and_comes_back(started: Machine) -> None:
    wait_for(started, RUNS, "it runs")
    pid = started.ssh(f"systemctl show -P MainPID {UNIT}").strip()
    started.ssh(f"kill -STOP {pid}")
    wait_for(started, f"journalctl -u {UNIT} --no-pager | grep -i watchdog", "Watchdog timeout", 60)
    wait_for(started, f"test $(systemctl show -P MainPID {UNIT}) != {pid} && {RUNS}", "it runs")


def test_an_auth_key_that_arrives_after_the_boot_is_used_once(gateway: Machine) -> None:
    """The units that nix/module/network.nix adds to tailscaled-autoconnect, around a program that notes its runs."""
    key = "/etc/credstore/systemmanager.tailscale-auth-key"
    join = f'[Unit]\\nConditionPathExists={key}\\n[Service]\\nExecStart=/bin/sh -c "cat {key} >>/run/joined"'
    gateway.ssh(
        f"printf '{join}\\n' >/run/systemd/system/join.service;"
        f"printf '[Path]\\nPathChanged={key}\\n' >/run/systemd/system/join.path;"
        "systemctl daemon-reload; systemctl start join.service join.path"
    )
    try:
        assert gateway.ssh("cat /run/joined 2>&1").count("No such file") == 1, "nothing asks before the key is there"
        gateway.ssh(f"umask 077; echo tskey >{key}")
        wait_for(gateway, "cat /run/joined", "tskey")
        assert gateway.ssh("systemctl is-active join.path") == "active\n" and gateway.ssh("wc -l </run/joined") == "1\n"
    finally:
        gateway.ssh(
            f"systemctl stop join.path; rm -f /run/systemd/system/join.* /run/joined {key}; systemctl daemon-reload"
        )


def test_what_a_drop_in_takes_away_is_told_and_nothing_is_changed_then(started: Machine) -> None:
    folder = f"/run/systemd/system/{UNIT}.service.d"
    started.ssh(f"mkdir -p {folder}; printf '[Service]\\nMemoryDenyWriteExecute=no\\n' > {folder}/weak.conf")
    try:
        started.ssh(f"systemctl daemon-reload; systemctl restart {UNIT}")
        assert "no_writable_code: memory can be written and executed" in asked(started, "health_check")
        asks = {"tool": "manage_service", "arguments": {"action": "restart", "service_name": "sm-steady"}}
        assert '"rule": "hardening", "answer": "deny"' in asked(started, "explain_access", json.dumps(asks))
    finally:
        started.ssh(f"rm -r {folder}; systemctl daemon-reload; systemctl restart {UNIT}")
