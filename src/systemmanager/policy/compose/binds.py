"""What of a host may be mounted into a container."""

import posixpath
from collections.abc import Iterator

from systemmanager.policy.compose.findings import Finding, Location
from systemmanager.policy.rules.paths import inside

_SOCKETS = (
    "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock",
    "/run/docker/containerd/containerd.sock",
)  # fmt: skip


def plain(path: str) -> str:
    """A path without dots and doubled slashes; /var/run is a link to /run nearly everywhere."""
    path = "/" + posixpath.normpath(path).lstrip("/")
    return path.removeprefix("/var") if path == "/var/run" or path.startswith("/var/run/") else path


def mounted(
    source: str, at: Location, roots: tuple[str, ...], sockets: tuple[str, ...], checkout: str
) -> Iterator[Finding]:
    """Whether a folder or file of the host may be mounted: below a root, and not the way to the engine itself."""
    path = plain(source)
    if inside(path, (plain(checkout),)):
        below = path.removeprefix(plain(checkout)).lstrip("/") or "."
        why = f"mounts {below} of the checkout: small text files are copied in, folders of them with read_only"
        yield Finding("checkout", below, at, f"{why}; data needs a named volume")
        return
    known = {*_SOCKETS, *map(plain, sockets)}
    if path.endswith((".sock", ".socket")) or any(inside(socket, (path,)) for socket in known):
        yield Finding("docker_socket", path, at, f"gives the container the Docker Engine, and so the host ({path})")
    elif path.startswith(("/proc", "/sys", "/dev")) and path.split("/")[1] in ("proc", "sys", "dev"):
        yield Finding("bind", path, at, f"mounts {path} of the host")
    elif not source.startswith("/") or not inside(path, tuple(map(plain, roots))):
        yield Finding("bind", path, at, f"mounts {path} of the host, which is below none of stacks.roots")
