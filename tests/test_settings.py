"""Settings: each variable, what is refused and how it is said, the state folder and the secret in it."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from systemmanager import settings
from systemmanager.errors import ConfigError
from systemmanager.journal import audit_log
from systemmanager.settings import Settings, prepare_state
from systemmanager.trustworthy import weakness

STRONG = "k9Qz-3Vd_1mYt7Rw5Lx2Hc8Bn4Jf6Gp0Sa"


def read(**variables: str) -> Settings:
    return settings.read({"HOME": "/home/me", **variables})


def refused(**variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**variables)
    return str(caught.value)


GIVEN: list[tuple[str, str, str, Any]] = [
    ("SYSTEMMANAGER_TARGETS_CONFIG", "/etc/targets.yaml", "targets_config", Path("/etc/targets.yaml")),
    ("SYSTEMMANAGER_POLICY_CONFIG", "/etc/policy.yaml", "policy_config", Path("/etc/policy.yaml")),
    ("SYSTEMMANAGER_AUDIT_LOG", "/var/log/a.jsonl", "audit_log", Path("/var/log/a.jsonl")),
    ("SYSTEMMANAGER_AUDIT_WITNESS", "/mnt/w.jsonl", "audit_witness", Path("/mnt/w.jsonl")),
    ("SYSTEMMANAGER_AUDIT_SEGMENT_BYTES", "8192", "audit_segment_bytes", 8192),
    ("SYSTEMMANAGER_AUDIT_SEGMENT_HOURS", "0.5", "audit_segment_hours", 0.5),
    ("SYSTEMMANAGER_AUDIT_CHECKPOINT_RECORDS", "10", "audit_checkpoint_records", 10),
    ("SYSTEMMANAGER_AUDIT_CHECKPOINT_SECONDS", "5", "audit_checkpoint_seconds", 5.0),
    ("SYSTEMMANAGER_STATE_DIR", "/srv/state", "state_dir", Path("/srv/state")),
    ("SYSTEMMANAGER_AUTH_MODE", "token", "auth_modes", ("token",)),
    ("SYSTEMMANAGER_AUTH_MODE", "token, token", "auth_modes", ("token",)),
    ("SYSTEMMANAGER_OIDC_ISSUER", "https://id.test/a/", "oidc_issuer", "https://id.test/a/"),
    ("SYSTEMMANAGER_OIDC_ISSUER", "http://[::1]:9/", "oidc_issuer", "http://[::1]:9/"),
    ("TSIDP_URL", "https://idp.tail.ts.net", "oidc_issuer", "https://idp.tail.ts.net"),
    ("SYSTEMMANAGER_OIDC_CLIENT_ID", "c", "oidc_client_id", "c"),
    ("TSIDP_CLIENT_ID", "c", "oidc_client_id", "c"),
    ("SYSTEMMANAGER_OIDC_SUBJECT_CLAIM", "username", "oidc_subject_claim", "username"),
    ("SYSTEMMANAGER_REQUIRE_AUTH", "True", "require_auth", True),
    ("SYSTEMMANAGER_BASE_URL", "http://g.ts.net:8080/", "base_url", "http://g.ts.net:8080"),
    ("SYSTEMMANAGER_ALLOWED_HOSTS", "a, b,", "allowed_hosts", ("a", "b")),
    ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
    ("MCP_HOST", "::1", "host", "::1"),
    ("SYSTEMMANAGER_AUTH_MODE", "tailscale,token", "auth_modes", ("tailscale", "token")),
    ("SYSTEMMANAGER_TAILSCALE_SOCKET", "/run/ts.sock", "tailscale_socket", Path("/run/ts.sock")),
    ("SYSTEMMANAGER_TAILSCALE_CAPABILITY", "a.test/cap/x", "tailscale_capability", "a.test/cap/x"),
    ("MCP_SOCKET", "/run/mcp.sock", "socket", Path("/run/mcp.sock")),
    ("MCP_PROXY_PROTOCOL", "true", "proxy_protocol", True),
    ("SYSTEMMANAGER_HARDENING", "system_calls, non_root", "hardening", ("system_calls", "non_root")),
    ("SYSTEMMANAGER_REQUIRE_HARDENING", "true", "require_hardening", True),
    ("MCP_PORT", "0", "port", 0),
    ("MCP_PORT", "", "port", 8080),
]


@pytest.mark.parametrize(("variable", "value", "field", "wanted"), GIVEN, ids=lambda value: str(value)[:30])
def test_each_variable_is_read(variable: str, value: str, field: str, wanted: Any) -> None:
    assert getattr(read(**{variable: value}), field) == wanted


def test_each_variable_has_a_row_in_this_table() -> None:
    secret = {"SYSTEMMANAGER_SHARED_SECRET", "SYSTEMMANAGER_SHARED_SECRET_PREVIOUS", "SYSTEMMANAGER_OIDC_CLIENT_SECRET"}
    rows = {variable for variable, *_ in GIVEN if not variable.startswith("TSIDP_")} | secret
    rows |= {
        "SYSTEMMANAGER_APPROVAL_WEBHOOK_URL",
        "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET",
    }  # tests/test_approvals_webhook.py
    rows |= {"SYSTEMMANAGER_AI_URL", "SYSTEMMANAGER_AI_MODEL", "SYSTEMMANAGER_AI_KEY"}  # tests/test_advising.py
    assert rows == {str(field.alias) for field in Settings.model_fields.values()}


OIDC = {
    "SYSTEMMANAGER_AUTH_MODE": "token,oidc",
    "SYSTEMMANAGER_BASE_URL": "https://gateway.test",
    "TSIDP_URL": "https://idp.test",
    "TSIDP_CLIENT_ID": "gateway",
    "TSIDP_CLIENT_SECRET": "s3cret",
}


def test_a_mode_with_all_its_settings_starts() -> None:
    given = read(**OIDC)
    assert given.auth_modes == ("token", "oidc") and given.oidc_client_secret is not None


LACKING = {
    "TSIDP_URL": "SYSTEMMANAGER_OIDC_ISSUER: is missing (TSIDP_URL)",
    "SYSTEMMANAGER_BASE_URL": "SYSTEMMANAGER_BASE_URL: is missing",
    "TSIDP_CLIENT_ID": "SYSTEMMANAGER_OIDC_CLIENT_ID: is missing",
    "TSIDP_CLIENT_SECRET": "SYSTEMMANAGER_OIDC_CLIENT_SECRET: is missing",
}


@pytest.mark.parametrize("variable", LACKING)
def test_a_mode_that_lacks_a_setting_does_not_start(variable: str) -> None:
    said = refused(**{name: value for name, value in OIDC.items() if name != variable})
    assert said.startswith(LACKING[variable]) and "s3cret" not in said


def test_two_names_of_one_setting_that_differ_are_refused() -> None:
    assert "TSIDP_URL: differs" in refused(**OIDC, SYSTEMMANAGER_OIDC_ISSUER="https://other.test")


def test_the_client_s_secret_comes_from_a_credential_too(tmp_path: Path) -> None:
    (tmp_path / "TSIDP_CLIENT_SECRET").write_text("from-a-file\n")
    given = read(**{**OIDC, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert given.oidc_client_secret is not None and given.oidc_client_secret.get_secret_value() == "from-a-file"


WRONG: dict[str, tuple[str, str, str]] = {
    "port of letters": ("MCP_PORT", "http", "MCP_PORT: "),
    "port too large": ("MCP_PORT", "70000", "MCP_PORT: "),
    "level": ("LOG_LEVEL", "LOUD", "LOG_LEVEL: "),
    "mode": ("SYSTEMMANAGER_AUTH_MODE", "none", "SYSTEMMANAGER_AUTH_MODE: "),
    "one mode of two": ("SYSTEMMANAGER_AUTH_MODE", "token,none", "SYSTEMMANAGER_AUTH_MODE: "),
    "no mode": ("SYSTEMMANAGER_AUTH_MODE", " , ", "SYSTEMMANAGER_AUTH_MODE: names no mode"),
    "issuer in the clear": ("SYSTEMMANAGER_OIDC_ISSUER", "http://idp.test", "SYSTEMMANAGER_OIDC_ISSUER: must be"),
    "issuer with a query": ("SYSTEMMANAGER_OIDC_ISSUER", "https://idp.test?x=1", "SYSTEMMANAGER_OIDC_ISSUER: "),
    "issuer with a password": ("TSIDP_URL", "https://a:b@idp.test", "SYSTEMMANAGER_OIDC_ISSUER: "),
    "issuer without a host": ("TSIDP_URL", "https://", "SYSTEMMANAGER_OIDC_ISSUER: "),
    "capability": ("SYSTEMMANAGER_TAILSCALE_CAPABILITY", "systemmanager", "SYSTEMMANAGER_TAILSCALE_CAPABILITY: "),
    "proxy protocol": ("MCP_PROXY_PROTOCOL", "sometimes", "MCP_PROXY_PROTOCOL: "),
    "subject claim": ("SYSTEMMANAGER_OIDC_SUBJECT_CLAIM", "a b", "SYSTEMMANAGER_OIDC_SUBJECT_CLAIM: "),
    "no authentication": ("SYSTEMMANAGER_REQUIRE_AUTH", "false", "SYSTEMMANAGER_REQUIRE_AUTH: must be true"),
    "0": ("SYSTEMMANAGER_REQUIRE_AUTH", "0", "SYSTEMMANAGER_REQUIRE_AUTH: must be true"),
    "base URL": ("SYSTEMMANAGER_BASE_URL", "gateway:8080", "SYSTEMMANAGER_BASE_URL: "),
    "typing error": (
        "SYSTEMMANAGER_TARGET_CONFIG", "/x",
        "SYSTEMMANAGER_TARGET_CONFIG: unknown setting; did you mean SYSTEMMANAGER_TARGETS_CONFIG?",
    ),
    "slip of the pen": ("MCP_HSOT", "::", "MCP_HSOT: unknown setting; did you mean MCP_HOST?"),
    "unknown": ("SYSTEMMANAGER_QQQQQQ", "x", "SYSTEMMANAGER_QQQQQQ: unknown setting"),
}  # fmt: skip


@pytest.mark.parametrize(("variable", "value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(variable: str, value: str, message: str) -> None:
    assert message in refused(**{variable: value})


def test_all_wrong_settings_come_at_once() -> None:
    said = refused(MCP_PORT="x", LOG_LEVEL="y", SYSTEMMANAGER_AUDIT_LOGS="z", SYSTEMMANAGER_SHARED_SECRET="short")
    for name in ("MCP_PORT", "LOG_LEVEL", "SYSTEMMANAGER_AUDIT_LOGS", "SYSTEMMANAGER_SHARED_SECRET"):
        assert f"{name}: " in said
    assert "'short'" not in said


WEAK = {
    "short": "k9Qz-3Vd_1mYt7Rw5Lx",
    "31 bytes": STRONG[:31],
    "one letter": "a" * 64,
    "few letters": "abcabcabc" * 8,
    "a word again and again": "password-1234567" * 4,
    "half twice": STRONG[:20] * 2,
    "counting": "0123456789abcdefghijklmnopqrstuvwxyz",
    "counting down": "zyxwvutsrqponmlkjihgfedcba9876543210",
}


@pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK)
def test_a_weak_secret_is_refused_and_not_repeated(secret: str) -> None:
    said = refused(SYSTEMMANAGER_SHARED_SECRET=secret)
    assert "SYSTEMMANAGER_SHARED_SECRET: " in said and "openssl rand" in said and secret not in said


def test_a_strong_secret_is_hidden() -> None:
    given = read(SYSTEMMANAGER_SHARED_SECRET=STRONG)
    assert given.shared_secret and given.shared_secret.get_secret_value() == STRONG
    assert STRONG not in repr(given)


def test_a_credential_comes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "SYSTEMMANAGER_SHARED_SECRET").write_text(STRONG[::-1] + "\n")
    given = read(CREDENTIALS_DIRECTORY=str(tmp_path), SYSTEMMANAGER_SHARED_SECRET=STRONG)
    assert given.shared_secret and given.shared_secret.get_secret_value() == STRONG[::-1]
    (tmp_path / "SYSTEMMANAGER_SHARED_SECRET").write_bytes(b"\xff" * 40)
    assert "can't be read as text" in refused(CREDENTIALS_DIRECTORY=str(tmp_path))


STATES: list[tuple[dict[str, str], str]] = [
    ({"SYSTEMMANAGER_STATE_DIR": "/a", "STATE_DIRECTORY": "/b", "XDG_STATE_HOME": "/c"}, "/a"),
    ({"STATE_DIRECTORY": "/b:/b2", "XDG_STATE_HOME": "/c"}, "/b"),
    ({"XDG_STATE_HOME": "/c"}, "/c/systemmanager"),
    ({}, "/home/me/.local/state/systemmanager"),
]


@pytest.mark.parametrize(("variables", "folder"), STATES, ids=lambda value: str(value)[:30])
def test_the_state_folder(variables: dict[str, str], folder: str) -> None:
    assert read(**variables).state_dir == Path(folder)


# --- The state folder and its secret ----------------------------------------------------------------------------------


def state(folder: Path) -> settings.State:
    return prepare_state(read(SYSTEMMANAGER_STATE_DIR=str(folder)))


def test_the_state_folder_is_made_private(tmp_path: Path) -> None:
    made = state(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.runtime.stat().st_mode) == 0o700
    assert made.audit_log == tmp_path / "a" / "b" / "audit.jsonl"


def test_a_folder_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755, "a folder of others must not be closed to them"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="writable by nobody else"):
        state(tmp_path)


def test_a_folder_that_can_t_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be made"):
        state(tmp_path / "file" / "below")


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    os.umask(os.umask(0))
    made, given = state(tmp_path / "s"), read()
    (secret,) = made.secrets(given)
    assert weakness(secret) is None and made.secrets(given) == (secret,)
    assert stat.S_IMODE((made.folder / "shared_secret").stat().st_mode) == 0o600
    assert sorted(path.name for path in made.folder.iterdir()) == ["run", "shared_secret"]
    assert made.secrets(read(SYSTEMMANAGER_SHARED_SECRET=STRONG)) == (STRONG,)


def _open_to_all(path: Path) -> None:
    path.write_text(STRONG)
    path.chmod(0o644)


BAD_SECRETS: dict[str, tuple[Any, str]] = {
    "weak": (lambda path: (path.write_text("short\n"), path.chmod(0o600)), "shorter than 32 bytes"),
    "empty": (lambda path: path.touch(0o600), "shorter than 32 bytes"),
    "open to others": (_open_to_all, "is open to other users"),
    "binary": (lambda path: (path.write_bytes(b"\xff" * 64), path.chmod(0o600)), "is no text"),
    "link": (lambda path: path.symlink_to("/etc/hostname"), "can't be used"),
    "folder": (lambda path: path.mkdir(), "can't be used"),
}


@pytest.mark.parametrize(("make", "why"), BAD_SECRETS.values(), ids=BAD_SECRETS)
def test_a_secret_that_is_no_good_is_refused_and_not_repeated(tmp_path: Path, make: Any, why: str) -> None:
    made = state(tmp_path / "s")
    make(made.folder / "shared_secret")
    with pytest.raises(ConfigError) as caught:
        made.secrets(read())
    assert why in str(caught.value) and STRONG not in str(caught.value)


RACE = """
import sys
from systemmanager import settings
given = settings.read({"SYSTEMMANAGER_STATE_DIR": sys.argv[1]})
print(*settings.prepare_state(given).secrets(given))
"""


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "s")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    secrets = [process.communicate(timeout=60)[0].strip() for process in started]
    assert len(set(secrets)) == 1 and secrets[0]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["run", "shared_secret"]


def test_a_name_like_no_other_is_unknown_and_no_more() -> None:
    assert refused(SYSTEMMANAGER_FOO="x") == "SYSTEMMANAGER_FOO: unknown setting"


@pytest.mark.parametrize("name", ["MCP_TIMEOUT", "MCP_TOOL_TIMEOUT", "MCP_SERVER_NAME", "MCP_SESSION_ID"])
def test_variables_of_mcp_clients_are_not_the_gateway_s(name: str) -> None:
    assert settings.read({"HOME": "/root", name: "x"}).port == 8080


@pytest.mark.parametrize("path", ["/proc/audit", "/dev/null/audit", "/proc/a/b/audit"])
def test_an_audit_log_that_can_never_be_made_stops_the_start(tmp_path: Path, path: str) -> None:
    given = settings.read({"SYSTEMMANAGER_STATE_DIR": str(tmp_path), "SYSTEMMANAGER_AUDIT_LOG": path})
    with pytest.raises(ConfigError, match=f"{path}: the audit log can't be made there: "):
        audit_log(given, settings.prepare_state(given))
