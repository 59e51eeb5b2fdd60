"""Where a client gets a token for this gateway: protected resource metadata (RFC 9728), and the challenge to it."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

WELL_KNOWN = "/.well-known/oauth-protected-resource"
ENDPOINT = "/mcp"

SCOPES = ("openid", "email", "profile")
"""What a client should ask the issuer for: who the person is. What they may do stands in policy.yaml."""


class Resource:
    """The gateway as a resource of one issuer. Addresses are texts throughout: they are compared byte for byte.

    The endpoint and the gateway as a whole are a resource each, with metadata at its own address (section 3.1).
    """

    def __init__(self, base_url: str, issuer: str) -> None:
        parts = urlsplit(base_url)
        self.audiences = frozenset({base_url, f"{base_url}/", f"{base_url}{ENDPOINT}"})
        self.documents: dict[str, dict[str, Any]] = {}
        for end in ("", ENDPOINT):
            document = {
                "resource": f"{base_url}{end}",
                "authorization_servers": [issuer],
                "scopes_supported": list(SCOPES),
                "bearer_methods_supported": ["header"],
                "resource_name": "SystemManager",
            }
            # Behind a proxy that takes the path away, and in front of it.
            self.documents[f"{WELL_KNOWN}{end}"] = self.documents[f"{WELL_KNOWN}{parts.path}{end}"] = document
        path = f"{WELL_KNOWN}{parts.path}{ENDPOINT}"
        self._metadata = urlunsplit(parts._replace(path=path))

    @property
    def challenge(self) -> list[str]:
        """The parameters of `WWW-Authenticate: Bearer` that lead a client to a token."""
        return [f'resource_metadata="{self._metadata}"', f'scope="{" ".join(SCOPES)}"']
