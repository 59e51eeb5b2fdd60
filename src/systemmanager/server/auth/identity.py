"""Who a verified credential names. What that one may do is read from the policy, on each request."""

from dataclasses import dataclass

from systemmanager.policy.grants import common
from systemmanager.policyfile import Policy
from systemmanager.request import Grant, Principal, PrincipalKind


class Refused(Exception):
    """A credential that is not accepted. The message is for the log and the audit, never for the client."""


class Missing(Refused):
    """No credential at all."""


class Expired(Refused):
    """It was good, for as long as it was for."""


class Unavailable(Refused):
    """Whoever could verify the credential does not answer: it is refused, and may be good later."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What one credential says, verified.

    `limits` are what the credential says about rights: a token of the gateway's own is granted exactly that; for
    anybody else it only narrows what the policy grants (None: it says nothing, and narrows nothing). `expires_at` in
    seconds since 1970, `id` is the credential's own name.
    """

    subject: str
    kind: PrincipalKind
    verified_by: str
    limits: tuple[Grant, ...] | None = None
    groups: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    expires_at: float | None = None
    id: str | None = None


def principal_of(identity: Identity, policy: Policy) -> Principal:
    """The Principal of an identity under the policy of this moment: never kept, so that a reload counts at once."""
    if identity.kind == "token":
        grants = identity.limits or ()
    else:
        grants = policy.grants_for(identity.subject, identity.groups, identity.tags)
        if identity.limits is not None:
            grants = common(grants, identity.limits)
    return Principal(
        identity.subject, identity.kind, grants, identity.verified_by, identity.groups, identity.tags, identity.id
    )
