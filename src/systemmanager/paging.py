"""One page of a longer list."""

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def page(rows: Sequence[T], limit: int, cursor: str | None) -> tuple[list[T], dict[str, Any]]:
    """The rows of this page, and the fields of `ports.Page` that go with them."""
    start = int(cursor or 0)
    end = start + limit
    more = end < len(rows)
    return list(rows[start:end]), {"total": len(rows), "truncated": more, "next": str(end) if more else None}
