"""What the catalogue's tests stand on."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import structlog

from systemmanager.logs import hush
from tests.attacks.arena import Arena
from tests.attacks.shells import Arrived, sent_through_every_shell
from tests.conftest import need
from tests.real.openssh import missing, openssh


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    made = Arena(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    return made


class Lines:
    """A log that is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def msg(self, message: str) -> None:
        self.lines.append(message)

    log = debug = info = warn = warning = error = critical = exception = failure = fatal = msg


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the gateway logs meanwhile, as `serve` would write it."""
    lines = Lines()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    hush()
    yield lines.lines
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Arrived]]:
    """What came of each value of the group `shell` in each login shell; sent once."""
    need("ssh", missing())
    with openssh() as servers:
        yield sent_through_every_shell(servers, tmp_path_factory.mktemp("shells"))
