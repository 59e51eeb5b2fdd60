"""Who a real SSH target is, and who the gateway is to it: host keys, private keys, certificates, the agent."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from systemmanager.errors import AuthRefused, HostKeyChanged, HostKeyUnknown, NotConfigured
from tests.real.openssh import SshServer, SshServers, until
from tests.real.ssh_ports import probed

# --- Host keys -------------------------------------------------------------------------------------------------------


def test_a_probe_says_what_answered(tmp_path: Path, ssh_server: SshServer) -> None:
    seen = probed(tmp_path, ssh_server.target())
    assert seen["server"].startswith("OpenSSH") and seen["host_key"] == ssh_server.fingerprint


def test_every_way_to_know_a_host_key_works(tmp_path: Path, ssh_server: SshServer) -> None:
    plain = tmp_path / "known"
    plain.write_text(f"# comment\n{ssh_server.known_hosts_line}")
    hashed = tmp_path / "hashed"
    hashed.write_text(ssh_server.known_hosts_line)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True, capture_output=True)
    assert probed(tmp_path, ssh_server.target(connection={"host_key": ssh_server.host_key}))
    assert probed(tmp_path, ssh_server.target(connection={"host_key": None, "known_hosts": str(plain)}))
    for file in (plain, hashed):
        assert probed(tmp_path, ssh_server.target(connection={"host_key": None}), tmp_path / "absent", file)


def test_an_unknown_host_key_names_what_to_pin(tmp_path: Path, ssh_server: SshServer) -> None:
    other = tmp_path / "known"
    other.write_text(f"example.org {ssh_server.host_key}\n")
    with pytest.raises(HostKeyUnknown) as caught:
        probed(tmp_path, ssh_server.target(connection={"host_key": None}), other)
    assert ssh_server.fingerprint in caught.value.message
    assert ssh_server.host_key in str(caught.value.hint) and ssh_server.fingerprint in str(caught.value.hint)
    assert not caught.value.retryable


def test_a_changed_host_key_is_refused_until_the_pin_changes(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start()
    before = server.target()
    line = server.target(connection={"host_key": server.host_key})
    known = tmp_path / "known"
    known.write_text(server.known_hosts_line)
    file = server.target(connection={"host_key": None})
    server.stop()
    server.new_host_key()
    server.run()
    for target in (before, line, file):
        with pytest.raises(HostKeyChanged, match=re.escape(server.fingerprint)):
            probed(tmp_path, target, known)
    assert probed(tmp_path, server.target(), known)


def test_a_revoked_host_key_is_refused(tmp_path: Path, ssh_server: SshServer) -> None:
    known = tmp_path / "known"
    known.write_text(f"{ssh_server.known_hosts_line}@revoked * {ssh_server.host_key}\n")
    with pytest.raises(HostKeyChanged, match="revoked"):
        probed(tmp_path, ssh_server.target(connection={"host_key": None}), known)


def test_a_fingerprint_may_be_of_another_kind_of_key_that_the_host_has(tmp_path: Path, ssh_servers: SshServers) -> None:
    rsa = ssh_servers.client_key.parent / "rsa_host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(rsa)], check=True)
    server = ssh_servers.start(f"HostKey {rsa}")
    said = subprocess.run(["ssh-keygen", "-lf", f"{rsa}.pub"], check=True, capture_output=True, text=True).stdout
    pin = said.split()[1]
    assert probed(tmp_path, server.target(connection={"host_key": pin}))["host_key"] == pin
    known = tmp_path / "known"
    known.write_text(f"[{server.host}]:{server.port} {' '.join(rsa.with_suffix('.pub').read_text().split()[:2])}\n")
    assert probed(tmp_path, server.target(connection={"host_key": None}), known)["host_key"] == pin


def test_a_host_certificate_of_a_known_authority_is_enough(tmp_path: Path, ssh_servers: SshServers) -> None:
    authority = ssh_servers.keygen("authority")
    host_key = ssh_servers.keygen("certified_host_key")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "host", "-h", "-n", "127.0.0.9", f"{host_key}.pub"]
    subprocess.run(sign, check=True, capture_output=True)
    server = ssh_servers.start(f"HostKey {host_key}", f"HostCertificate {host_key}-cert.pub", host="127.0.0.9")
    known = tmp_path / "known"
    known.write_text(f"@cert-authority * {Path(f'{authority}.pub').read_text()}")
    assert probed(tmp_path, server.target(connection={"host_key": None}), known)
    known.write_text(f"@cert-authority * {Path(f'{ssh_servers.client_key}.pub').read_text()}")
    with pytest.raises(HostKeyChanged):
        probed(tmp_path, server.target(connection={"host_key": None}), known)


# --- Credentials -----------------------------------------------------------------------------------------------------


def test_a_key_may_be_a_path_or_the_key_itself(tmp_path: Path, ssh_server: SshServer) -> None:
    text = ssh_server.client_key.read_text()
    for key in (str(ssh_server.client_key), text, text.strip()):
        assert probed(tmp_path, ssh_server.target(connection={"key_path": key}))


@pytest.mark.parametrize("form", ["pkcs8-pem", "openssh"])
def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, ssh_server: SshServer, form: str) -> None:
    key = tmp_path / "encrypted"
    key.write_bytes(ssh_server.client_key.read_bytes())
    key.chmod(0o600)
    how = {"key_path": str(key)}
    if form == "openssh":
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "a secret", "-f", str(key)], check=True, capture_output=True)
    else:
        plain = asyncssh.read_private_key(str(ssh_server.client_key))
        key.write_bytes(plain.export_private_key(form, "a secret"))
    assert probed(tmp_path, ssh_server.target(connection={**how, "passphrase": "a secret"}))
    for passphrase in ("wrong", None):
        with pytest.raises(NotConfigured, match="passphrase") as caught:
            probed(tmp_path, ssh_server.target(connection={**how, "passphrase": passphrase}))
        assert "wrong" not in caught.value.message


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"key_path": "/nonexistent/key"}, "can't be read: no such file"),
        ({"key_path": "/etc/passwd"}, "no private key"),
        ({"key_path": "-----BEGIN nonsense"}, "no private key"),
        ({"key_path": None}, "neither key_path nor agent"),
        ({"key_path": None, "agent": True}, "SSH_AUTH_SOCK"),
        ({"certificate_path": "/etc/passwd"}, "no OpenSSH certificate"),
        ({"known_hosts": "/nonexistent/known", "host_key": None}, "no known_hosts file"),
        ({"host_key": "ssh-ed25519 nonsense"}, "neither a SHA256 fingerprint nor a public key"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_configured_is_said(
    tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], words: str
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(NotConfigured, match=words) as caught:
        probed(tmp_path, ssh_server.target(connection=how))
    assert caught.value.hint


def test_a_key_that_the_server_does_not_know_is_refused(tmp_path: Path, ssh_servers: SshServers) -> None:
    server, stranger = ssh_servers.start(), ssh_servers.keygen("stranger")
    with pytest.raises(AuthRefused, match="'root'") as caught:
        probed(tmp_path, server.target(connection={"key_path": str(stranger)}))
    assert "authorized_keys" in str(caught.value.hint)


def test_a_user_certificate_lets_in(tmp_path: Path, ssh_servers: SshServers) -> None:
    authority, key = ssh_servers.keygen("user_authority"), ssh_servers.keygen("user")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n", "root", f"{key}.pub"]
    subprocess.run(sign, check=True, capture_output=True)
    server = ssh_servers.start(f"TrustedUserCAKeys {authority}.pub")
    how = {"key_path": str(key), "certificate_path": f"{key}-cert.pub"}
    assert probed(tmp_path, server.target(connection=how))
    with pytest.raises(AuthRefused):
        probed(tmp_path, server.target(connection={"key_path": str(key)}))


def test_the_agent_lets_in(tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = ssh_server.client_key.parent / f"agent-{os.getpid()}"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        until(socket.exists, "the agent listens")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", str(ssh_server.client_key)], check=True, capture_output=True)
        assert probed(tmp_path, ssh_server.target(connection={"key_path": None, "agent": True}))
    finally:
        agent.terminate()
        agent.wait()
