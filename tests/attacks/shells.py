"""The values of the group `shell`, sent as arguments through the login shells that a target may have."""

from collections.abc import Mapping
from pathlib import Path

from systemmanager.errors import TargetError
from tests.attacks.catalogue import Case, cases, filled
from tests.real.openssh import SshServers
from tests.real.ssh_ports import ssh_executor
from tests.support import run

SHELLS = ("sh", "bash", "dash", "fish", "csh")
PRINTER = ("/usr/bin/printf", "%s\\0", "begin")

Arrived = Mapping[str, str | None]
"""By shell: None when the value arrived as it was, else what came instead."""


def sent_through_every_shell(servers: SshServers, folder: Path) -> dict[str, dict[str, str | None]]:
    """By case and shell what became of the value. Nothing may appear in a folder where everybody may write."""
    canary = servers.client_key.parent / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    accounts = {shell: servers.account(shell) for shell in SHELLS}
    server = servers.start()
    names = {"canary": str(canary)}
    values = {case.id: (case, str(filled(case.given["arguments"]["service_name"], names))) for case in cases("shell")}

    async def work() -> dict[str, dict[str, str | None]]:
        found: dict[str, dict[str, str | None]] = {id: {} for id in values}
        async with ssh_executor(folder) as opened:
            for shell, account in accounts.items():
                port = await opened(server.target(shell, connection={"username": account}), "Shell")
                for id, (case, value) in values.items():
                    found[id][shell] = await _sent(port, case, value, canary)
        return found

    return run(work())


async def _sent(port: object, case: Case, value: str, canary: Path) -> str | None:
    try:
        output = await port.run(*PRINTER, value, "end")  # type: ignore[attr-defined]
    except TargetError as error:
        came = None if error.code == case.given.get("argv") else f"{error.code}: {error.message}"
    else:
        came = None if output.stdout == f"begin\0{value}\0end\0" and not output.stderr else output.stdout[:300]
    return _appeared(canary) or came


def _appeared(canary: Path) -> str | None:
    names = [path.name for path in canary.iterdir()]
    for name in names:
        (canary / name).unlink()
    return f"{names} appeared" if names else None
