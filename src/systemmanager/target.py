"""Targets as `targets.yaml` declares them: one frozen model per executor, all told apart by `executor`."""

import ipaddress
import re
from functools import cached_property
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)

from systemmanager.addresses import parse, plain
from systemmanager.params import AbsolutePath, Hostname, NotBoolean, Plain, TcpPort
from systemmanager.scopes import expand

TargetId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}$")]
SudoPolicy = Literal["none", "limited", "full"]

DEFAULT_PATHS = ("/var/log",)


def _capability(name: str) -> str:
    expand([name])
    return name


def _port_range(value: str) -> str:
    first, _, last = value.partition("-")
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", value) or not 0 < int(first) <= int(last or first) <= 65535:
        raise ValueError("must be a port or a range such as 8000-8999")
    return value


def _host_pattern(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:%/*?\[\]!-]{1,255}", value):
        raise ValueError("must be a host name, a glob, an address or a CIDR block")
    if "/" in value:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ValueError("is no CIDR block") from error
    return value


def _pinned(value: str) -> str:
    if not re.fullmatch(
        r"SHA256:[A-Za-z0-9+/]{43}=?|(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?", value
    ):
        raise ValueError("must be a SHA256:... fingerprint or a public key such as 'ssh-ed25519 AAAA...'")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is a number, not a boolean")
    return value


def _header_value(value: SecretStr) -> SecretStr:
    if not value.get_secret_value() or any(not 32 <= ord(char) < 127 for char in value.get_secret_value()):
        raise ValueError("must be one line of printable ASCII characters")
    return value


def _origin(value: str) -> str:
    match = re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[^\s?#\\]*)?", value)
    if not match or not 0 < int((match[2] or ":80")[1:]) < 65536:
        raise ValueError("must look like https://host[:port][/path], without credentials, query or fragment")
    return value.rstrip("/")


def _docker_host(value: str) -> str:
    match = re.fullmatch(r"tcp://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", value)
    if not match or not 0 < int(match[2]) < 65536:
        raise ValueError("must look like tcp://host:2376")
    return value


Capability = Annotated[str, AfterValidator(_capability)]
PortRange = Annotated[str, AfterValidator(_port_range)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
Glob = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")]
HeaderSecret = Annotated[SecretStr, AfterValidator(_header_value)]
PathOrText = Annotated[str, StringConstraints(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Constraints(_Model):
    """A target's limits. A list that is given is the whole list: an empty one allows nothing."""

    timeout: Annotated[float, BeforeValidator(_number), Field(gt=0, le=86_400)] | None = Field(
        default=None, description="Longest call, in seconds."
    )
    concurrency: Annotated[int, Field(ge=1, le=1000), NotBoolean] = Field(default=10, description="Calls at a time.")
    sudo_policy: SudoPolicy = Field(
        default="none",
        description="none: never sudo; limited: systemctl and the package manager; full: wherever root helps.",
    )
    paths: tuple[AbsolutePath, ...] = Field(default=DEFAULT_PATHS, description="Folders that file tools may read.")
    units: tuple[Glob, ...] | None = Field(default=None, description="systemd units that may be changed (globs).")
    hosts: tuple[HostPattern, ...] | None = Field(
        default=None,
        description="What network diagnostics may reach: names, globs, addresses, CIDR; * is every public address and "
        "the targets that the caller may use, which is the default too.",
    )
    ports: tuple[TcpPort | PortRange, ...] | None = Field(
        default=None, description="Ports that network diagnostics may reach: 443 or '8000-8999'."
    )
    images: tuple[Glob, ...] | None = Field(
        default=None, description="Images that may be pulled or run (globs), with or without :tag."
    )
    dual_approval: bool = Field(
        default=False, description="What needs an approval here needs it from two different people."
    )
    max_output_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024), NotBoolean] = Field(
        default=1024 * 1024, description="Most bytes that are read of one command's or file's output."
    )


class Metadata(_Model):
    tags: tuple[Word, ...] = ()
    environment: Word | None = None
    role: Word | None = None
    description: Annotated[str, Plain] | None = None


class _Target(_Model):
    id: TargetId
    type: str = "remote"
    capabilities: tuple[Capability, ...] = Field(description="What this target offers; nothing else is done on it.")
    constraints: Constraints = Constraints()
    metadata: Metadata = Metadata()

    @cached_property
    def offers(self) -> frozenset[str]:
        """Canonical names of the capabilities."""
        return expand(self.capabilities)


class LocalConnection(_Model):
    socket_path: AbsolutePath = Field(default="/var/run/docker.sock", description="The Docker Engine's socket.")


class LocalTarget(_Target):
    type: Literal["local"] = "local"
    executor: Literal["local"]
    connection: LocalConnection = LocalConnection()


class SshConnection(_Model):
    """How an SSH server is reached. Host keys are always verified: by `host_key`, else by `known_hosts`."""

    host: Hostname
    port: TcpPort = 22
    username: UserName
    key_path: PathOrText | None = Field(default=None, description="Private key: a path, or ${NAME} of a credential.")
    passphrase: SecretStr | None = Field(default=None, description="Of the private key; ${NAME}.")
    certificate_path: PathOrText | None = Field(default=None, description="OpenSSH user certificate for the key.")
    agent: bool = Field(default=False, description="Use the keys of the agent at SSH_AUTH_SOCK.")
    known_hosts: PathOrText | None = Field(
        default=None, description="Path; without it the gateway's own, then ~/.ssh's."
    )
    host_key: Annotated[str, AfterValidator(_pinned)] | None = Field(
        default=None, description="Pin: SHA256:... fingerprint, or 'ssh-ed25519 AAAA...' public key."
    )
    jump: TargetId | None = Field(default=None, description="Id of the SSH target to go through.")
    docker_socket: AbsolutePath = Field(default="/var/run/docker.sock", description="On the target.")


class SshTarget(_Target):
    type: Literal["remote"] = "remote"
    executor: Literal["ssh"]
    connection: SshConnection


class DockerConnection(_Model):
    """A Docker Engine by unix socket or by TCP with TLS; plain TCP only on purpose."""

    socket_path: AbsolutePath | None = None
    host: Annotated[str, AfterValidator(_docker_host)] | None = Field(default=None, description="tcp://host:2376")
    tls_verify: bool = Field(default=True, description="false: plain TCP, for loopback only.")
    cert_path: PathOrText | None = Field(default=None, description="Folder with ca.pem, cert.pem and key.pem.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.socket_path is None) == (self.host is None):
            raise ValueError("needs exactly one of socket_path and host")
        if self.host and self.tls_verify and not self.cert_path:
            raise ValueError("host needs cert_path (ca.pem, cert.pem, key.pem), or tls_verify: false on loopback")
        if self.host and not self.tls_verify and not _is_loopback(self.host):
            raise ValueError("tls_verify: false is accepted for a loopback address only: that API is root's")
        return self


def _is_loopback(url: str) -> bool:
    host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class DockerTarget(_Target):
    type: Literal["remote", "local"] = "remote"
    executor: Literal["docker"]
    connection: DockerConnection


class BearerAuth(_Model):
    type: Literal["bearer"]
    token: HeaderSecret


class BasicAuth(_Model):
    type: Literal["basic"]
    username: Annotated[str, StringConstraints(pattern=r"^[!-9;-~][ -9;-~]{0,255}$")]
    password: HeaderSecret


class HeaderAuth(_Model):
    type: Literal["header"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")]
    value: HeaderSecret


HttpAuth = Annotated[BearerAuth | BasicAuth | HeaderAuth, Field(discriminator="type")]


class HttpConnection(_Model):
    base_url: Annotated[str, AfterValidator(_origin)]
    auth: HttpAuth | None = None
    health_path: Annotated[str, StringConstraints(pattern=r"^/[!-\"$-~]*$")] = "/"
    tls_verify: bool = True
    cert_path: PathOrText | None = Field(default=None, description="CA certificates (PEM) to trust for this target.")


class HttpTarget(_Target):
    type: Literal["remote"] = "remote"
    executor: Literal["http"]
    connection: HttpConnection


Target = Annotated[LocalTarget | SshTarget | DockerTarget | HttpTarget, Field(discriminator="executor")]


def host_of(target: _Target) -> str | None:
    """The name or address under which a target is reached, as it is compared: addresses in their usual spelling."""
    match target:
        case SshTarget(connection=connection):
            found = connection.host
        case (
            DockerTarget(connection=DockerConnection(host=str(url)))
            | HttpTarget(connection=HttpConnection(base_url=url))
        ):
            found = urlsplit(url).hostname or ""
        case _:
            return None
    address = parse(found)
    return plain(found) if address is None else str(address)


EXECUTOR_PORTS: dict[str, frozenset[str]] = {
    "local": frozenset({"Shell", "Files", "Facts", "Network", "Docker", "Stacks", "Probe"}),
    "ssh": frozenset({"Shell", "Files", "Facts", "Network", "Docker", "Stacks", "Probe"}),
    "docker": frozenset({"Docker", "Stacks", "Probe"}),
    "http": frozenset({"Http", "Probe"}),
}
"""Which ports each kind of target has; the table of DESIGN section 4."""


class Document(_Model):
    """A whole `targets.yaml`."""

    version: Literal["1.0"]
    targets: dict[TargetId, Target]
