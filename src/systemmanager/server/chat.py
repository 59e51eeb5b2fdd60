"""A model behind an OpenAI-compatible API: one `POST /chat/completions` a question, and nothing but its text counts."""

import asyncio
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from systemmanager.diagnosis.advice import INSTRUCTIONS, NoAdvice
from systemmanager.errors import OutputTooLarge
from systemmanager.executors.posting import post
from systemmanager.freezing import Freezer

WITHIN = 15.0
"""Seconds for one exchange."""

MOST_BYTES = 64 * 1024
"""Of an answer."""

MOST_TOKENS = 700


@dataclass(frozen=True)
class Chat:
    """A model at an address. What an operator froze is not reached."""

    url: str
    model: str
    key: str | None = None
    freezer: Freezer = field(default_factory=Freezer)
    within: float = WITHIN

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def there(self) -> bool:
        return True

    async def ask(self, text: str) -> str | None:
        """Its answer to one question. Raises `NoAdvice`."""
        frozen = self.freezer.now()
        if frozen.all or frozen.egress:
            raise NoAdvice("an operator has frozen what the gateway reaches")
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
            "stream": False,
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            async with asyncio.timeout(self.within):
                status, kind, content = await post(
                    address, json.dumps(body).encode(), headers, within=self.within, most=MOST_BYTES
                )
        except TimeoutError:
            raise NoAdvice(f"it did not answer within {self.within:g} s") from None
        except OutputTooLarge:
            raise NoAdvice(f"it answered more than {MOST_BYTES} bytes") from None
        except httpx.HTTPError as error:
            raise NoAdvice(f"it can't be reached ({type(error).__name__})") from None
        if status != 200 or kind.partition(";")[0].strip().lower() != "application/json":
            raise NoAdvice(f"it answered with status {status}, not 200 with JSON")
        return said(content)


def said(content: bytes) -> str:
    """The text of an answer. Raises `NoAdvice`."""
    try:
        found = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise NoAdvice("its answer is not what this API answers") from None
    if not isinstance(found, str):
        raise NoAdvice("its answer is not what this API answers")
    return found
