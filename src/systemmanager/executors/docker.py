"""Targets of kind docker, and the Docker port for all kinds of targets that have an engine."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from systemmanager.errors import Denied, NotConfigured, NotFound, did_you_mean
from systemmanager.executors import Surroundings, docker_errors, unsupported
from systemmanager.executors.docker_client import Client, Exchange, Tls, client_for, forget
from systemmanager.executors.docker_logs import plain_text
from systemmanager.following import Following
from systemmanager.ports import Json, Tail
from systemmanager.references import image_matches
from systemmanager.request import Permit
from systemmanager.target import DockerConnection, DockerTarget, Target


class EngineDocker:
    """The Docker port of one call."""

    following: Following | None = None

    def __init__(self, client: Client, permit: Permit) -> None:
        self._client = client
        self._deadline = time.monotonic() + permit.timeout
        self._target = permit.target.id
        self._limit = permit.target.constraints.max_output_bytes
        self._images = permit.target.constraints.images
        self._looks = permit.rehearsal

    async def _ask(
        self, method: str, path: str, *parts: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        self._may(method)
        return await self._client.ask(Exchange(self._deadline), method, path, *parts, query=query, body=body)

    def _may(self, method: str) -> None:
        if self._looks and method != "GET":
            raise RuntimeError("a rehearsal changes nothing")

    async def version(self) -> Json:
        return dict(await self._ask("GET", "/version"))

    async def containers(self) -> Sequence[Json]:
        rows: list[Json] = await self._ask("GET", "/containers/json", query={"all": 1})
        return rows

    async def inspect(self, name: str) -> Json:
        return dict(await self._of_container("GET", "/containers/{0}/json", name))

    async def act(self, action: Literal["start", "stop", "restart"], name: str) -> None:
        await self._of_container("POST", f"/containers/{{0}}/{action}", name)

    async def logs(self, name: str, lines: int, *, stamped: bool = False) -> Tail:
        tty = (await self.inspect(name))["Config"]["Tty"]
        wanted = lines
        while True:
            query = {"stdout": 1, "stderr": 1, "tail": wanted, "timestamps": int(stamped)}
            exchange, path = Exchange(self._deadline), "/containers/{0}/logs"
            content, cut = await self._client.content(
                exchange, "GET", path, name, query=query, limit=self._limit, partial=True
            )
            text = plain_text(content, tty)
            if not cut or wanted == 1:
                return Tail(text, truncated=wanted < lines or cut)
            # The engine sends the oldest first: ask for as many of the newest lines as should fit.
            wanted = max(1, min(wanted - 1, text.count("\n")) // 2)

    async def images(self) -> Sequence[Json]:
        rows: list[Json] = await self._ask("GET", "/images/json")
        return rows

    async def inspect_image(self, name: str) -> Json:
        try:
            return dict(await self._ask("GET", "/images/{0}/json", name))
        except NotFound as error:
            known = [tag for image in await self.images() for tag in image.get("RepoTags") or [] if "<none>" not in tag]
            raise NotFound(f"no image {name!r} on {self._target!r}", hint=did_you_mean(name, known)) from error

    async def pull(self, image: str, tag: str, platform: str | None = None) -> Json:
        self._may("POST")
        self._check_image(image, tag)
        digest = image.partition("@")[2]
        reference = image if digest else f"{image}:{tag}"
        query = {"fromImage": image.partition("@")[0], "tag": digest or tag} | (
            {"platform": platform} if platform else {}
        )
        try:
            messages = await self._client.messages(Exchange(self._deadline), "/images/create", query, image)
        except docker_errors.ANSWERED as error:
            raise docker_errors.pull_failed(reference, docker_errors.words_of(error)) from error
        for message in messages:
            if "error" in message:
                raise docker_errors.pull_failed(reference, str(message["error"]))
        return await self.inspect_image(reference)

    async def digest_now(self, reference: str) -> str:
        self._check_image(reference)
        try:
            return str((await self._ask("GET", "/distribution/{0}/json", reference))["Descriptor"]["digest"])
        except KeyError as error:
            raise NotFound(f"the registry says no digest of {reference!r}") from error

    async def networks(self) -> Sequence[Json]:
        rows: list[Json] = await self._ask("GET", "/networks")
        return rows

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        self._check_image(str(body.get("Image")))
        answer = await self._ask("POST", "/containers/create", query={"name": name}, body=dict(body))
        return str(answer["Id"])

    async def rename(self, name: str, new_name: str) -> None:
        await self._of_container("POST", "/containers/{0}/rename", name, query={"name": new_name})

    async def remove(self, name: str, force: bool = False) -> None:
        with suppress(NotFound):
            await self._ask("DELETE", "/containers/{0}", name, query={"force": 1 if force else 0, "v": 0})

    async def connect(self, network: str, name: str, endpoint: Mapping[str, Any]) -> None:
        body = {"Container": name, "EndpointConfig": dict(endpoint)}
        await self._ask("POST", "/networks/{0}/connect", network, body=body)

    async def disconnect(self, network: str, name: str) -> None:
        await self._ask("POST", "/networks/{0}/disconnect", network, body={"Container": name})

    async def _of_container(self, method: str, path: str, name: str, query: Mapping[str, Any] | None = None) -> Any:
        try:
            return await self._ask(method, path, name, query=query)
        except NotFound as error:
            if "No such container" not in docker_errors.words_of(error):
                raise
            known = [each.lstrip("/") for row in await self.containers() for each in row.get("Names") or []]
            raise NotFound(f"no container {name!r} on {self._target!r}", hint=did_you_mean(name, known)) from error

    def _check_image(self, image: str, tag: str = "") -> None:
        """Where the target lists its images, nothing else is pulled or run, whichever operation asks."""
        if image.startswith("sha256:"):  # it is on the engine and has run: what brings a container back
            return
        if self._images is not None and not any(image_matches(image, tag, pattern) for pattern in self._images):
            raise Denied(f"{image} is not among the images allowed on {self._target!r}", code="image_not_allowed")


class EngineProbe:
    def __init__(self, docker: EngineDocker) -> None:
        self._docker = docker

    async def probe(self) -> Mapping[str, str]:
        version = await self._docker.version()
        return {"engine": str(version.get("Version", "")), "api": str(version.get("ApiVersion", ""))}


async def engine_at(base_url: str, permit: Permit, stack: AsyncExitStack, *, tls: Tls | None = None) -> EngineDocker:
    """The Docker port for the engine at `unix://PATH` or `tcp://HOST:PORT`; its connections are kept between calls."""
    return EngineDocker(client_for(base_url, tls), permit)


def _place(connection: DockerConnection) -> str:
    return f"unix://{connection.socket_path}" if connection.socket_path else str(connection.host)


def _tls(target: DockerTarget) -> Tls | None:
    connection = target.connection
    if connection.socket_path or not connection.tls_verify:
        return None
    folder = Path(connection.cert_path or "").expanduser()
    files = [folder / name for name in ("ca.pem", "cert.pem", "key.pem")]
    for file in files:
        if not file.is_file():
            raise NotConfigured(
                f"{target.id!r} needs {file}, which is no file that the gateway can read",
                hint="cert_path is a folder with ca.pem, cert.pem and key.pem.",
            )
    ca, cert, key = map(str, files)
    return Tls(ca, cert, key)


class DockerExecutor:
    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    async def open(self, permit: Permit, port: str, stack: AsyncExitStack) -> Any:
        target = permit.target
        if port not in ("Docker", "Stacks", "Probe") or not isinstance(target, DockerTarget):
            raise unsupported(permit, port)
        if port == "Stacks":
            stacks = import_module("systemmanager.executors.stacks")
            return await stacks.stacks_at(
                _place(target.connection), permit, stack, self._surroundings, tls=_tls(target)
            )
        docker = await engine_at(_place(target.connection), permit, stack, tls=_tls(target))
        return docker if port == "Docker" else EngineProbe(docker)

    async def retire(self, targets: Iterable[Target]) -> None:
        forget(frozenset(_place(target.connection) for target in targets if isinstance(target, DockerTarget)))

    async def aclose(self) -> None:
        await asyncio.to_thread(forget)


def create(surroundings: Surroundings) -> DockerExecutor:
    return DockerExecutor(surroundings)
