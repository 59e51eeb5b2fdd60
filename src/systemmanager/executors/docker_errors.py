"""What goes wrong between the SDK and an engine, as errors that say what to do."""

import errno
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from systemmanager.errors import (
    AuthRefused,
    ConnectionLost,
    EngineRefused,
    EngineUnavailable,
    NameNotResolved,
    NotConfigured,
    NotFound,
    TargetError,
    Unreachable,
    UnreadableOutput,
)

if TYPE_CHECKING:
    from systemmanager.executors.docker_client import Tls

ANSWERED = (NotFound, EngineRefused, AuthRefused)
"""Errors that carry the engine's own words, in `details.said`."""

MOST_SAID = 500

_CUT = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)


def made(base_url: str, tls: "Tls | None") -> Any:
    """The SDK's client for one engine, without a request yet. The gateway's proxy settings are not for engines."""
    import docker
    from docker.tls import TLSConfig

    try:
        config = TLSConfig(client_cert=(tls.cert, tls.key), ca_cert=tls.ca, verify=True) if tls else False
        api: Any = docker.APIClient(base_url, version="1.41", timeout=60, tls=config)
    except (docker.errors.DockerException, OSError) as error:
        raise NotConfigured(f"no client for {base_url}: {error}") from error
    api.trust_env = False
    if base_url.startswith("unix://"):
        from systemmanager.executors.docker_unix import Adapter

        api._custom_adapter = Adapter(base_url.replace("unix://", "http+unix://", 1), 60)
        api.mount("http+docker://", api._custom_adapter)
    return api


def credentials(api: Any, image: str) -> dict[str, str]:
    """The header with the registry login that the gateway's user has in its Docker configuration, if any."""
    from docker import auth
    from docker.errors import DockerException

    try:
        registry, _ = auth.resolve_repository_name(image)
        header = auth.get_config_header(api, registry)
    except (DockerException, OSError) as error:
        raise NotConfigured(f"the registry login for {image} can't be read: {error}") from error
    return {"X-Registry-Auth": header.decode()} if header else {}


@contextmanager
def translated(where: str, changing: bool = False) -> Iterator[None]:
    """Raises what the SDK and its HTTP client raise as a `TargetError`. `changing`: the request may have had effect."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
        raise _failed(where, error, changing) from error
    except ValueError as error:
        raise UnreadableOutput(f"{where} does not answer as a Docker Engine does") from error


def _failed(where: str, error: Exception, changing: bool) -> TargetError:
    import requests

    cause = _root(error)
    if isinstance(cause, ssl.SSLError):
        return _tls(where, cause)
    if isinstance(error, requests.ConnectTimeout):
        return EngineUnavailable(f"{where} does not accept connections in time")
    if isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError) or "timed out" in str(error):
        return EngineUnavailable(f"{where} did not answer in time", hint="It may hang: look at it.")
    number = getattr(cause, "errno", None)
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        return EngineUnavailable(
            f"there is no Docker Engine at {where}", hint="Start it there, or set the path of its socket."
        )
    if isinstance(cause, PermissionError):
        return EngineUnavailable(
            f"{where} may not be used by the gateway's user",
            hint="Add that user to the group docker on that machine, and restart the gateway.",
            retryable=False,
        )
    if isinstance(cause, ConnectionRefusedError):
        return EngineUnavailable(f"no Docker Engine listens at {where}", hint="Start it: systemctl start docker.")
    if type(cause).__name__ in ("gaierror", "NameResolutionError"):
        return NameNotResolved(f"the host of {where} is not known")
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return EngineUnavailable(f"there is no route to {where}")
    if changing:
        return ConnectionLost(f"{where} went away while it worked")
    return EngineUnavailable(f"{where} went away", hint="Look whether it runs there: systemctl status docker.")


def _root(error: BaseException) -> BaseException:
    """The failure of the operating system below the wrappings of the HTTP client."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        seen.add(id(one))
        below = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        waiting += [each for each in below if isinstance(each, BaseException) and id(each) not in seen]
        plain = type(one).__module__ in ("builtins", "ssl", "socket", "http.client")
        if isinstance(one, OSError) and plain:
            return one
    return error


