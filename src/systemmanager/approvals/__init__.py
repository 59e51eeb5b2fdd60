"""Who must say yes: approval requests, bound to exactly one call, and the ways to a person."""
