"""Image references: what a pattern of `constraints.images` names."""

from fnmatch import fnmatchcase

_HUBS = ("docker.io", "index.docker.io", "registry-1.docker.io")


def _split(reference: str) -> tuple[str, str, str]:
    """Name, tag and digest of an image reference; what is not there is ""."""
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, tag, digest


def _names(name: str) -> list[str]:
    """Every way to write one image's name: `nginx` is `library/nginx` is `docker.io/library/nginx`."""
    first, slash, rest = name.partition("/")
    on_hub = not slash or not ("." in first or ":" in first or first == "localhost")
    if not on_hub and first not in _HUBS:
        return [name]
    path = name if on_hub else rest
    short = path.removeprefix("library/")
    names = [path, f"docker.io/{path}"]
    if "/" not in short:
        names = [short, f"library/{short}", f"docker.io/{short}", f"docker.io/library/{short}"]
    return names


def _name_matches(name: str, pattern: str) -> bool:
    """Part by part, so that no `*` reaches over a `/`; as the last part it stands for everything below."""
    parts, globs = name.split("/"), pattern.split("/")
    if globs[-1] == "*" and len(parts) > len(globs):
        parts = [*parts[: len(globs) - 1], "/".join(parts[len(globs) - 1 :])]
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def image_matches(image: str, tag: str, pattern: str) -> bool:
    """Whether a pattern names an image. A pattern without tag or digest is for each of them."""
    name, own_tag, digest = _split(image)
    wanted, wanted_tag, wanted_digest = _split(pattern)
    first, slash, rest = wanted.partition("/")
    wanted = f"docker.io/{rest}" if slash and first in _HUBS else wanted
    if wanted_digest and digest != wanted_digest:
        return False
    # A digest says which image it is, whatever tag stands beside it.
    if wanted_tag and (digest or not fnmatchcase(own_tag or tag or "latest", wanted_tag)):
        return False
    return any(_name_matches(one, wanted) for one in _names(name))
