"""A stand-in for Proxmox VE's `pct`: takes what pve-container 6.1 takes, refuses the rest,
and writes down what it does.

Its containers are folders below $PCT_STATE; `log` there holds one JSON list per accepted command.
"""

import json
import os
import re
import sys
from pathlib import Path

STATE = Path(os.environ["PCT_STATE"])
FLAG = r"[01]"
OPTIONS: dict[str, dict[str, str]] = {
    "restore": {"storage": r"[A-Za-z][\w.-]*", "unprivileged": FLAG, "unique": FLAG, "force": FLAG, "start": FLAG},
    "set": {"net0": r"name=eth\d,bridge=[\w.-]+(,\w+=[\w:.]+)*", "hostname": r"[A-Za-z0-9-]{1,63}", "onboot": FLAG},
    "start": {},
    "stop": {},
    "status": {},
    "config": {},
    "push": {"perms": r"0[0-7]{3}", "user": r"\d+", "group": r"\d+"},
}
POSITIONALS = {"restore": 2, "push": 3}


def refuse(why: str) -> None:
    sys.exit(f"400 not enough or wrong arguments: {why}")


def parsed(command: str, words: list[str]) -> tuple[list[str], dict[str, str]]:
    places, options = [], {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        if word[2:] not in OPTIONS[command] or not words:
            refuse(f"unknown option {word}")
        options[word[2:]] = words.pop(0)
        if not re.fullmatch(OPTIONS[command][word[2:]], options[word[2:]]):
            refuse(f"{word} {options[word[2:]]}")
    if len(places) != POSITIONALS.get(command, 1) or not re.fullmatch(r"[1-9]\d{2,8}", places[0]):
        refuse(" ".join(places))
    return places, options


def restore(container: Path, places: list[str], options: dict[str, str]) -> None:
    if container.exists() and options.get("force") != "1":
        sys.exit(f"unable to restore CT {places[0]} - CT {places[0]} already exists on node")
    if not places[1].endswith(".tar.zst") or not Path(places[1]).is_file():
        sys.exit("no such archive")
    (container / "etc").mkdir(parents=True)
    (container / "status").write_text("stopped")


def execute(container: Path, words: list[str]) -> None:
    if (container / "status").read_text() != "running":
        sys.exit("container not running")
    program, *arguments = words
    if not program.startswith("/"):
        sys.exit("command not found")  # what pct exec gets is the host's PATH
    if program.endswith("/readlink"):
        print((container / "system").read_text() if (container / "system").exists() else "/nix/store/old")
    if program.endswith("/nix-env"):
        now = container / "system"
        older = container / "older"
        if "--rollback" in arguments:
            now.write_text(older.read_text())
        elif "absent" in arguments[-1]:
            sys.exit("error: path does not exist")
        else:
            older.write_text(now.read_text() if now.exists() else "/nix/store/old")
            now.write_text(arguments[-1])
    if program.endswith("/switch-to-configuration") and "broken" in (container / "system").read_text():
        sys.exit(4)  # as the real one does where a unit fails to start
    if "is-active" in arguments and (container / "system").exists():
        sys.exit(3 if "limping" in (container / "system").read_text() else 0)


def main(command: str, *words: str) -> None:
    if command == "exec":
        id, dashes, *rest = words
        if dashes != "--" or not rest:
            refuse("exec wants -- before the command")
        places = [id]
    elif command in OPTIONS:
        places, options = parsed(command, list(words))
    else:
        refuse(f"unknown command {command}")
    container = STATE / places[0]
    if command not in ("restore",) and not container.exists():
        sys.exit(f"Configuration file 'nodes/pve/lxc/{places[0]}.conf' does not exist")
    if command not in ("status", "config"):
        with (STATE / "log").open("a") as log:
            log.write(json.dumps([command, *words]) + "\n")
    match command:
        case "restore":
            restore(container, places, options)
        case "config":
            kept = container / "config"
            print(kept.read_text() if kept.exists() else "hostname: gateway")
        case "set":
            (container / "config").write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
        case "start":
            (container / "status").write_text("running")
        case "status":
            print("status:", (container / "status").read_text())
        case "push":
            if not Path(places[1]).is_file() or not places[2].startswith("/"):
                sys.exit("can't push that")
        case "exec":
            execute(container, rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
