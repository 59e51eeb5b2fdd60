"""What `policy.yaml` says about approvals: who may give them, how, for how long, and for what beyond the declared."""

from dataclasses import dataclass
from typing import Literal

from systemmanager.operation import Risk

Channel = Literal["webhook", "elicitation", "operator"]


@dataclass(frozen=True, slots=True)
class Demand:
    """Calls of these risks need an approval, on the targets that a selector names (None: on all)."""

    risks: frozenset[Risk]
    targets: str | None = None


@dataclass(frozen=True, slots=True)
class Approvals:
    """`channels` are tried in their order. `elicitation` is the highest risk that whoever sits at the client may say
    yes to; None is none. `approvers` are all who may answer; None is every operator and whomever the webhook names.
    `lifetime` is in seconds.
    """

    channels: tuple[Channel, ...] = ("webhook", "elicitation", "operator")
    elicitation: Risk | None = None
    approvers: tuple[str, ...] | None = None
    lifetime: float = 30 * 60
    require: tuple[Demand, ...] = ()

    def elicits(self, risk: Risk) -> bool:
        """Whether the client itself may be asked."""
        order = list(Risk)
        limit = self.elicitation
        return limit is not None and "elicitation" in self.channels and order.index(risk) <= order.index(limit)


NO_DEMANDS = Approvals()
