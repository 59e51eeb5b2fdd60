"""The approval webhook: what is asked, how it is signed, and which answers count. Everything else is no answer.

A request is POSTed as JSON. `X-SystemManager-Signature` is `v1=` and the hexadecimal HMAC-SHA256 (RFC 2104), under the
shared secret, of the timestamp in `X-SystemManager-Timestamp` (seconds since 1970), a dot, and the body. An answer is
200 with the JSON `{"approved": true|false, "digest": "<as asked>", "approver": "<who>"}`, or 202 and later the same
with `"id"` as a POST to `/approvals/<id>` of the gateway, signed in the same way.
"""

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from systemmanager.approvals.answers import MOST_BYTES, Answered, NoAnswer, plain, read
from systemmanager.approvals.store import Asked
from systemmanager.errors import OutputTooLarge
from systemmanager.executors.posting import post

TIMESTAMP = "X-SystemManager-Timestamp"
SIGNATURE = "X-SystemManager-Signature"

WINDOW = 300
"""Seconds that the time of a signed answer may be off."""

WITHIN = 10.0
"""Seconds for the whole exchange; a call waits that long for an answer at once."""


@dataclass(frozen=True)
class Webhook:
    """A place that is asked, and the secret that both sides sign with. `callback` is the gateway's own address."""

    url: str
    secret: str
    callback: str | None = None
    clock: Callable[[], float] = time.time
    within: float = WITHIN

    async def tell(self, asked: Asked) -> Answered | None:
        """Ask there. An answer, or None when one was promised for later (202). Raises `NoAnswer`."""
        question = {**plain(asked), **({"callback": f"{self.callback}/approvals/{asked.id}"} if self.callback else {})}
        body = json.dumps(question).encode()
        try:
            async with asyncio.timeout(self.within):
                status, kind, content = await self._post(body)
        except TimeoutError:
            raise NoAnswer(f"did not answer within {self.within:g} s") from None
        except httpx.HTTPError as error:
            raise NoAnswer(f"can't be reached: {type(error).__name__}") from None
        if status == 202:
            return None
        if status != 200 or kind.partition(";")[0].strip().lower() != "application/json":
            raise NoAnswer(f"answered {status} {kind[:60]!r}, not 200 with JSON")
        return read(content)

    async def _post(self, body: bytes) -> tuple[int, str, bytes]:
        try:
            return await post(self.url, body, self.signed(body), within=self.within, most=MOST_BYTES)
        except OutputTooLarge as error:
            raise NoAnswer(error.message) from None

    def signed(self, body: bytes) -> dict[str, str]:
        """The headers that go with a body."""
        timestamp = str(int(self.clock()))
        return {TIMESTAMP: timestamp, SIGNATURE: f"v1={self._signature(timestamp, body)}"}

    def _signature(self, timestamp: str, body: bytes) -> str:
        return hmac.new(self.secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()

    def verify(self, headers: Mapping[str, str], body: bytes) -> None:
        """Raises `NoAnswer` unless the body bears our signature of the last minutes. `headers` have small names."""
        timestamp, signature = headers.get(TIMESTAMP.lower(), ""), headers.get(SIGNATURE.lower(), "")
        if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(int(timestamp) - self.clock()) > WINDOW:
            raise NoAnswer("the timestamp is missing or not of the last minutes")
        wanted = f"v1={self._signature(timestamp, body)}"
        if not hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "replace")):
            raise NoAnswer("the signature is missing or wrong")
