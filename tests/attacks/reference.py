"""The policy once more, by somebody who has read the README and never seen the rules: slow, naive, and independent.

Nothing of `systemmanager.policy` or `systemmanager.addresses` is used here. It answers allow, ask or deny for the small
world of `worlds.py`; where the two differ, one of them is wrong.
"""

from fnmatch import fnmatchcase
from typing import Any

PORTS_OF_KIND = {
    "local": ["Shell", "Files", "Facts", "Network", "Docker", "Probe", "Fleet"],
    "ssh": ["Shell", "Files", "Facts", "Network", "Docker", "Probe", "Fleet"],
    "docker": ["Docker", "Probe", "Fleet"],
    "http": ["Http", "Probe", "Fleet"],
}
CALLS_A_MINUTE = {"critical": 5, "high": 10, "moderate": 20, "low": 100}
ADDRESSES = {
    "8.8.8.8": "public",
    "10.0.0.5": "private",
    "192.168.1.1": "private",
    "100.64.0.7": "private",
    "127.0.0.1": "loopback",
    "169.254.169.254": "metadata",
    "::1": "loopback",
    "::ffff:10.0.0.5": "private",
    "2001:4860:4860::8888": "public",
}
THE_SAME = {"::ffff:10.0.0.5": "10.0.0.5"}
REPOSITORIES = {
    "https://github.com/a/b": "github.com",
    "https://GitHub.com/a/b.git": "github.com",
    "git@github.com:a/b": "github.com",
    "https://evil.example/a": "evil.example",
    "https://10.0.0.5/a": "10.0.0.5",
}
"""Those that have one reading, with their hosts."""
METADATA_NAMES = ["metadata.google.internal"]
LISTED_BLOCKS = {
    "10.0.0.0/8": ["10.0.0.5"],
    "10.0.0.5": ["10.0.0.5"],
    "127.0.0.0/8": ["127.0.0.1"],
    "169.254.169.254": ["169.254.169.254"],
    "8.8.8.8": ["8.8.8.8"],
    "::1": ["::1"],
    # Everything is public and private addresses: what is more dangerous wants a block of its own.
    "0.0.0.0/0": ["8.8.8.8", "10.0.0.5", "192.168.1.1", "100.64.0.7"],
}
CHANGES = ["write", "admin"]
ANSWERED_WHILE_FROZEN = ["health_check", "list_targets", "explain_access"]


def evaluate(one: dict[str, Any]) -> str:
    """Every question in turn; one no is a no, and a person is asked only when nothing else is against it."""
    no = [
        not _holds_a_scope(one),
        one["port"] not in PORTS_OF_KIND[one["kind"]],
        one["fault"] is not None,
        not _offers_a_capability(one),
        not _path_is_allowed(one),
        not _unit_is_allowed(one),
        not _host_is_allowed(one),
        not _image_is_allowed(one),
        not _repository_is_allowed(one),
        one["privileged"] and not one["root"] and one["sudo_policy"] == "none",
        _is_frozen(one),
        one["running"] >= one["concurrency"] * 11,
        one["recent"] >= CALLS_A_MINUTE[one["risk"]],
    ]
    if any(no):
        return "deny"
    wanted = one["approval"] or one["demanded"] or (one["tainted"] and _changes(one))
    return "ask" if wanted and one["approvers"] < (2 if one["dual"] else 1) else "allow"


def _holds_a_scope(one: dict[str, Any]) -> bool:
    if not one["grants"]:
        return False
    return not one["scopes"] or any(scope in grant for grant in one["grants"] for scope in one["scopes"])


def _offers_a_capability(one: dict[str, Any]) -> bool:
    return not one["capabilities"] or any(name in one["offers"] for name in one["capabilities"])


def _changes(one: dict[str, Any]) -> bool:
    return any(scope.split(":")[1] in CHANGES for scope in one["scopes"])


def _path_is_allowed(one: dict[str, Any]) -> bool:
    path = one["path"]
    if path is None:
        return True
    names = path.split("/")
    if ".." in names:
        return False
    for root in one["paths"]:
        own = [name for name in root.split("/") if name]
        if [name for name in names if name][: len(own)] == own:
            return True
    return False


def _unit_is_allowed(one: dict[str, Any]) -> bool:
    if one["unit"] is None or one["units"] is None or not _changes(one):
        return True
    return any(fnmatchcase(_whole(one["unit"]), _whole(pattern)) for pattern in one["units"])


def _whole(unit: str) -> str:
    return unit if unit.endswith((".service", ".socket", ".timer", "*")) else unit + ".service"


def _host_is_allowed(one: dict[str, Any]) -> bool:
    host, listed = one["host"], one["hosts"]
    if host is None:
        return True
    if one["ports"] is not None and any(port not in one["ports"] for port in one["asked_ports"]):
        return False
    if host in ADDRESSES:
        return _address_is_allowed(host, listed, one["neighbours"])
    return _name_is_allowed(host, listed)


def _address_is_allowed(address: str, listed: list[str] | None, neighbours: list[str]) -> bool:
    kind, address = ADDRESSES[address], THE_SAME.get(address, address)
    if listed is not None and any(address in LISTED_BLOCKS.get(entry, []) for entry in listed):
        return True
    if listed is None or "*" in listed:
        return kind == "public" or (kind == "private" and address in neighbours)
    return False


def _name_is_allowed(name: str, listed: list[str] | None) -> bool:
    """Whether it may be looked up; its addresses are judged later."""
    if name in METADATA_NAMES:
        return listed is not None and name in listed
    if listed is None or "*" in listed:
        return True
    return any(entry in LISTED_BLOCKS or fnmatchcase(name, entry) for entry in listed)


def _image_is_allowed(one: dict[str, Any]) -> bool:
    image, listed = one["image"], one["images"]
    if image is None or listed is None:
        return True
    return any(_image_fits(image, one["tag"], entry) for entry in listed)


def _image_fits(image: str, tag: str, entry: str) -> bool:
    wanted, _, wanted_tag = entry.partition(":")
    if wanted_tag and wanted_tag != tag:
        return False
    image, wanted = _canonical(image), _canonical(wanted)
    return fnmatchcase(image, wanted) and image.count("/") >= wanted.count("/")


def _canonical(image: str) -> str:
    """nginx, library/nginx and docker.io/library/nginx are one image."""
    for begin in ("docker.io/library/", "docker.io/", "library/"):
        image = image.removeprefix(begin)
    return image


def _repository_is_allowed(one: dict[str, Any]) -> bool:
    """https, or ssh in either spelling, from a host that is listed; no other scheme and nothing with two readings."""
    if one["repo"] is None:
        return True
    host = REPOSITORIES.get(one["repo"])
    if host is None:
        return False
    if "*" in one["repo_hosts"]:
        return True
    return any(host in LISTED_BLOCKS.get(entry, []) or fnmatchcase(host, entry) for entry in one["repo_hosts"])


def _is_frozen(one: dict[str, Any]) -> bool:
    if one["own"] and one["tool"] in ANSWERED_WHILE_FROZEN:
        return False
    if "all" in one["frozen"] or "target" in one["frozen"]:
        return True
    if "writes" in one["frozen"] and _changes(one):
        return True
    return "egress" in one["frozen"] and (one["reaches_out"] or one["kind"] == "http")
