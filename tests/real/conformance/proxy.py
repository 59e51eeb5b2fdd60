"""A loopback proxy that adds a bearer token: the conformance suites have no option for one.

It changes nothing else, so that Host and Origin arrive as the suite wrote them. One request per connection.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support import tcp_server

CHUNK = 65_536
DROPPED = (b"connection:", b"keep-alive:")


@asynccontextmanager
async def bearing(url: str, token: str) -> AsyncIterator[str]:
    """Put a proxy before an MCP endpoint; gives the address to use instead."""
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            answers, upstream = await asyncio.open_connection(host, int(port))
            upstream.write(_with_token(head, token))
            pumps = asyncio.create_task(_pump(reader, upstream)), asyncio.create_task(_pump(answers, writer))
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            if upstream is not None:
                upstream.transport.abort()

    async with tcp_server(serve) as own:
        yield f"http://127.0.0.1:{own}/mcp"


def _with_token(head: bytes, token: str) -> bytes:
    first, *fields = head.rstrip(b"\r\n").split(b"\r\n")
    kept = [field for field in fields if not field.lower().startswith(DROPPED)]
    added = [b"Authorization: Bearer " + token.encode(), b"Connection: close"]
    return b"\r\n".join([first, *kept, *added]) + b"\r\n\r\n"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
