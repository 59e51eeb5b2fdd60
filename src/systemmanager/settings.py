"""Process settings: read once from the environment and the systemd credentials, then frozen."""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from systemmanager.environment import credentials, default_state
from systemmanager.errors import ConfigError, Problem, nearest
from systemmanager.sandbox import Promise
from systemmanager.trustworthy import trusted_url, weakness


class Settings(BaseModel):
    """Everything that the environment decides; each field's alias is its variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    targets_config: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_TARGETS_CONFIG",
        description="Path of targets.yaml. Without it the gateway manages its own host, read-only.",
    )
    policy_config: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_POLICY_CONFIG",
        description="Path of policy.yaml: grants. Without it only tokens and the local operator hold rights.",
    )
    shared_secret: SecretStr | None = Field(
        default=None,
        alias="SYSTEMMANAGER_SHARED_SECRET",
        description="Key of the bearer tokens, at least 32 random bytes. Without it one is made in the state folder.",
    )
    previous_secret: SecretStr | None = Field(
        default=None,
        alias="SYSTEMMANAGER_SHARED_SECRET_PREVIOUS",
        description="The key before this one: its tokens are accepted until they expire; it signs none.",
    )
    audit_log: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_AUDIT_LOG",
        description="Path of the audit log; default audit.jsonl in the state folder.",
    )
    audit_witness: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_AUDIT_WITNESS",
        description="Second file for the signed checkpoints of the audit log, best on another machine's disk.",
    )
    audit_segment_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=64 * 1024 * 1024,
        alias="SYSTEMMANAGER_AUDIT_SEGMENT_BYTES",
        description="Size at which a segment of the audit log is closed and the next begun; default 64 MiB.",
    )
    audit_segment_hours: Annotated[float, Field(gt=0)] = Field(
        default=168,
        alias="SYSTEMMANAGER_AUDIT_SEGMENT_HOURS",
        description="Age at which a segment is closed; default 168, a week.",
    )
    audit_checkpoint_records: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1000,
        alias="SYSTEMMANAGER_AUDIT_CHECKPOINT_RECORDS",
        description="A signed checkpoint is written after so many records; default 1000.",
    )
    audit_checkpoint_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=30,
        alias="SYSTEMMANAGER_AUDIT_CHECKPOINT_SECONDS",
        description="A record waits so long for its checkpoint at most; default 30.",
    )
    state_dir: Path | None = Field(
        default=None,
        alias="SYSTEMMANAGER_STATE_DIR",
        description="State folder; default systemd's STATE_DIRECTORY, then the XDG state folder.",
    )
    auth_modes: tuple[Literal["token", "oidc", "tailscale"], ...] = Field(
        default=("token",),
        alias="SYSTEMMANAGER_AUTH_MODE",
        description="How HTTP clients prove who they are, by comma: token, oidc, tailscale.",
    )
    require_auth: Literal[True] = Field(
        default=True,
        alias="SYSTEMMANAGER_REQUIRE_AUTH",
        description="true; HTTP without authentication is not offered.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_OIDC_ISSUER",
        description="The issuer of access tokens, to the letter as its metadata names it. Also TSIDP_URL.",
    )
    oidc_client_id: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_OIDC_CLIENT_ID",
        description="The gateway's own client at the issuer, which may ask about opaque tokens. Also TSIDP_CLIENT_ID.",
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None,
        alias="SYSTEMMANAGER_OIDC_CLIENT_SECRET",
        description="That client's secret. Also TSIDP_CLIENT_SECRET.",
    )
    oidc_subject_claim: Annotated[str, Field(pattern=r"^[A-Za-z0-9_:/.-]{1,100}$")] = Field(
        default="sub",
        alias="SYSTEMMANAGER_OIDC_SUBJECT_CLAIM",
        description="The claim that names a person in policy.yaml, such as username for tsidp; sub gives oidc:<sub>.",
    )
    tailscale_socket: Path = Field(
        default=Path("/var/run/tailscale/tailscaled.sock"),
        alias="SYSTEMMANAGER_TAILSCALE_SOCKET",
        description="Path of tailscaled's LocalAPI socket; default /var/run/tailscale/tailscaled.sock.",
    )
    tailscale_capability: Annotated[str, Field(pattern=r"^[a-z0-9.-]+\.[a-z]+/cap/[A-Za-z0-9/_.-]+$")] | None = Field(
        default=None,
        alias="SYSTEMMANAGER_TAILSCALE_CAPABILITY",
        description="Application capability without which nobody of the tailnet holds a right. Without this setting "
        "example.com/cap/systemmanager narrows rights where a peer has it.",
    )
    approval_webhook_url: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_APPROVAL_WEBHOOK_URL",
        description="Where approval requests are POSTed; https, or http on loopback.",
    )
    approval_webhook_secret: SecretStr | None = Field(
        default=None,
        alias="SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET",
        description="Key that signs those requests and their later answers, at least 32 random bytes.",
    )
    ai_url: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_AI_URL",
        description="OpenAI-compatible API whose model explains and ranks causes found in logs; https, or loopback.",
    )
    ai_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}$")] | None = Field(
        default=None, alias="SYSTEMMANAGER_AI_MODEL", description="The model there."
    )
    ai_key: SecretStr | None = Field(default=None, alias="SYSTEMMANAGER_AI_KEY", description="The key of that API.")
    base_url: str | None = Field(
        default=None,
        alias="SYSTEMMANAGER_BASE_URL",
        description="The gateway's URL as clients see it, and the audience of its tokens; its host is accepted in the "
        "Host header.",
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
    socket: Path | None = Field(
        default=None,
        alias="MCP_SOCKET",
        description="Path of a unix socket that `serve` listens on too; headers of `tailscale serve` count only there.",
    )
    proxy_protocol: bool = Field(
        default=False,
        alias="MCP_PROXY_PROTOCOL",
        description="true: connections from loopback must begin with a PROXY header, version 2, that names the client.",
    )

    hardening: tuple[Promise, ...] = Field(
        default=(),
        alias="SYSTEMMANAGER_HARDENING",
        description="What the unit promises of the sandbox, by comma; looked for at start. The unit sets it.",
    )
    require_hardening: bool = Field(
        default=False,
        alias="SYSTEMMANAGER_REQUIRE_HARDENING",
        description="true: nothing is changed anywhere while a part of the promised sandbox is not there.",
    )

    @field_validator("allowed_hosts", "auth_modes", "hardening", mode="before")
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

    @field_validator("auth_modes")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no mode: HTTP is not served without authentication")
        return tuple(dict.fromkeys(value))

    @field_validator("approval_webhook_url", "oidc_issuer", "ai_url")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is not None and not trusted_url(value):
            raise ValueError("must be an https:// address (http:// on loopback only), without query and fragment")
        return value

    @field_validator("shared_secret", "previous_secret", "approval_webhook_secret")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (why := weakness(value.get_secret_value())):
            raise ValueError(f"{why}; make one with: openssl rand -base64 48")
        return value


_VARIABLES = {str(field.alias): name for name, field in Settings.model_fields.items()}
_SECRETS = {str(field.alias) for field in Settings.model_fields.values() if field.annotation == SecretStr | None}
_ALSO = {
    "TSIDP_URL": "SYSTEMMANAGER_OIDC_ISSUER",
    "TSIDP_CLIENT_ID": "SYSTEMMANAGER_OIDC_CLIENT_ID",
    "TSIDP_CLIENT_SECRET": "SYSTEMMANAGER_OIDC_CLIENT_SECRET",
}
"""Other names of variables: those of Tailscale's tsidp."""

