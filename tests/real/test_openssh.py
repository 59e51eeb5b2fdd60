"""The fixture itself: what other tests stand on."""

import asyncio
import socket

import asyncssh
import pytest

from tests.real.openssh import SshServer, SshServers, blackhole
from tests.support import run


async def whoami(server: SshServer) -> str:
    known = asyncssh.import_known_hosts(server.known_hosts_line)
    connection = await asyncssh.connect(
        server.host,
        server.port,
        username=server.username,
        client_keys=[str(server.client_key)],
        known_hosts=known,
        config=None,
        agent_path=None,
    )
    try:
        return str((await connection.run("id -un; echo $0", check=True)).stdout)
    finally:
        connection.close()
        await connection.wait_closed()


def test_a_server_accepts_its_client_key(ssh_server: SshServer) -> None:
    assert run(whoami(ssh_server)).startswith("root\n")
    assert ssh_server.fingerprint.startswith("SHA256:")


def test_servers_have_their_own_keys_accounts_and_ends(ssh_servers: SshServers) -> None:
    first, second = ssh_servers.start(), ssh_servers.start(username=ssh_servers.account("dash"))
    assert first.fingerprint != second.fingerprint
    assert run(whoami(second)).split() == [second.username, "dash"]
    first.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((first.host, first.port), timeout=5)
    old = first.fingerprint
    first.new_host_key()
    first.run()
    assert first.fingerprint != old and run(whoami(first)).startswith("root\n")


def test_a_blackhole_does_not_answer() -> None:
    async def knock(host: str, port: int) -> None:
        async with asyncio.timeout(0.3):
            await asyncio.open_connection(host, port)

    with blackhole() as address, pytest.raises(TimeoutError):
        run(knock(*address))
