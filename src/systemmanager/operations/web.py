"""One HTTP request from a target."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError

from systemmanager.operation import Risk, demand, operation
from systemmanager.params import Hostname, Plain
from systemmanager.plan import Change, Plan
from systemmanager.ports import ForeignText, FreeText, HttpAnswer, Network, Result

PREVIEW = 2048
"""Bytes of a body that an answer shows."""

_TELLING = frozenset(
    {"age", "allow", "cache-control", "connection", "content-encoding", "content-length", "content-security-policy"}
    | {"content-type", "date", "etag", "expires", "last-modified", "location", "retry-after", "server", "via", "vary"}
    | {"strict-transport-security", "www-authenticate", "x-cache", "x-frame-options", "x-powered-by", "x-request-id"}
)

_hostname = TypeAdapter(Hostname)


def _web_url(value: str) -> str:
    """So narrow that there is one way to read it: the host that policy judges is the host that is asked."""
    match = re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?", value, re.ASCII)
    if match is None or re.search(r'[\\#<>"^`{|}]', match[3] or ""):
        raise ValueError("must look like https://host[:port]/path?query, in ASCII, without user name or fragment")
    if match[2] and not 0 < int(match[2][1:]) < 65536:
        raise ValueError("has no port from 1 to 65535")
    try:
        _hostname.validate_python(match[1])
    except ValidationError:
        raise ValueError("names no valid host") from None
    return value


WebUrl = Annotated[
    str,
    StringConstraints(min_length=8, max_length=2048),
    Plain,
    AfterValidator(_web_url),
    Field(description="http:// or https://"),
]


class Timing(Result):
    connect: float = Field(description="Milliseconds; with name resolution.")
    tls: float | None = None
    first_byte: float
    total: float


class HttpTest(Result):
    url: str
    method: str
    status: int
    version: str
    location: ForeignText | None = Field(default=None, description="Where a redirect points; it is not followed.")
    headers: dict[str, ForeignText]
    size: int = Field(description="Bytes of the body that were read.")
    body: FreeText | None = Field(default=None, description="Its beginning.")
    truncated: bool | None = Field(default=None, description="The body went on beyond what was read.")
    note: str | None = Field(default=None, description="Why there is no body, or not all of it.")
    ms: Timing
    tls: dict[str, str] | None = None


LOOK = demand("network:diag", "network:read", Risk.HIGH, approval=True)
"""What asking for a page demands. A POST may change something at the other end."""


async def plan_request(network: Network, url: WebUrl, method: str = "GET", timeout: float = 10) -> Plan:
    """What `http_request_test` would send; nobody is asked."""
    return Plan(
        changes=[Change(what=f"{method} {url}", after="is sent once from the target, without a body")],
        preconditions={},
        no_inverse="What a server does on a request can't be taken back.",
    )


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.HIGH,
    approval=True,
    changes=True,
    timeout=45,
    by="method",
    cases=dict.fromkeys(("GET", "HEAD", "OPTIONS"), LOOK),
    roles={"url": "url"},
    plan=plan_request,
    idempotent=False,
    open_world=True,
)
async def http_request_test(
    network: Network,
    url: WebUrl,
    method: Literal["GET", "HEAD", "OPTIONS", "POST"] = "GET",
    timeout: Annotated[float, Field(gt=0, le=30, description="Seconds.")] = 10,
) -> HttpTest:
    """One HTTP request from the target: status, timing, headers, the body's beginning. No body is sent, no redirect
    followed."""
    answer = await network.request(method, url, timeout)
    body = _preview(answer)
    notes = (
        "The body is not text." if answer.body and body is None else None,
        f"It was not all there after {timeout:g} s." if answer.late else None,
    )
    return HttpTest(
        url=url,
        method=method,
        status=answer.status,
        version=answer.version,
        location=_location(answer),
        headers={name: value[:500] for name, value in answer.headers.items() if name in _TELLING},
        size=answer.received,
        body=body,
        truncated=answer.truncated or None,
        note=" ".join(filter(None, notes)) or None,
        ms=_timing(answer),
        tls=dict(answer.tls) if answer.tls else None,
    )


def _location(answer: HttpAnswer) -> str | None:
    return answer.headers.get("location", "")[:2048] or None if 300 <= answer.status < 400 else None


def _preview(answer: HttpAnswer) -> str | None:
    """The body's beginning when it is text; a picture or an archive says nothing to a reader."""
    start = answer.body[:PREVIEW]
    if not start or b"\x00" in start:
        return None
    charset = re.search(r"charset=[\"']?([A-Za-z0-9_-]+)", answer.headers.get("content-type", ""))
    try:
        text = start.decode(charset[1] if charset else "utf-8", "replace")
    except LookupError:
        text = start.decode("utf-8", "replace")
    return text if text.count("\ufffd") * 10 <= len(text) else None


def _timing(answer: HttpAnswer) -> Timing:
    took = {name: round(seconds * 1000, 1) for name, seconds in answer.phases.items()}
    return Timing(
        connect=took.get("connect", 0.0),
        tls=took.get("tls"),
        first_byte=took.get("first_byte", 0.0),
        total=round(answer.elapsed * 1000, 1),
    )