_OF_THE_TESTS = {"SYSTEMMANAGER_TEST_REQUIRE", "SYSTEMMANAGER_TEST_ROUNDS"}


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises `ConfigError` naming each wrong variable; values are not repeated."""
    settings, problems = _read(os.environ if environment is None else environment)
    if problems := problems or _lacking(settings):
        raise ConfigError(problems)
    return settings


def some(*needed: str, environment: Mapping[str, str] | None = None) -> tuple[Settings, list[Problem]]:
    """The settings for what needs these fields and no others, and what is wrong with others: their defaults stand.

    Raises `ConfigError` for what is wrong with the needed ones, and for an unknown name that may mean one of them.
    """
    settings, problems = _read(os.environ if environment is None else environment)
    names = {str(Settings.model_fields[field].alias) for field in needed}
    if wrong := [problem for problem in problems if names & {*_meant(problem.where.rpartition("/")[2])}]:
        raise ConfigError(wrong)
    return settings, problems


def _meant(name: str) -> list[str]:
    """The variables that a wrong one may stand for."""
    known = _ALSO.get(name, name)
    prefix = name[: name.find("_") + 1]  # it stands before every name, and would make all of them near
    rest = {variable.removeprefix(prefix): variable for variable in _VARIABLES if variable.startswith(prefix)}
    return [known] if known in _VARIABLES else [rest[near] for near in nearest(name.removeprefix(prefix), rest, 1)]


def _read(given: Mapping[str, str]) -> tuple[Settings, list[Problem]]:
    """The settings as far as they are right, and everything that is wrong."""
    values = {_ALSO.get(name, name): given[name] for name in (*_ALSO, *_VARIABLES) if given.get(name)}
    found, problems = credentials(given.get("CREDENTIALS_DIRECTORY"), sorted(_SECRETS | _ALSO.keys()))
    values |= {_ALSO.get(name, name): text for name, text in found.items()}
    problems += [
        Problem(name, f"differs from {also}: give one of them")
        for name, also in _ALSO.items()
        if given.get(name) and given.get(also, given[name]) != given[name]
    ]
    problems += [
        Problem(name, f"unknown setting; did you mean {near[0]}?" if (near := _meant(name)) else "unknown setting")
        for name in given
        # Clients have names with MCP_, too: of those only a slip of the pen is an error.
        if (name.startswith("SYSTEMMANAGER_") or (name.startswith("MCP_") and _meant(name)))
        and name not in {*_VARIABLES, *_OF_THE_TESTS}
    ]
    values.setdefault("SYSTEMMANAGER_STATE_DIR", default_state(given))
    try:
        return Settings.model_validate(values), problems
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    wrong = [Problem(str((*one["loc"], "settings")[0]), one["msg"].removeprefix("Value error, ")) for one in details]
    right = values.keys() - {problem.where for problem in wrong}
    return Settings.model_validate({name: values[name] for name in right}), problems + wrong


def _lacking(settings: Settings) -> list[Problem]:
    """What the chosen modes can't do without."""
    wanted: dict[str, bool] = {}
    if "oidc" in settings.auth_modes:
        wanted["SYSTEMMANAGER_OIDC_ISSUER"] = settings.oidc_issuer is not None
        wanted["SYSTEMMANAGER_BASE_URL"] = settings.base_url is not None
        client, secret = settings.oidc_client_id is not None, settings.oidc_client_secret is not None
        wanted["SYSTEMMANAGER_OIDC_CLIENT_ID"] = client or not secret
        wanted["SYSTEMMANAGER_OIDC_CLIENT_SECRET"] = secret or not client
    also = {known: f" ({other})" for other, known in _ALSO.items()}
    problems = [
        Problem(name, f"is missing{also.get(name, '')}: SYSTEMMANAGER_AUTH_MODE has oidc")
        for name, there in wanted.items()
        if not there
    ]
    pairs = (("approval_webhook_url", "approval_webhook_secret"), ("ai_url", "ai_model"))
    return [*problems, *(problem for pair in pairs for problem in _alone(settings, *pair))]


