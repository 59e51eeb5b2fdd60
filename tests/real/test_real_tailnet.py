"""A tailnet of three nodes on this machine: headscale and tailscaled, in user space, from the Go module proxy.

They are built once, by SYSTEMMANAGER_TEST_TAILNET=build (some minutes), and kept in the cache.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from tests.conftest import need
from tests.real.openssh import until
from tests.support import tcp_server

HEADSCALE, TAILSCALE = "v0.27.1", "v1.92.0"
PROGRAMS = ("headscale", "tailscaled", "tailscale")
LOOPBACK = "127.0.0.1"


def _programs() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "systemmanager-tailnet")
    return cache / f"headscale-{HEADSCALE}-tailscale-{TAILSCALE}"


def _built() -> str | None:
    """Why there are no programs, or None."""
    folder = _programs()
    if all((folder / name).exists() for name in PROGRAMS):
        return None
    if not shutil.which("go"):
        return "there is no go to build headscale and tailscaled with"
    if BUILD != "build":
        return "headscale and tailscaled are not built; SYSTEMMANAGER_TEST_TAILNET=build builds them"
    folder.mkdir(parents=True, exist_ok=True)
    for module, version, packages in (
        ("github.com/juanfont/headscale", HEADSCALE, ("headscale",)),
        ("tailscale.com", TAILSCALE, ("tailscaled", "tailscale")),
    ):
        with TemporaryDirectory() as work:
            Path(work, "go.mod").write_text(f"module pinned\ngo 1.24\nrequire {module} {version}\n")
            subprocess.run(
                ["go", "build", "-mod=mod", "-o", str(folder) + "/", *(f"{module}/cmd/{name}" for name in packages)],
                cwd=work,
                env={**os.environ, "CGO_ENABLED": "0"},
                check=True,
            )
    return None


BUILD = os.environ.get("SYSTEMMANAGER_TEST_TAILNET", "")


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


class Tailnet:
    """headscale, and what a node of it does."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack, self.bin = folder, stack, _programs()
        self.ports: dict[str, int] = {}
        self.url = f"http://{LOOPBACK}:{free_port()}"
        settings = {
            "server_url": self.url, "listen_addr": self.url.removeprefix("http://"), "metrics_listen_addr": "",
            "grpc_listen_addr": f"{LOOPBACK}:{free_port()}", "noise": {"private_key_path": str(folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"}, "disable_check_updates": True,
            "database": {"type": "sqlite", "sqlite": {"path": str(folder / "db.sqlite")}},
            "derp": {
                "server": {
                    "enabled": True, "region_id": 999, "region_code": "test", "region_name": "test", "ipv4": LOOPBACK,
                    "stun_listen_addr": f"{LOOPBACK}:{free_port()}", "private_key_path": str(folder / "derp.key"),
                },
                "urls": [], "paths": [], "auto_update_enabled": False,
            },
            "dns": {
                "magic_dns": True, "base_domain": "tail.test", "override_local_dns": False,
                "nameservers": {"global": []},
            },
            "policy": {"mode": "file", "path": ""}, "unix_socket": str(folder / "headscale.sock"),
        }  # fmt: skip
        (folder / "config.yaml").write_text(json.dumps(settings))
        self.start("headscale", "-c", str(folder / "config.yaml"), "serve")
        until((folder / "headscale.sock").exists, "headscale listens", 30)

    def start(self, name: str, *arguments: str, **more: str) -> None:
        """A process that ends with the tailnet."""
        program = str(self.bin / name) if name in PROGRAMS else name
        with (self.folder / f"log-{len(list(self.folder.iterdir()))}").open("wb") as log:
            process = subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **more}
            )
        self.stack.callback(process.wait, 20)
        self.stack.callback(process.send_signal, signal.SIGTERM)

    def done(self, name: str, *arguments: str) -> str:
        command = [str(self.bin / name), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, (command, ended.stderr)
        return ended.stdout

    def headscale(self, *arguments: str) -> Any:
        return json.loads(self.done("headscale", "-c", str(self.folder / "config.yaml"), "-o", "json", *arguments))

    def on(self, node: str, *arguments: str) -> str:
        return self.done("tailscale", f"--socket={self.folder}/{node}.sock", *arguments)

    def join(self, node: str, person: str) -> int:
        """A new node of a person's; the port of its SOCKS server."""
        user = self.headscale("users", "create", person.partition("@")[0], "--email", person)["id"]
        key = self.headscale("preauthkeys", "create", "--user", str(user))["key"]
        port, own = free_port(), self.folder / node
        self.start(
            "tailscaled", "--tun=userspace-networking", "--state=mem:", f"--socket={own}.sock", f"--statedir={own}",
            f"--socks5-server={LOOPBACK}:{port}", "--port=0", TS_DEBUG_USE_DERP_HTTP="1", TS_NO_LOGS_NO_SUPPORT="true",
        )  # fmt: skip
        until(Path(f"{own}.sock").exists, "tailscaled listens", 30)
        self.on(node, "up", f"--login-server={self.url}", f"--authkey={key}", f"--hostname={node}")
        return port


@pytest.fixture(scope="module")
def tailnet() -> Iterator[Tailnet]:
    """Ann's and Eve's nodes, and the gateway on a third one."""
    need("tailnet", _built())
    with TemporaryDirectory(prefix="sm-tn-") as folder, ExitStack() as stack:
        net = Tailnet(Path(folder), stack)
        ports = net.ports = {name: net.join(name, f"{name}@example.com") for name in ("ann", "eve", "gateway")}
        ports["direct"] = free_port()
        (net.folder / "policy.yaml").write_text(
            json.dumps({"version": "1.0", "grants": [{"subjects": ["ann@example.com"], "scopes": ["readonly"]}]})
        )
        net.start(
            sys.executable, "-m", "systemmanager", "serve",
            MCP_PORT=str(ports["direct"]), MCP_PROXY_PROTOCOL="true", SYSTEMMANAGER_AUTH_MODE="tailscale",
            SYSTEMMANAGER_TAILSCALE_SOCKET=f"{folder}/gateway.sock", SYSTEMMANAGER_STATE_DIR=f"{folder}/state",
            SYSTEMMANAGER_POLICY_CONFIG=f"{folder}/policy.yaml",
        )  # fmt: skip
        net.on(
            "gateway",
            "serve",
            "--bg",
            "--yes",
            "--tcp=8080",
            "--proxy-protocol=2",
            f"tcp://{LOOPBACK}:{ports['direct']}",
        )
        until(lambda: _listens(ports["direct"]), "the gateway listens", 30)
        yield net


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


ADDRESS = bytes([100, 64, 0, 3])
"""The third node's."""


def through(socks: int) -> Any:
    """A port of this machine's whose connections go through a node's SOCKS server (RFC 1928) to the gateway's node."""

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The way to the other node, once there is one."""
        while True:
            far_reader, far = await asyncio.open_connection(LOOPBACK, socks)
            with suppress(asyncio.IncompleteReadError):
                far.write(b"\x05\x01\x00")
                await far_reader.readexactly(2)
                far.write(b"\x05\x01\x00\x01" + ADDRESS + (8080).to_bytes(2, "big"))
                if (await far_reader.readexactly(10))[1] == 0:
                    return far_reader, far
            far.transport.abort()
            await asyncio.sleep(0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far = await connected()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        try:
            with suppress(asyncio.CancelledError):  # the server ends, and its connections with it
                await asyncio.gather(pump(reader, far), pump(far_reader, writer))
        finally:
            far.transport.abort()

    return tcp_server(serve)


async def calls(socks: int, tool: str) -> Any:
    async with through(socks) as port, Client(StreamableHttpTransport(f"http://{LOOPBACK}:{port}/mcp")) as client:
        return (await client.call_tool(tool, {}, raise_on_error=False)).structured_content


def asked(socks: int, tool: str) -> Any:
    return asyncio.run(asyncio.wait_for(calls(socks, tool), 60))


def test_a_client_on_another_node_is_answered_as_the_person_that_whois_names(tailnet: Tailnet) -> None:
    assert asked(tailnet.ports["ann"], "get_system_status")["ok"]
    log = (tailnet.folder / "state/audit.jsonl").read_text().splitlines()
    assert {"ann@example.com"} == {
        one["subject"] for one in map(json.loads, log) if one.get("tool") == "get_system_status"
    }


def test_a_person_without_a_grant_gets_nothing(tailnet: Tailnet) -> None:
    answer = asked(tailnet.ports["eve"], "get_system_status")
    assert not answer["ok"] and [one["error"]["code"] for one in answer["results"]] == ["target_not_granted"], answer


def test_who_does_not_come_by_the_tailnet_gets_nothing(tailnet: Tailnet) -> None:
    with closing(socket.create_connection((LOOPBACK, tailnet.ports["direct"]), 10)) as stranger:
        stranger.sendall(f"POST /mcp HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Length: 0\r\n\r\n".encode())
        stranger.settimeout(20)
        answer = b""
        while data := stranger.recv(4096):
            answer += data
    assert b" 200 " not in answer and b"result" not in answer
