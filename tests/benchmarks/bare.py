"""What a call is compared with: a fastmcp server with one trivial tool, under the same uvicorn and event loop."""

import asyncio
import gc
import os
import sys

import systemmanager.cli  # noqa: F401  sets fastmcp's environment

# isort: split
import uvicorn
import uvloop
from fastmcp import FastMCP

server: FastMCP = FastMCP("bare")


@server.tool
def health_check() -> dict[str, str]:
    """Say that all is well."""
    return {"status": "ok"}


async def main(port: int) -> None:
    config = uvicorn.Config(
        server.http_app(path="/mcp"), host="127.0.0.1", port=port, lifespan="on", access_log=False, log_level="error"
    )
    serving = asyncio.create_task(uvicorn.Server(config).serve())
    gc.collect()
    gc.freeze()
    await serving


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    uvloop.run(main(int(sys.argv[1])))
