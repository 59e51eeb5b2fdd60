"""What systemd and the desktop say of a process beside its variables: credentials and folders."""

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from systemmanager.errors import Problem


def credentials(folder: str | None, names: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """Secrets that systemd hands over as files, and the files that can't be read."""
    found: dict[str, str] = {}
    problems = []
    for name in names if folder else ():
        credential = Path(folder or "", name)
        try:
            if credential.is_file():
                found[name] = credential.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            problems.append(Problem(str(credential), "can't be read as text"))
    return found, problems


def default_state(given: Mapping[str, str]) -> str:
    """The state folder where no setting names one: systemd's, then that of XDG."""
    if systemd := given.get("STATE_DIRECTORY"):
        return systemd.partition(":")[0]
    home = given.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    return str(Path(given.get("XDG_STATE_HOME") or Path(home, ".local/state"), "systemmanager"))
