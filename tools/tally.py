"""Tallies of retrieval: hits, values found and what the arm read, per cell of a grid."""

from collections.abc import Hashable, Iterable

from hga.tools.arms import Arm, Costs


class Tally:
    """What one arm achieved in one cell."""

    def __init__(self) -> None:
        self.costs = Costs()
        self._hits = 0
        self._total = 0
        self._found = 0.0

    def add(self, found: float) -> None:
        """Count a question of whose values this share was found; a hit finds all of them."""
        self._total += 1
        self._found += found
        self._hits += found >= 1

    def row(self) -> dict[str, object]:
        """hits of total questions, the mean share of values found, and the costs."""
        return {
            "hits": self._hits,
            "total": self._total,
            "found": self._found / self._total if self._total else None,
            **self.costs.row(),
        }

    @staticmethod
    def of(parts: Iterable["Tally"]) -> "Tally":
        """Several cells as one."""
        total, parts = Tally(), list(parts)
        total.costs = total.costs.merge(part.costs for part in parts)
        total._hits = sum(part._hits for part in parts)
        total._total = sum(part._total for part in parts)
        total._found = sum(part._found for part in parts)
        return total


Cell = tuple[Hashable, ...]


class Grid:
    """Tallies by arm and cell; a cell is a tuple of values of the named keys."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = keys
        self._tallies: dict[tuple[Arm, Cell], Tally] = {}

    def at(self, arm: Arm, *cell: Hashable) -> Tally:
        """The tally of a cell, new where there was none."""
        return self._tallies.setdefault((arm, cell), Tally())

    def rows(self, *keys: str) -> list[dict[str, object]]:
        """A row per arm and combination of these keys, the other keys summed over, in the order
        in which they were first seen, arm by arm."""
        names = [key for key in self._keys if key in keys]
        merged: dict[tuple[Arm, Cell], list[Tally]] = {}
        for (arm, cell), tally in self._tallies.items():
            kept = (value for key, value in zip(self._keys, cell, strict=True) if key in keys)
            merged.setdefault((arm, tuple(kept)), []).append(tally)
        arms = list(dict.fromkeys(arm for arm, _ in merged))
        return [
            {**arm.row(), **dict(zip(names, cell, strict=True)), **Tally.of(parts).row()}
            for arm in arms
            for (owner, cell), parts in merged.items()
            if owner == arm
        ]
