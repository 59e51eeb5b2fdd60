"""Add to requirements.lock, as comments, the wheel of each package that the appliance installs, per system.

python nix/lock.py requirements.lock RUNTIME    (RUNTIME: the same lock without the extras)

pip itself is asked which wheels CPython takes there; nothing is downloaded but metadata. One line per wheel:
# wheel <system>,<system> <file name> sha256:<hex>
and one for each package that only the project's own tests need.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = "3.13"
SYSTEMS = ("aarch64-linux", "x86_64-linux")
GLIBC = range(5, 40)
TESTS = "# for the tests alone"
"""What install.sh leaves out."""


def blocks(text: str) -> dict[str, str]:
    """What the lock says of each package: its requirement and its hashes, without older comments."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    entries = re.split(r"\n(?=\S)", "\n".join(lines).strip())
    return {canonicalize_name(Requirement(_requirement(entry)).name): entry for entry in entries}


def _requirement(entry: str) -> str:
    return entry.partition("\\")[0].strip()


def wanted(entry: str, system: str) -> bool:
    """Whether a package is for this system and Python, by its marker."""
    machine = system.partition("-")[0]
    where = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{PYTHON}.0",
        "python_version": PYTHON,
        "sys_platform": "linux",
    }
    marker = Requirement(_requirement(entry)).marker
    return marker is None or marker.evaluate(where)


def wheels(entries: list[str], system: str) -> list[tuple[str, str]]:
    """File name and SHA-256 of the wheel that pip chooses for each package."""
    machine = system.partition("-")[0]
    tags = [f"--platform=manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)]
    tags += [f"--platform=manylinux2014_{machine}", f"--platform=linux_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "requirements.txt")
        asked.write_text("".join(re.sub(r" ;[^\\\n]*", "", entry, count=1) + "\n" for entry in entries))
        report = Path(folder, "report.json")
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--no-deps", "--require-hashes", "--only-binary=:all:", *tags,
            f"--python-version={PYTHON}", "--implementation=cp", f"--target={folder}", f"--report={report}",
            "-r", str(asked),
        ]  # fmt: skip
        subprocess.run(command, check=True)  # noqa: S603
        found = [entry["download_info"] for entry in json.loads(report.read_text())["install"]]
    return [(one["url"].rpartition("/")[2], one["archive_info"]["hashes"]["sha256"]) for one in found]


def main(lock: Path, runtime: Path) -> None:
    every, needed = blocks(lock.read_text()), blocks(runtime.read_text())
    chosen: dict[str, dict[tuple[str, str], list[str]]] = {}
    for system in SYSTEMS:
        for wheel in wheels([every[name] for name in needed if wanted(every[name], system)], system):
            name = canonicalize_name(wheel[0].partition("-")[0])
            chosen.setdefault(name, {}).setdefault(wheel, []).append(system)
    lines = []
    for name, entry in every.items():
        lines.append(entry)
        lines += [] if name in needed else [TESTS]
        lines += [
            f"# wheel {','.join(for_)} {file} sha256:{hash}" for (file, hash), for_ in chosen.get(name, {}).items()
        ]
    lock.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
