"""A service's `build`: inside the checkout, with nothing of the gateway or the host in it."""

import posixpath
from collections.abc import Iterator
from typing import Any

from systemmanager.policy.compose.findings import (
    Check,
    Finding,
    Location,
    anything,
    checked,
    fields,
    is_set,
    never,
    one_of,
)
from systemmanager.policy.rules.paths import inside

_OUTSIDE = "is outside the checkout"


def within(path: str, folder: str, base: str = "") -> bool:
    """Whether a path is a folder or below it, by its name; links of a checkout were looked at when it was made."""
    whole = posixpath.normpath(posixpath.join(base or folder, path))
    return "://" not in path and inside(whole, (folder,))


def builds(value: Any, at: Location, checkout: str, images: tuple[str, ...] | None) -> Iterator[Finding]:
    if not is_set(value):
        return
    if images is not None:
        yield Finding("build", "", at, "builds an image, and constraints.images of the target can't judge what from")
    context = str(value.get("context") or "")

    def in_checkout(path: Any, place: Location) -> Iterator[Finding]:
        if is_set(path) and not (context.startswith("/") and within(str(path), checkout, context)):
            yield Finding("build_context", str(path), place, f"{path} {_OUTSIDE}")

    def is_context(path: Any, place: Location) -> Iterator[Finding]:
        if not str(path).startswith("/") or not within(str(path), checkout):
            yield Finding("build_context", str(path), place, f"{path} {_OUTSIDE}")

    yield from checked(value, at, {**_BUILD, "context": is_context, "dockerfile": in_checkout})


_BUILD: dict[str, Check] = {
    **fields(anything, ("args", "dockerfile_inline", "target", "no_cache", "pull", "shm_size", "ulimits", "platforms")),
    "additional_contexts": never("build_context", "reads what is not in the checkout"),
    "cache_from": never("build_cache", "reads a cache that the gateway does not judge"),
    "cache_to": never("build_cache", "writes a cache that the gateway does not judge"),
    "entitlements": never("build_privileged", "builds with more rights"),
    "extra_hosts": anything,
    "isolation": one_of("isolation", "is for Windows", "default"),
    "labels": anything,
    "network": one_of("build_network", "builds in a network of the host", "default", "none"),
    "privileged": never("build_privileged", "builds with more rights"),
    "secrets": never("build_secrets", "hands files or variables to the build"),
    "ssh": never("build_ssh", "hands the gateway's SSH agent or keys to the build"),
    "tags": never("build_tags", "names the image like others"),
}
