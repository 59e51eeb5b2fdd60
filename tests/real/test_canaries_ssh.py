"""No secret of the gateway is in the argv or the environment of anything that it starts on a target."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.canaries import Canary
from tests.real.openssh import SshServers
from tests.support import real_gateway, run
from tests.test_canaries import ALL, gateway_log, iter_minutes, leaked, seen_of

RECORD = """#!/bin/sh
# Its whole process group, the watcher that holds the line of the login shell too: argv and environment. And the server.
group() { read -r stat 2>/dev/null < $1/stat && set -- ${stat##*) } && echo $3; }
mine=$(group /proc/$$)
for one in /proc/[0-9]*; do
  [ "$(group $one)" = "$mine" ] && cat $one/cmdline $one/environ
done 2>/dev/null >> SEEN
while read -r key value; do [ "$key" = PPid: ] && cat /proc/$value/cmdline; done < /proc/$$/status >> SEEN
printf '\\n%s\\n' NAME >> SEEN
exit 1
"""
PROGRAMS = (
    "systemctl", "journalctl", "ping", "traceroute", "apt-get", "dpkg-query", "apt-mark", "ss", "sudo", "git", "docker",
)  # fmt: skip

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_service_status", {"service_name": "nginx"}),
    ("manage_service", {"service_name": "nginx", "action": "restart"}),
    ("ping_host", {"host": "127.0.0.1"}),
    ("traceroute", {"host": "127.0.0.1"}),
    ("check_system_updates", {}),
    ("install_package", {"package_name": "nginx", "auto_approve": True}),
    ("audit_security", {}),
    ("analyze_logs", {"service_name": "nginx"}),
    ("health_check", {}),
]


def planted_in(monkeypatch: pytest.MonkeyPatch) -> tuple[Canary, ...]:
    """Canaries as they stand in the gateway's own environment."""
    planted = tuple(one for one in ALL if "\0" not in one.text and one.form != "encoded")
    for number, one in enumerate(planted):
        monkeypatch.setenv(f"CANARY_{number}", one.text)
    return planted


@pytest.mark.parametrize("user", ["root", "an account with sudo"])
def test_no_canary_is_in_argv_or_environment_of_what_is_started_on_a_target(
    tmp_path: Path, ssh_servers: SshServers, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """The gateway's environment holds them all, its secrets and the registry, the passphrase of the key among them."""
    programs, seen = ssh_servers.client_key.parent / "bin", ssh_servers.client_key.parent / "seen"
    programs.mkdir(mode=0o755)
    seen.touch()
    seen.chmod(0o666)
    for name in PROGRAMS:
        (programs / name).write_text(RECORD.replace("SEEN", str(seen)).replace("NAME", name))
        (programs / name).chmod(0o755)
    account = "root" if user == "root" else ssh_servers.account("sh")
    server = ssh_servers.start(f"SetEnv PATH={programs}:/usr/bin:/bin HOME={tmp_path}", username=account)
    planted = planted_in(monkeypatch)
    passphrase = next(one.parts[0] for one in planted if one.form == "argv")
    key = tmp_path / "key"
    key.write_bytes(server.client_key.read_bytes())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", passphrase, "-f", str(key)], check=True, capture_output=True)
    secrets = frozenset(part for one in planted for part in one.parts)
    there = server.target(
        connection={"key_path": str(key), "passphrase": passphrase}, constraints={"sudo_policy": "full"}
    )

    async def work() -> None:
        async with real_gateway(tmp_path, there, clock=iter_minutes(), secrets=secrets) as gateway:
            await seen_of(gateway, [(tool, {**arguments, "target": there.id}) for tool, arguments in CALLS])

    with gateway_log():
        run(work())
    told = seen.read_text(errors="replace")
    assert "shift; PATH=" in told and "sshd" in told, "the line of the login shell is there, too"
    started = {"systemctl", "ping", "apt-get"} if user == "root" else {"systemctl", "ping", "sudo"}
    assert all(f"\n{name}\n" in told for name in started), told[-2000:]
    assert not leaked(told, planted) and "CANARY_" not in told
