"""The `systemmanager serve` and `stdio` processes: start, stop, reload."""

import signal
import time
from pathlib import Path

import httpx

from tests.serving import ERAS, Era, Served, serving
from tests.support import run


async def status_is_read(url: str, era: Era) -> bool:
    async with Served(url).client(era) as client:
        answer = await client.call_tool("get_system_status")
        return answer.structured_content is not None and answer.structured_content["ok"] is True


def test_serve_answers_in_both_eras_and_stops_within_two_seconds(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        assert all(run(status_is_read(running.url, era)) for era in ERAS)
        assert httpx.get(running.url.replace("/mcp", "/healthz")).json() == {"status": "ok"}
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 2
