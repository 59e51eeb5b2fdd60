"""The log, on standard error: for people on a terminal, else one JSON object a line."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

import structlog

from systemmanager.redaction import Redactor

log = structlog.get_logger("systemmanager")

_redactor = Redactor()


def hide(secrets: Iterable[str]) -> None:
    """Keep these out of the log, beside what looks like a secret."""
    global _redactor
    _redactor = Redactor(secrets)


def quiet_libraries() -> None:
    """Libraries that tell at DEBUG what they send and get, credentials too, tell warnings only."""
    for name in ("asyncssh", "docker", "hpack", "httpcore", "httpx", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def redacted(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """structlog processor: what a defect says of itself may hold what a target said."""
    return {name: _redactor.value(value) for name, value in event.items()}


def configure(level: str) -> None:
    """Set the log up for this process; other libraries' warnings come out in the same form."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, redacted, structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.format_exc_info, redacted, structlog.processors.JSONRenderer()]
    )
    number = getattr(logging, level)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    quiet_libraries()
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)
    hush()


def hush() -> None:
    """Keep fastmcp from logging what clients send, as it came: the gateway says the same, without secrets."""
    logging.getLogger("fastmcp").setLevel(logging.CRITICAL)