def _tls(where: str, error: ssl.SSLError) -> EngineUnavailable:
    reason = getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "ca.pem must hold the authority that signed the engine's certificate, made for this host name."
    elif "CERTIFICATE_REQUIRED" in str(reason) or "UNKNOWN_CA" in str(reason) or "ALERT" in str(reason):
        hint = "The engine refuses the gateway's certificate: check cert.pem and key.pem, and the engine's --tlscacert."
    else:
        hint = "Does the engine speak TLS there (--tlsverify)? Check ca.pem, cert.pem and key.pem."
    return EngineUnavailable(f"TLS with {where} failed: {reason}", hint=hint, retryable=False)


def went_stale(error: EngineUnavailable) -> bool:
    """Whether a kept connection turned out to be dead, as after a restart of the engine."""
    cause = _root(error.__cause__ or error)
    return isinstance(cause, OSError) and (isinstance(cause, ConnectionError) and cause.errno in (None, *_CUT))


def version_refused(status: int, said: str) -> bool:
    return status == 400 and "client version" in said


def refused(where: str, status: int, said: str) -> TargetError:
    """The engine's own no; its words go to the details, where they are marked as foreign."""
    try:
        words = str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        words = said.strip()
    answered, details = f"{where} answered with HTTP status {status}", _details(words, status)
    if status == 404:
        return NotFound(f"{where} does not have what was asked for", details=details)
    if status in (401, 403):
        return AuthRefused(answered, hint="A proxy or plugin in front of the engine forbids it.", details=details)
    if status in (502, 503, 504):
        return EngineUnavailable(answered, details=details)
    if version_refused(status, words):
        hint = "The engine was exchanged; try again."
        return EngineRefused(f"{where} speaks another version now", hint=hint, retryable=True, details=details)
    if "TLS" in words or "HTTPS server" in words:
        hint = "Set tls_verify and cert_path."
        return EngineUnavailable(f"{where} expects TLS", hint=hint, retryable=False, details=details)
    if "does not support reading" in words:
        hint = "Its logging driver sends the log elsewhere: look there, or at the container's state."
        return EngineRefused(f"{where} has no log of that container", hint=hint, details=details)
    return EngineRefused(f"{where} refused, with HTTP status {status}", details=details)


def _details(words: str, status: int | None = None) -> dict[str, Any]:
    known = {} if status is None else {"status": status}
    return {**known, "said": words[:MOST_SAID]} if words else known


def words_of(error: TargetError) -> str:
    """What the engine said in an error that `refused` made."""
    return str((error.details or {}).get("said", ""))


def pull_failed(reference: str, words: str) -> TargetError:
    """Why an image could not be pulled, from the words of the engine or the registry."""
    lowered, details = words.lower(), _details(words)

    def says(*parts: str) -> bool:
        return any(part in lowered for part in parts)

    if says("manifest unknown", "not found: manifest", "name unknown", "no matching manifest", "failed to resolve ref"):
        return NotFound(f"the registry has no {reference}", details=details)
    if says("unauthorized", "authentication required", "no basic auth", "access denied", "denied:", "forbidden"):
        return AuthRefused(
            f"the registry does not give {reference}",
            hint="Check the name; for a private image, log in as the gateway's user (docker login).",
            details=details,
        )
    if says("dial tcp", "no such host", "timeout", "connection refused", "tls", "x509", "eof", "unreachable"):
        return Unreachable(
            f"the registry of {reference} can't be reached from the engine",
            hint="Check the engine's DNS and proxy. An update with pull_latest=false takes the image that is there.",
            details=details,
        )
    if says("not found"):
        return NotFound(f"the registry has no {reference}", details=details)
    return EngineRefused(f"{reference} could not be pulled", details=details)
