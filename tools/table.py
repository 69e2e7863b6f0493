"""Tables of results for people: rows of an evaluation's JSON object as aligned columns."""

from collections.abc import Callable, Mapping, Sequence

from hga.tools.status import size

Row = Mapping[str, object]
Column = tuple[str, Callable[[Row], str]]

MISSING = "-"


def table(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Lines of a table with a head; columns that no row fills are left out. The first column is
    aligned to the left, the others to the right."""
    cells = [[show(row) for _, show in columns] for row in rows]
    kept = [
        i
        for i in range(len(columns))
        if i == 0 or any(line[i] not in (MISSING, "") for line in cells)
    ]
    head = [name for name, _ in columns]
    lines = [[line[i] for i in kept] for line in [head, *cells]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = line[0].ljust(widths[0])
    return [first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def text(key: str) -> Callable[[Row], str]:
    """Show a value as it is."""
    return lambda row: MISSING if row.get(key) is None else str(row[key])


def count(key: str) -> Callable[[Row], str]:
    """Show a number rounded to a whole one."""
    return _shown(key, lambda value: f"{value:,.0f}")


def n_bytes(key: str) -> Callable[[Row], str]:
    """Show bytes with their unit."""
    return _shown(key, size)


def share(key: str) -> Callable[[Row], str]:
    """Show a share as a percentage."""
    return _shown(key, lambda value: f"{100 * value:.1f} %")


def _shown(key: str, write: Callable[[float], str]) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row.get(key)
        return write(value) if isinstance(value, int | float) else MISSING

    return show


COSTS: tuple[Column, ...] = (
    ("attended", count("attended_mean")),
    ("read/token", n_bytes("bytes_per_token")),
    ("index/token", n_bytes("index_bytes_per_token")),
    ("mass", share("mass_recall")),
)
"""The columns of `Costs.row`."""
