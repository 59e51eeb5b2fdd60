"""The start: what the settings do not switch on is not even imported."""

import json
import subprocess
import sys
from pathlib import Path

from tests.serving import SECRET, environment

START = """
import asyncio, json, sys
from systemmanager import cli, commands, settings
from systemmanager.server import app, http
from systemmanager.server.auth import modes

async def start():
    given = settings.read()
    async with app.running(given) as running, modes.authentication(given, running.state, {}) as authentication:
        running.server(app.caller_of(running.gateway, authentication))
        print(json.dumps(sorted(sys.modules)))

asyncio.run(start())
"""

COSTLY = {
    "httpx",
    "systemmanager.approvals.webhook",
    "systemmanager.server.auth.issuer",
    "systemmanager.server.auth.oidc",
    "systemmanager.server.auth.tailnet",
}


def imported(folder: Path, **settings: str) -> set[str]:
    """What of the costly modules a start has imported."""
    given = environment(folder, SYSTEMMANAGER_SHARED_SECRET=SECRET, **settings)
    done = subprocess.run([sys.executable, "-c", START], env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return COSTLY & set(json.loads(done.stdout.splitlines()[-1]))


def test_with_tokens_alone_no_http_client_is_imported(tmp_path: Path) -> None:
    assert imported(tmp_path) == set()


def test_with_everything_switched_on_all_of_it_is(tmp_path: Path) -> None:
    everything = {
        "SYSTEMMANAGER_AUTH_MODE": "token,oidc,tailscale",
        "SYSTEMMANAGER_OIDC_ISSUER": "https://idp.test",
        "SYSTEMMANAGER_BASE_URL": "https://gateway.test",
        "SYSTEMMANAGER_APPROVAL_WEBHOOK_URL": "https://hook.test",
        "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET": SECRET[::-1],
    }
    assert imported(tmp_path, **everything) == COSTLY
