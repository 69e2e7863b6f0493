"""The memory bill: what a model and a context need, against what the user allows."""

from collections.abc import Sequence
from dataclasses import dataclass


class BudgetError(MemoryError):
    """The memory budget cannot hold what was asked for."""


@dataclass(frozen=True, slots=True)
class BillLine:
    """One item of the bill; `by_context` grows with --ctx."""

    name: str
    n_bytes: int
    by_context: bool = False


def total(bill: Sequence[BillLine]) -> int:
    """Sum of the bill in bytes."""
    return sum(line.n_bytes for line in bill)


def check(bill: Sequence[BillLine], mem: int | None) -> None:
    """BudgetError listing every line if the bill exceeds mem bytes (None: no limit)."""
    if mem is None or total(bill) <= mem:
        return
    fixed = sum(line.n_bytes for line in bill if not line.by_context)
    help_ = "a smaller --ctx needs less" if fixed < mem else "no --ctx is small enough"
    lines = ", ".join(f"{line.name} {line.n_bytes / 2**20:.0f} MiB" for line in bill)
    # Rounded so that what is needed is enough when it is given.
    needed, allowed = -(-total(bill) // 2**20), mem // 2**20
    raise BudgetError(f"{needed} MiB are needed, --mem allows {allowed} MiB: {lines} ({help_})")
