"""What an operation would do, found out by looking: what changes, what has to hold until then, and the way back."""

from typing import Any

from pydantic import Field

from systemmanager.ports import FreeText, Result


class Change(Result):
    """One thing that would be another afterwards; without `before` it is new, without `after` it is gone."""

    what: str = Field(description="unit nginx.service, container db, package curl ...")
    field: str | None = Field(default=None, description="What of it.")
    before: str | None = None
    after: str | None = None


class Inverse(Result):
    """The call that undoes it, on the same target."""

    tool: str
    arguments: dict[str, Any]


class Plan(Result):
    """What a plan function answers. It has only looked.

    `preconditions` are facts by name, such as a container's id: when one of them is another before the plan is carried
    out, the world has moved. What others wrote, such as a diff of their files, stands in `diff` and nowhere else.
    """

    changes: list[Change]
    preconditions: dict[str, str | None]
    inverse: Inverse | None = None
    no_inverse: str | None = Field(default=None, description="Why nothing undoes it.")
    notes: list[str] | None = None
    diff: FreeText | None = None
