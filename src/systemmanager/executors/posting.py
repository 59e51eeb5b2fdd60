"""One bounded POST to an address of the gateway's own configuration: no redirects, no proxy, no cookies."""

from collections.abc import Mapping

import httpx

from systemmanager import __version__
from systemmanager.errors import OutputTooLarge
from systemmanager.executors.web import trusted


async def post(
    url: str, body: bytes, headers: Mapping[str, str], *, within: float, most: int
) -> tuple[int, str, bytes]:
    """Status, content type and content of the answer. Raises `httpx.HTTPError`, and `OutputTooLarge` beyond `most`
    bytes; `within` bounds each step in seconds, the caller bounds the whole."""
    sent = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"systemmanager/{__version__}",
        **headers,
    }
    async with (
        httpx.AsyncClient(verify=trusted(), trust_env=False, follow_redirects=False, timeout=within) as client,
        client.stream("POST", url, content=body, headers=sent) as response,
    ):
        content = b""
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > most:
                raise OutputTooLarge(f"answered more than {most} bytes")
        return response.status_code, response.headers.get("content-type", ""), content