def _alone(settings: Settings, *pair: str) -> list[Problem]:
    """Of two settings that go together, the one that is missing beside the other."""
    missing = [name for name in pair if getattr(settings, name) is None]
    if len(missing) != 1:
        return []
    there = next(name for name in pair if name not in missing)
    names = {name: str(field.alias) for name, field in Settings.model_fields.items()}
    return [Problem(names[missing[0]], f"is missing: there is {names[there]}")]


@dataclass(frozen=True, slots=True)
class State:
    """The state folder, private to the gateway's user, and what stands in it."""

    folder: Path
    audit_log: Path
    runtime: Path
    known_hosts: Path

    def secrets(self, settings: Settings) -> tuple[str, ...]:
        """The keys of the tokens, the one that signs first: the configured one, else the one in the state folder."""
        if settings.shared_secret is not None:
            current = settings.shared_secret.get_secret_value()
        else:
            current = self.kept("shared_secret", lambda: secrets.token_urlsafe(48), weakness)
        previous = settings.previous_secret
        return (current,) if previous is None else (current, previous.get_secret_value())

    def audience(self, settings: Settings) -> str:
        """Whom the gateway's own tokens are for: its URL, shared by gateways behind one name, else its own id."""
        if settings.base_url:
            return settings.base_url
        own = self.kept("gateway_id", lambda: secrets.token_hex(8), lambda text: None if text else "is empty")
        return f"urn:systemmanager:{own}"

    def kept(self, name: str, make: Callable[[], str], fault: Callable[[str], str | None]) -> str:
        """A private text of the state folder, made on first use (0600). Raises `ConfigError`."""
        path = self.folder / name
        try:
            if not path.exists():
                _make_once(path, make())
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor) as file:
                readable = os.fstat(descriptor).st_mode & 0o077
                text = file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is no text"
            raise ConfigError([Problem(str(path), f"can't be used: {why}")]) from None
        if why := "is open to other users" if readable else fault(text):
            raise ConfigError([Problem(str(path), f"{why}; delete it, and the gateway makes a new one")])
        return text


def _make_once(path: Path, text: str) -> None:
    """Put a text at `path`, whole and private from its first moment; one that is there already stays."""
    descriptor, made = mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        Path(made).unlink()


def prepare_state(settings: Settings) -> State:
    """Make the state folder, closed to others. Raises `ConfigError` when that fails or others may write there."""
    assert settings.state_dir is not None
    folder = settings.state_dir.expanduser().absolute()
    runtime = folder / "run"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if os.geteuid() not in (0, status.st_uid) or status.st_mode & 0o022:
            why = "the state folder must belong to the gateway's user and be writable by nobody else"
            raise ConfigError([Problem(str(folder), why)])
        runtime.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        why = f"the state folder can't be made: {error.strerror}"
        raise ConfigError([Problem(str(folder), why)]) from error
    return State(folder, settings.audit_log or folder / "audit.jsonl", runtime, folder / "known_hosts")
