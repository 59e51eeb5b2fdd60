"""Tries what stacks need of the gateway's unit, and prints what came of each: {"name": "done" or why not}.

python3 -I needed.py STATE_FOLDER ADDRESS:PORT, in the unit in the gateway's place
"""

import json
import subprocess
import sys
from pathlib import Path

PLACE = Path(sys.argv[1], "needed")
COMPOSE = "services: {web: {image: nginx}}"


def says(word: str, *argv: str, status: int = 0) -> None:
    """Run it, and see it say that."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(PLACE), "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(argv, cwd=PLACE, env=environment, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != status or word not in done.stdout + done.stderr:
        raise OSError(f"{argv[0]} ended with {done.returncode}: {done.stdout + done.stderr}")


def keeps_a_commit() -> None:
    says("", "git", "init", "--quiet", ".")
    Path(PLACE, "docker-compose.yml").write_text(COMPOSE)
    says("", "git", "add", ".")
    says("", "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", "x")
    says("docker-compose.yml", "git", "ls-tree", "HEAD")


def starts_ssh() -> None:
    """It gets as far as to connect, where nobody listens."""
    says("Connection refused", "git", "ls-remote", "ssh://127.0.0.1:1/x", status=128)


def resolves_a_file() -> None:
    says("nginx", "docker-compose", "-f", "docker-compose.yml", "config")


NEEDED = {
    "git keeps a commit": keeps_a_commit,
    "git starts ssh": starts_ssh,
    "Compose resolves a file": resolves_a_file,
}


def main() -> None:
    PLACE.mkdir(exist_ok=True)
    found = {}
    for name, needed in NEEDED.items():
        try:
            needed()
            found[name] = "done"
        except (OSError, subprocess.SubprocessError) as error:
            found[name] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
