"""A registry for pull tests: the part of the registry HTTP API that an engine asks for a pull, over made-up images."""

import gzip
import hashlib
import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.real.engine import Engine, root_filesystem

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


SMALL = 4096
"""Bytes that every layer has more of, and no description of an image."""


@dataclass
class Registry:
    """`address` is `127.0.0.1:PORT`, which every engine on this machine takes without TLS."""

    address: str = ""
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Blobs whose asker hung up while the gate was shut."""

    def put(self, name: str, tag: str = "latest", files: dict[str, str] | None = None, **config: Any) -> str:
        """Publish an image of busybox with `files` in its root and this Config; answers the reference to pull."""
        layers = [root_filesystem(), _tar(files or {})]
        packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
        body = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        about = json.dumps(body).encode()
        for blob in (*packed, about):
            self.blobs[digest(blob)] = blob
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _part("application/vnd.docker.container.image.v1+json", about),
            "layers": [_part("application/vnd.docker.image.rootfs.diff.tar.gzip", blob) for blob in packed],
        }
        content = json.dumps(manifest).encode()
        self.manifests[name, tag] = self.manifests[name, digest(content)] = content
        return f"{self.address}/{name}"

    def is_layer(self, path: str) -> bool:
        """Whether it is what a pull fetches, and not the small description that a plan looks at."""
        return "/blobs/" in path and len(self.blobs.get(path.rpartition("/")[2], b"")) > SMALL

    def send(self, path: str, body: bytes, asker: socket.socket) -> None:
        """Send it, a layer byte by byte while the gate is shut: an engine that was told to stop hangs up on one."""
        try:
            slow = self.is_layer(path)
            while slow and len(body) > 1 and not self.gate.wait(0.01):
                asker.sendall(body[:1])
                body = body[1:]
            asker.sendall(body)
        except OSError:
            self.left.append(path)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        self.asked.append(path)
        if path == "/v2/":
            return 200, "application/json", b"{}"
        name, _, rest = path.removeprefix("/v2/").rpartition("/")
        name, _, kind = name.rpartition("/")
        if name in self.forbidden:
            return 401, "application/json", _error("UNAUTHORIZED", "authentication required")
        if kind == "manifests" and (name, rest) in self.manifests:
            return 200, MANIFEST, self.manifests[name, rest]
        if kind == "blobs" and rest in self.blobs:
            return 200, "application/octet-stream", self.blobs[rest]
        return 404, "application/json", _error("MANIFEST_UNKNOWN", "manifest unknown")


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def _part(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(content), "digest": digest(content)}


def _tar(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def registry(engine: Engine) -> Iterator[Registry]:
    made = Registry()
    made.gate.set()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind, body = made.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if status == 200 and self.path != "/v2/":
                self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                made.send(self.path, body, self.connection)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        made.address = f"127.0.0.1:{server.server_port}"
        engine.registries.append(made.address)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            made.gate.set()
            server.shutdown()
            thread.join()
