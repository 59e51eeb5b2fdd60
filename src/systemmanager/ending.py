"""How a command ends: an error is one clear message on standard error, and an exit status that is not 0."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cyclopts import CycloptsError

from systemmanager.errors import ConfigError, GatewayError


@contextmanager
def told() -> Iterator[None]:
    """Tell what a command raises, and exit: with 2 for a wrong command line, with 130 for Ctrl-C, else with 1."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here a full disk can still be told
    except CycloptsError as error:
        _say(str(error), "systemmanager --help shows the commands.")
        sys.exit(2)
    except ConfigError as error:
        _say(*map(str, error.problems))
        sys.exit(1)
    except GatewayError as error:
        _say(error.message, error.hint or "")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            place = f"{error.filename}: " if error.filename else "the output can't be written: "
            _say(f"{place}{error.strerror or error}")
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say(*lines: str) -> None:
    """What a file holds reaches the terminal as text, not as its commands."""
    from systemmanager.redaction import visible

    print(*map(visible, lines), sep="\n", file=sys.stderr)
