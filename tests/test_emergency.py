"""A wrong setting stops only what needs it: the gateway does not start, but an operator can freeze, revoke and look."""

from pathlib import Path

import pytest

from systemmanager import settings
from systemmanager.cli import KEYS, STATE
from systemmanager.errors import ConfigError
from tests.serving import SECRET
from tests.test_cli import systemmanager

HOME = {"HOME": "/home/me"}

BROKEN = {
    "SYSTEMMANAGER_APPROVAL_WEBHOOK_URL": "https://hook.test/",
    "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET": "weak",
    "SYSTEMMANAGER_TAILSCALE_CAPABILITY": "/",
    "SYSTEMMANAGER_AUTH_MODE": "oidc,none",
    "SYSTEMMANAGER_OIDC_ISSUER": "http://idp.test",
    "SYSTEMMANAGER_REQUIRE_AUTH": "false",
    "SYSTEMMANAGER_AUDIT_SEGMENT_BYTES": "many",
    "SYSTEMMANAGER_QQQQQQ": "1",
    "SYSTEMMANAGER_SHARED_SECRET": "weak",
    "TSIDP_CLIENT_ID": "one",
    "SYSTEMMANAGER_OIDC_CLIENT_ID": "another",
    "MCP_PORT": "http",
}
"""Everything that no command of an emergency needs, and all of it wrong."""

COMMANDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "freeze": (("freeze", "--writes"), '"writes": true', ""),
    "thaw": (("thaw",), '"writes": false', ""),
    "token list": (("token", "list"), "", ""),
    "token revoke": (("token", "revoke", "00000000000000aa"), "is revoked", ""),
    "approvals deny": (("approvals", "deny", "0" * 16), "", "no gateway runs"),
    "approvals list": (("approvals", "list"), "", "no gateway runs"),
    "explain": (("explain", "get_system_status"), "", ""),
    "audit verify": (("audit", "verify"), "whole", ""),
    "audit tail": (("audit", "tail"), "", ""),
    "audit key": (("audit", "key"), "PUBLIC KEY", ""),
    "check": (("check",), "local", ""),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_an_operator_needs_in_an_emergency_runs_with_every_other_setting_wrong(tmp_path: Path, name: str) -> None:
    words, says, fails = COMMANDS[name]
    if name.startswith("audit"):
        systemmanager(tmp_path, "freeze")
    done = systemmanager(tmp_path, *words, settings=BROKEN, check=1 if fails else 0)
    assert says in done.stdout and fails in done.stderr
    for variable in BROKEN.keys() - {"SYSTEMMANAGER_APPROVAL_WEBHOOK_URL", "SYSTEMMANAGER_OIDC_CLIENT_ID"}:
        assert variable in done.stderr, "what is wrong is told"
    assert "weak" not in done.stderr


@pytest.mark.parametrize("words", [("serve",), ("stdio",), ("call", "health_check")])
def test_the_gateway_itself_does_not_start(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = systemmanager(tmp_path, *words, settings=BROKEN, check=1)
    assert "WEBHOOK_SECRET: is shorter" in done.stderr and not (tmp_path / "state").exists()


NEEDED: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "the state folder, by a slip of the pen": (STATE, {"SYSTEMMANAGER_STATE_DIRS": "/srv"}),
    "the audit log, by a slip of the pen": (STATE, {"SYSTEMMANAGER_AUDITLOG": "/srv/a"}),
    "the secret of the tokens": (KEYS, {"SYSTEMMANAGER_SHARED_SECRET": "weak"}),
    "the address that tokens are for": (KEYS, {"SYSTEMMANAGER_BASE_URL": "gateway"}),
    "the modes": ((*KEYS, "auth_modes"), {"SYSTEMMANAGER_AUTH_MODE": "none"}),
    "hardening": (("require_hardening",), {"SYSTEMMANAGER_REQUIRE_HARDENING": "perhaps"}),
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_command_needs_stops_it(name: str) -> None:
    needed, given = NEEDED[name]
    with pytest.raises(ConfigError) as caught:
        settings.some(*needed, environment={**HOME, **given, "MCP_PORT": "http"})
    assert [problem.where for problem in caught.value.problems] == [*given]


def test_a_credential_that_can_not_be_read_stops_only_what_needs_it(tmp_path: Path) -> None:
    (tmp_path / "SYSTEMMANAGER_SHARED_SECRET").write_bytes(b"\xff" * 40)
    given = {**HOME, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    _, wrong = settings.some(*STATE, environment=given)
    assert ["can't be read" in str(problem) for problem in wrong] == [True]
    with pytest.raises(ConfigError):
        settings.some(*KEYS, environment=given)


def test_what_is_right_is_kept_beside_what_is_wrong() -> None:
    given = {**HOME, "SYSTEMMANAGER_SHARED_SECRET": SECRET, "SYSTEMMANAGER_AUDIT_LOG": "/a", "MCP_PORT": "http"}
    found, wrong = settings.some(*KEYS, environment=given)
    assert found.audit_log == Path("/a") and found.shared_secret and found.shared_secret.get_secret_value() == SECRET
    assert [problem.where for problem in wrong] == ["MCP_PORT"] and found.port == 8080
