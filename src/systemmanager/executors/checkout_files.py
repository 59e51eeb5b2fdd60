"""Files of a checkout that a stack mounts: they are on the gateway, and the engine may be elsewhere.

So they travel inside the configuration: what would be mounted from the checkout, and `configs` and `secrets` of its
files, become configs and secrets with their content in them. Compose copies these into each container. What is neither
small nor text stays as it is, and is judged as what it is: a mount of a folder of the host.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LARGEST_FILE = 256 * 1024
MOST_BYTES = 1024 * 1024
MOST_FILES = 200

Json = dict[str, Any]


class _Carried:
    """The contents that one configuration carries; `variables` are those of secrets, for Compose's environment."""

    def __init__(self, checkout: Path, stack: str) -> None:
        self._root, self._stack = checkout.resolve(), stack
        self._left, self._files = MOST_BYTES, MOST_FILES
        self.configs: Json = {}
        self.variables: dict[str, str] = {}

    def files(self, source: str) -> list[tuple[str, str, int]] | None:
        """What is at a path: (path below it, content, mode) of each file; None where it is not to be carried."""
        path = Path(source)
        if not path.is_absolute() or not path.exists() or not path.resolve().is_relative_to(self._root):
            return None
        found = []
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_dir():
                continue
            text = self._text(file)
            if text is None:
                return None
            below = "" if file == path else "/" + file.relative_to(path).as_posix()
            found.append((below, text, 0o555 if file.stat().st_mode & 0o100 else 0o444))
        return found

    def _text(self, file: Path) -> str | None:
        size = file.stat().st_size
        if size > min(LARGEST_FILE, self._left) or self._files < 1 or not file.resolve().is_relative_to(self._root):
            return None
        self._left, self._files = self._left - size, self._files - 1
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return None
        return None if "\0" in text else text

    def config(self, content: str) -> str:
        """A config with this content, by its name."""
        name = f"carried-{_digest(content)}"
        self.configs[name] = {"name": f"{self._stack}_{name}", "content": content.replace("$", "$$")}
        return name

    def variable(self, content: str) -> str:
        name = f"CARRIED_{_digest(content)}"
        self.variables[name] = content
        return name


def carried(config: Mapping[str, Any], checkout: Path, stack: str) -> tuple[Json, dict[str, str]]:
    """The configuration with the checkout's files in it, and the variables that its secrets are made of."""
    given = _Carried(checkout, stack)
    configs = {name: _config(one or {}, given) for name, one in (config.get("configs") or {}).items()}
    secrets = {name: _secret(one or {}, given) for name, one in (config.get("secrets") or {}).items()}
    services = {name: _service(one, given) for name, one in (config.get("services") or {}).items()}
    found: Json = {**config, "services": services}
    if configs or given.configs:
        found["configs"] = {**configs, **given.configs}
    if secrets:
        found["secrets"] = secrets
    return found, given.variables


def _digest(content: str) -> str:
    """Part of a name, so that a service is made anew when a file of its changes, and only then."""
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _only(source: Any, given: _Carried) -> str | None:
    files = given.files(source) if isinstance(source, str) else None
    return files[0][1] if files and len(files) == 1 and not files[0][0] else None


def _config(one: Json, given: _Carried) -> Json:
    if (content := _only(one.get("file"), given)) is None:
        return one
    return {**{key: value for key, value in one.items() if key != "file"}, "content": content.replace("$", "$$")}


def _secret(one: Json, given: _Carried) -> Json:
    if (content := _only(one.get("file"), given)) is None:
        return one
    kept = {key: value for key, value in one.items() if key != "file"}
    return {**kept, "environment": given.variable(content)}


def _service(one: Json, given: _Carried) -> Json:
    mounts = one.get("volumes") or []
    kept: list[Any] = []
    added: list[Json] = []
    for mount in mounts:
        parts = list(_parts(mount, given))
        if parts:
            added += parts
        else:
            kept.append(mount)
    if not added:
        return one
    service = {**one, "configs": [*(one.get("configs") or []), *added]}
    service.pop("volumes")
    return {**service, "volumes": kept} if kept else service


def _parts(mount: Any, given: _Carried) -> Iterator[Json]:
    """What a mount of the checkout becomes; nothing for any other. A folder that the container may write is no copy."""
    if not isinstance(mount, Mapping) or mount.get("type") != "bind":
        return
    source, target = str(mount.get("source")), str(mount.get("target"))
    if Path(source).is_dir() and not mount.get("read_only"):
        return
    for below, content, mode in given.files(source) or ():
        yield {"source": given.config(content), "target": f"{target}{below}", "mode": mode}
