"""MCP on standard input and output, with an end that does not depend on the client."""

import asyncio
import os
import signal
import socket
import threading

from fastmcp import FastMCP

from systemmanager.server.http import settle

CHUNK = 64 * 1024


async def serve(server: FastMCP) -> None:
    """Serve until standard input ends, or SIGTERM or SIGINT: then every teardown runs as if the input had ended."""
    loop, end = asyncio.get_running_loop(), _closable_input()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    settle()
    await server.run_stdio_async(show_banner=False)


def _closable_input() -> "_End":
    """Put a socket in the place of descriptor 0 and pump the real input into it.

    A thread that reads the real input can't be interrupted; one that reads a socket of ours ends when we shut it down.
    """
    real = os.dup(0)
    inner, outer = socket.socketpair()
    os.dup2(inner.fileno(), 0)
    inner.close()
    end = _End(outer)
    threading.Thread(target=_pump, args=(real, outer, end), daemon=True).start()
    return end


class _End:
    """Ends the input, from any thread, as often as one likes."""

    def __init__(self, outer: socket.socket) -> None:
        self._outer = outer

    def __call__(self) -> None:
        try:
            self._outer.shutdown(socket.SHUT_WR)
        except OSError:
            return


def _pump(real: int, outer: socket.socket, end: _End) -> None:
    try:
        while data := os.read(real, CHUNK):
            outer.sendall(data)
    except OSError:
        pass
    end()
