"""Process settings: read once from the environment and the systemd credentials, then frozen."""

import os
import pwd
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from systemmanager.errors import ConfigError, Problem, nearest

SECRET_BYTES = 32
"""Least length of the shared secret; HMAC-SHA256 wants a key as long as its output (RFC 7518, section 3.2)."""


class Settings(BaseModel):
    """Everything that the environment decides; each field's alias is its variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    targets_config: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_TARGETS_CONFIG",
        description="Path of targets.yaml. Without it the gateway manages its own host, read-only.",
    )
    shared_secret: SecretStr | None = Field(
        default=None,
        alias="SYSTEMMANAGER_SHARED_SECRET",
        description="Key of the bearer tokens, at least 32 random bytes. Without it one is made in the state folder.",
    )
    audit_log: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_AUDIT_LOG",
        description="Path of the audit log; default audit.jsonl in the state folder.",
    )
    state_dir: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_STATE_DIR",
        description="State folder; default systemd's STATE_DIRECTORY, then the XDG state folder.",
    )
    auth_mode: Literal["token"] = Field(
        default="token", alias="SYSTEMMANAGER_AUTH_MODE", description="How HTTP clients prove who they are: token."
    )
    require_auth: Literal[True] = Field(
        default=True,
        alias="SYSTEMMANAGER_REQUIRE_AUTH",
        description="true; HTTP without authentication is not offered.",
    )
    base_url: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_BASE_URL",
        description="The gateway's URL as clients see it; its host is accepted in the Host header.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        alias="SYSTEMMANAGER_ALLOWED_HOSTS",
        description="More names for the Host header, by comma.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR."
    )
    host: str = Field(default="127.0.0.1", alias="MCP_HOST", description="Address that `serve` listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8080, alias="MCP_PORT", description="Port that `serve` listens on; 0 takes a free one."
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _by_comma(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("require_auth", mode="before")
    @classmethod
    def _always(cls, value: Any) -> Any:
        if str(value).lower() in ("true", "1", "yes", "on"):
            return True
        raise ValueError("must be true: the gateway does not serve HTTP without authentication")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must look like http://gateway.tailnet.ts.net:8080")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _strong(self) -> Self:
        if self.shared_secret is not None and (why := weakness(self.shared_secret.get_secret_value())):
            raise ValueError(f"SYSTEMMANAGER_SHARED_SECRET {why}; make one with: openssl rand -base64 48")
        return self


def weakness(secret: str) -> str | None:
    """Why a secret is too weak to sign tokens with, or None."""
    if len(secret.encode()) < SECRET_BYTES:
        return f"is shorter than {SECRET_BYTES} bytes"
    if len(set(secret)) < 12:
        return "repeats a few characters and is no random value"
    return None


_VARIABLES = {str(field.alias): name for name, field in Settings.model_fields.items()}
_LATER = {"SYSTEMMANAGER_TEST_REQUIRE"}


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises `ConfigError` naming each wrong variable; values are not repeated."""
    given = os.environ if environment is None else environment
    values = {name: given[name] for name in _VARIABLES if given.get(name)}
    if folder := given.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder, "SYSTEMMANAGER_SHARED_SECRET")
        if credential.is_file():
            values["SYSTEMMANAGER_SHARED_SECRET"] = credential.read_text().strip()
    problems = [
        Problem(
            name,
            f"unknown setting; did you mean {near[0]}?" if (near := nearest(name, _VARIABLES)) else "unknown setting",
        )
        for name in given
        if name.startswith("SYSTEMMANAGER_") and name not in _VARIABLES and name not in _LATER
    ]
    values.setdefault("SYSTEMMANAGER_STATE_DIR", _default_state(given))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems += [
            Problem(str((*one["loc"], "settings")[0]), one["msg"].removeprefix("Value error, ")) for one in details
        ]
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings


def _default_state(given: Mapping[str, str]) -> str:
    if systemd := given.get("STATE_DIRECTORY"):
        return systemd.partition(":")[0]
    home = given.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return str(Path(given.get("XDG_STATE_HOME") or Path(home, ".local/state"), "systemmanager"))


@dataclass(frozen=True, slots=True)
class State:
    """The state folder, private to the gateway's user, and what stands in it."""

    folder: Path
    audit_log: Path
    runtime: Path
    known_hosts: Path

    def shared_secret(self, settings: Settings) -> str:
        """The key of the tokens: the configured one, else the one in the state folder, made on first use (0600)."""
        if settings.shared_secret is not None:
            return settings.shared_secret.get_secret_value()
        path = self.folder / "shared_secret"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            secret = path.read_text().strip()
            if why := weakness(secret):
                raise ConfigError([Problem(str(path), f"{why}; delete it, and the gateway makes a new one")]) from None
            return secret
        secret = secrets.token_urlsafe(48)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
        return secret


def prepare_state(settings: Settings) -> State:
    """Make the state folder. Raises `ConfigError` when that can't be done."""
    assert settings.state_dir is not None
    folder = settings.state_dir.expanduser().absolute()
    runtime = folder / "run"
    try:
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError([Problem(str(folder), f"the state folder can't be made: {error.strerror}")]) from error
    return State(folder, settings.audit_log or folder / "audit.jsonl", runtime, folder / "known_hosts")
