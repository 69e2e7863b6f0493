"""`--trace FILE`: what every prompt and every decoded token read and waited for, as lines of JSON.

Counters are those of the line after a turn (runtime/turn_stats.py), as differences from line to
line; `kv_bytes` alone is what keys and values take now.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hga.runtime.session import Session

Counts = dict[str, float]

# Neither is counted up: the first is a state, the others belong to a conversation or to `eval`.
_STATES = ("kv_bytes", "reused_tokens", "recalled", "recall_tokens")


def _counts(session: "Session") -> Counts:
    stats = asdict(session.stats)
    experts: Counts = stats.pop("experts")
    for name in _STATES:
        del stats[name]
    return {**stats, **{f"expert_{name}": count for name, count in experts.items()}}


class Trace:
    """The open file; a line is written whole, and reaches the disk when its turn ends."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be made; one that exists is replaced."""
        self._file = path.open("w", encoding="utf-8")
        self._before: Counts = {}

    def begin(self) -> None:
        """A turn begins: counters start at 0."""
        self._before = {}

    def note(self, kind: Literal["prompt", "token"], session: "Session") -> None:
        """Write what happened since the last line."""
        now = _counts(session)
        line: dict[str, object] = {"kind": kind, "position": len(session.tokens)}
        for name, count in now.items():
            line[name] = round(count - self._before.get(name, 0), 9)
        line["kv_bytes"] = session.kv_bytes
        self._before = now
        self._file.write(json.dumps(line) + "\n")

    def end(self, session: "Session") -> None:
        """The turn is over; the token that ended it has a line too."""
        if session.stats.decode_tokens > self._before["decode_tokens"]:
            self.note("token", session)
        self._file.flush()

    def close(self) -> None:
        """No line may follow."""
        self._file.close()


@contextmanager
def traced(path: Path | None) -> Iterator[Trace | None]:
    """A Trace to write to path while the context lasts; None for None."""
    if path is None:
        yield None
        return
    trace = Trace(path)
    try:
        yield trace
    finally:
        trace.close()
