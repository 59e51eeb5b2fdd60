"""Who is the same person: nobody answers their own request, and two answers need two people."""

import pwd
import unicodedata


def same(one: str, other: str) -> bool:
    """Whether two names may mean one person. In doubt they do: then a third person has to be asked."""
    return not _names(one).isdisjoint(_names(other))


def listed(person: str, allowed: tuple[str, ...]) -> bool:
    """Whether a list of approvers names a person: by the name itself, or a local one by uid or user name."""
    own = {person.casefold()} | (_account(person) if person.startswith("local:") else set())
    at = person.casefold().rpartition("@")
    own |= {f"*@{at[2]}"} if at[0] and at[2] else set()
    return any(name.casefold() in own for name in allowed)


def _names(person: str) -> set[str]:
    """All that a person may be called: `local:0` is `root`, `Ann+x@example.com` is `ann@example.com` and `ann`."""
    name = unicodedata.normalize("NFKC", person).casefold().strip().removeprefix("oidc:")
    found = {name}
    before, at, domain = name.rpartition("@")
    if at:
        short = before.partition("+")[0]
        found |= {f"{short}@{domain}", short}
        name = short
    return found | _account(name)


def _account(name: str) -> set[str]:
    """Both ways to name an account of this machine, by uid and by user name; nothing when there is none."""
    bare = name.removeprefix("local:")
    try:
        uid = bare.isascii() and bare.isdigit() and name != bare
        account = pwd.getpwuid(int(bare[:20])) if uid else pwd.getpwnam(bare)
    except (KeyError, ValueError, OverflowError):
        return {f"local:{int(bare[:20])}"} if bare.isascii() and bare.isdigit() and name != bare else set()
    return {f"local:{account.pw_uid}", f"local:{account.pw_name}", account.pw_name}
