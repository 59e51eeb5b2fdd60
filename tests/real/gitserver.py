"""A real git server over https: `git http-backend` behind TLS of an authority of its own, on loopback.

`repositories` makes one: `repositories.commit("app", {"docker-compose.yml": "..."})` answers the commit's id, and
`repositories.url("app")` is where it is fetched from.
"""

import base64
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.real.sites import issue

CONFIG = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main")


def git(folder: Path, *argv: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), *CONFIG, *argv]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return str(done.stdout).strip()


@dataclass
class Repositories:
    """`address` is HOST:PORT of the server; `authority` its certificate; `token` what it wants, where it wants one."""

    folder: Path
    address: str = ""
    authority: Path = Path()
    token: str | None = None
    asked: list[str] = field(default_factory=list)
    hang: bool = False
    released: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str) -> str:
        return f"https://{self.address}/{name}.git"

    def bare(self, name: str) -> Path:
        return self.folder / "served" / f"{name}.git"

    def commit(
        self, name: str, files: Mapping[str, str], links: Mapping[str, str] | None = None, branch: str = "main"
    ) -> str:
        """Make these the files of a branch, in a new commit."""
        work = self.folder / "work" / name
        if not work.exists():
            work.mkdir(parents=True)
            self.bare(name).mkdir(parents=True)
            git(self.bare(name), "init", "--quiet", "--bare", ".")
            git(work, "init", "--quiet", ".")
        git(work, "checkout", "--quiet", "-B", branch)
        git(work, "rm", "-rq", "--ignore-unmatch", ".")
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        for path, leads in (links or {}).items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).symlink_to(leads)
        git(work, "add", "-A", ".")
        git(work, "commit", "--quiet", "--allow-empty", "-m", "change")
        git(work, "push", "--quiet", "--force", str(self.bare(name)), branch)
        return git(work, "rev-parse", "HEAD")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request, by git's own CGI program (git-http-backend(1))."""
        self.asked.append(f"{handler.command} {handler.path}")
        if self.hang:
            self.released.wait(30)
            return
        given = handler.headers.get("Authorization", "")
        if self.token is not None and given != f"Basic {base64.b64encode(self.token.encode()).decode()}":
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="git"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        path, _, query = handler.path.partition("?")
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.folder / "served"), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": handler.command, "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": handler.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": handler.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": handler.headers.get("Git-Protocol", ""), "HOME": str(self.folder),
            "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "uploadpack.allowReachableSHA1InWant", "GIT_CONFIG_VALUE_1": "true",
        }  # fmt: skip
        said = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = said.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        handler.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def repositories(tmp_path: Path) -> Iterator[Repositories]:
    need("git", None if Path("/usr/bin/git").exists() else "git is not installed")
    made = Repositories(tmp_path / "git-server")
    (made.folder / "served").mkdir(parents=True)
    issued = issue(made.folder / "ca.pem", "127.0.0.1", "localhost")
    made.authority = issued.pem

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        server.socket = issued.context.wrap_socket(server.socket, server_side=True)
        made.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield made
        finally:
            made.released.set()
            server.shutdown()
            thread.join()
