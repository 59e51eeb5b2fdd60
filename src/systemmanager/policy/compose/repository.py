"""Which repositories are fetched: https and ssh, from hosts that the policy names, in spellings with one reading."""

import re

from systemmanager.addresses import is_listed, parse
from systemmanager.errors import Denied
from systemmanager.stacks import Repository, StackRules

_HOST = r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])"
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_PATH = r"(?P<path>(?:[A-Za-z0-9._~+-]+/){0,20}[A-Za-z0-9._~+-]+)/?"
_USER = r"(?:(?P<user>[a-z_][a-z0-9_.-]{0,31})@)"
_FORMS = (
    re.compile(rf"(?P<scheme>https)://{_HOST}{_PORT}/{_PATH}"),
    re.compile(rf"(?P<scheme>ssh)://{_USER}?{_HOST}{_PORT}/{_PATH}"),
    re.compile(rf"{_USER}{_HOST}:{_PATH}"),
)


def repository(url: str, rules: StackRules) -> Repository:
    """The repository that a URL names. Raises `Denied`."""
    found = plain(url)
    if found is None:
        raise Denied(
            "the repository's URL is none that is fetched",
            code="repo_not_allowed",
            hint="Write https://host/path or ssh://user@host/path, without password, query or fragment.",
        )
    hosts = rules.hosts
    if is_listed(found.host, hosts):
        return found
    raise Denied(
        f"{found.host} is not among the hosts that stacks come from",
        code="repo_not_allowed",
        hint=f"It would need {found.host} in stacks.hosts of policy.yaml.",
    )


def plain(url: str) -> Repository | None:
    """The one spelling of a repository's URL; None for what can be read in more than one way."""
    if len(url) > 500:
        return None
    match = next((found for form in _FORMS if (found := form.fullmatch(url))), None)
    if match is None:
        return None
    parts = match.groupdict()
    scheme, user = parts.get("scheme") or "ssh", parts.get("user") or ""
    names = parts["path"].split("/")
    if any(name in (".", "..") or name.startswith("-") for name in names):
        return None
    host, usual = parts["host"].lower(), 443 if scheme == "https" else 22
    port = int(parts.get("port") or usual)
    bare = host.strip("[]")
    numeric = re.fullmatch(r"[0-9]+|0x[0-9a-f]*", bare.rpartition(".")[2]) is not None
    if not 0 < port < 65536 or (numeric and str(parse(bare)) != bare) or ".." in host or "-." in host or ".-" in host:
        return None
    if numeric or ":" in bare:
        bare = str(parse(bare))
        host = f"[{bare}]" if ":" in bare else bare
    place = f"{user}@{host}" if user else host
    place += f":{port}" if port != usual else ""
    url = f"{scheme}://{place}/{parts['path']}" if "://" in url else f"{place}:{parts['path']}"
    return Repository(url, scheme, bare, port, user)
