"""Parameter types: what a tool accepts, written once. Each refuses what could be read as an option."""

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is a number, not a boolean")
    return value


def _plain(value: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 or char in "\u2028\u2029\u0085" for char in value):
        raise ValueError("must not hold control characters or line breaks")
    return value


def _no_option(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("must not start with '-'")
    return value


def _hostname(value: str) -> str:
    bare = value.strip("[]") if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if len(value) > 253 or not re.fullmatch(r"(?!-)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?", value, re.ASCII):
        raise ValueError("is not a host name or an IP address")
    if any(not label or len(label) > 63 or label.startswith("-") for label in value.rstrip(".").split(".")):
        raise ValueError("is not a host name: each part has 1 to 63 letters, digits, '-' or '_'")
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", value.rstrip(".").rpartition(".")[2]):
        raise ValueError("is not a host name or an IP address: addresses have four decimal numbers")
    return value


def _absolute_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    if ".." in value.split("/"):
        raise ValueError("must not hold '..'")
    return value if value == "/" else "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def _branch(value: str) -> str:
    """A branch as git-check-ref-format(1) takes it, and more narrowly."""
    parts = value.split("/")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+/@#-]*", value) or ".." in value or "@{" in value:
        raise ValueError("is no branch")
    if any(not part or part.startswith((".", "-")) or part.endswith((".lock", ".")) for part in parts):
        raise ValueError("is no branch")
    return value


def _inside_checkout(value: str) -> str:
    if any(part in ("", ".", "..") or part.startswith("-") for part in value.split("/")):
        raise ValueError("must be a plain path inside the repository")
    return value


_UNIT = r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*"
_CONTAINER = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


def _log_source(value: str) -> str:
    if value.startswith("/"):
        return _absolute_path(value)
    kind, wanted = ("unit", f"unit:{_UNIT}") if value.startswith("unit:") else ("container", _CONTAINER)
    if len(value) > 255 or not re.fullmatch(wanted, value):
        raise ValueError(f"is not the name of a {kind}")
    return value


NotBoolean = BeforeValidator(_refuse_boolean)  # goes last: pydantic puts bounds that follow it wrongly in schemas
Plain = AfterValidator(_plain)
NoOption = AfterValidator(_no_option)

Hostname = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    Plain,
    AfterValidator(_hostname),
    Field(description="Host name or IP address."),
]
TcpPort = Annotated[int, Field(ge=1, le=65535), NotBoolean]
UnitName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=f"^{_UNIT}$"),
    Field(description="systemd unit, such as nginx or nginx.service."),
]
ContainerName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=f"^{_CONTAINER}$"),
    Field(description="Container name or id."),
]
ImageName = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=255,
        pattern=r"^[a-z0-9][a-z0-9._-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*(@sha256:[0-9a-f]{64})?$",
    ),
    Field(description="Image without tag, such as nginx or registry.lan:5000/team/app."),
]
ImageTag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"), Field(description="Tag.")]
PackageName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9+._:-]*$"),
    Field(description="Package name."),
]
AbsolutePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096),
    Plain,
    AfterValidator(_absolute_path),
    Field(description="Absolute path on the target."),
]
StackName = Annotated[
    str,
    # No `_`: Compose puts one between a stack's name and those of its volumes.
    StringConstraints(min_length=1, max_length=40, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
    Field(description="Stack name."),
]
RepoUrl = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500, pattern=r"^[A-Za-z0-9][A-Za-z0-9+._~:/@\[\]-]*$"),
    Field(description="https or ssh address of a git repository."),
]
Branch = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_branch)]
ComposeFile = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_./+-]*$"),
    AfterValidator(_inside_checkout),
    Field(description="Path in the repository."),
]
EnvVars = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")],
        Annotated[str, StringConstraints(max_length=32_768)],
    ],
    Field(max_length=100, description="Values for ${...}."),
]
LogSource = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096),
    Plain,
    AfterValidator(_log_source),
    Field(description="Container, unit:NAME, or absolute path of a log."),
]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256), Plain]
LineCount = Annotated[int, Field(ge=1, le=10_000), NotBoolean]
Limit = Annotated[int, Field(ge=1, le=1_000), NotBoolean]
Seconds = Annotated[float, Field(gt=0, le=120, description="Seconds."), NotBoolean]
Cursor = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{1,12}$"), Field(description="`next` of the previous answer.")
]
Format = Literal["json", "toon"]
