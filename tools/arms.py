"""Arms of a comparison: an attention rule at a budget, and what its decoded tokens read.

Figures come from the session's counters, summed over every stretch that an arm decoded, so a mean
is a mean per decoded token however many stretches there were.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hga.runtime.session import Session
    from hga.runtime.turn_stats import TurnStats


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to attend: a rule and its budget (None for dense, which has none)."""

    attention: str
    budget: str | None

    @property
    def label(self) -> str:
        """The arm for people: `hga 2%`."""
        return self.attention if self.budget is None else f"{self.attention} {self.budget}"

    def row(self) -> dict[str, object]:
        """The keys that begin an arm's row in every JSON object."""
        return {"attention": self.attention, "budget": self.budget}


DENSE = Arm("dense", None)


def arms_of(values: argparse.Namespace) -> list[Arm]:
    """Every rule at every budget, each once, in the order given; dense has no budget."""
    arms: dict[Arm, None] = {}
    for attention in values.attention:
        for budget in (None,) if attention == "dense" else values.budget:
            arms[Arm(attention, budget)] = None
    return list(arms)


def set_arm(session: "Session", arm: Arm) -> None:
    """Let the session's next steps attend as the arm says."""
    session.attention = arm.attention
    if arm.budget is not None:
        session.budget = arm.budget


class Costs:
    """What the decoded tokens of an arm read; `add` after each stretch, before the next reset."""

    def __init__(self) -> None:
        self._tokens = 0
        self._attended = 0.0
        self._read_bytes = 0
        self._index_bytes = 0
        self._recall = 0.0
        self._recall_tokens = 0

    def add(self, stats: "TurnStats") -> None:
        """Count what the session did since its last reset_stats()."""
        n = stats.decode_tokens
        attended, recall = stats.attended_mean, stats.mass_recall
        self._tokens += n
        self._attended += n * (attended or 0.0)
        self._read_bytes += stats.read_bytes
        self._index_bytes += stats.index_bytes
        if recall is not None:
            self._recall += n * recall
            self._recall_tokens += n

    def merge(self, others: Iterable["Costs"]) -> "Costs":
        """This and the others together, as a new object."""
        total = Costs()
        for one in (self, *others):
            total._tokens += one._tokens
            total._attended += one._attended
            total._read_bytes += one._read_bytes
            total._index_bytes += one._index_bytes
            total._recall += one._recall
            total._recall_tokens += one._recall_tokens
        return total

    def row(self) -> dict[str, object]:
        """Means per decoded token: tokens attended, bytes of keys and values, bytes of the routing
        index, share of the exact attention mass that was read; null where nothing was measured."""
        n = self._tokens
        return {
            "attended_mean": self._attended / n if n else None,
            "bytes_per_token": round(self._read_bytes / n) if n else None,
            "index_bytes_per_token": round(self._index_bytes / n) if n else None,
            "mass_recall": self._recall / self._recall_tokens if self._recall_tokens else None,
        }
