"""Haystacks: long texts in whose lines facts are hidden.

Invariant: what is woven into a stretch of text stands on a line of its own, so far as the text has
lines, and the stretch keeps its length exactly. The default text is the documentation that comes
with Python (`pydoc_data.topics`): prose and code that needs no file.
"""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hga.tools.errors import UsageError
from hga.tools.texts import read_text

if TYPE_CHECKING:
    from hga.runtime.tokenizer import Tokenizer

# An insertion moves to a line's end no further than this share of the text, or a line or two.
_NEAR = 1 / 50
_NEAR_TOKENS = 64


class Haystack:
    """The tokens of a text, and after which of them a line ends."""

    def __init__(self, name: str, text: str, tokenizer: "Tokenizer") -> None:
        """Raises UsageError for a text without tokens."""
        self.name = name
        self._ids = tokenizer.encode(text)
        if not self._ids:
            raise UsageError(f"the haystack {name} is empty")
        self._breaks = [
            i + 1 for i, token in enumerate(self._ids) if tokenizer.piece(token).endswith(b"\n")
        ]

    def __len__(self) -> int:
        return len(self._ids)

    def window(self, n_tokens: int, rng: random.Random) -> "Window":
        """A stretch of exactly `n_tokens` from a random line on; a shorter text is repeated."""
        length = len(self._ids)
        free = length - n_tokens
        lines = [0, *(at for at in self._breaks if at <= free)] if free > 0 else [0]
        start = rng.choice(lines)
        repeats = -(-(start + n_tokens) // length)
        ids = (self._ids * repeats)[start : start + n_tokens]
        breaks = [
            at + turn * length - start
            for turn in range(repeats)
            for at in self._breaks
            if start < at + turn * length < start + n_tokens
        ]
        return Window(ids, breaks)


class Window:
    """A stretch of a haystack."""

    def __init__(self, ids: Sequence[int], breaks: Sequence[int]) -> None:
        self._ids = ids
        self._breaks = breaks

    def weave(self, inserts: Iterable[tuple[float, Sequence[int]]]) -> list[int]:
        """The stretch with each (depth from 0 to 1, tokens) inserted at the nearest line's end;
        those at the same place stand in the order of their depths."""
        woven: list[int] = []
        done = 0
        for depth, ids in sorted(inserts, key=lambda insert: insert[0]):
            at = max(done, self._line_end(depth))
            woven += self._ids[done:at]
            woven += ids
            done = at
        return [*woven, *self._ids[done:]]

    def _line_end(self, depth: float) -> int:
        wanted = round(depth * len(self._ids))
        i = bisect_left(self._breaks, wanted)
        near = [0, *self._breaks[max(0, i - 1) : i + 1]]
        best = min(near, key=lambda at: abs(at - wanted))
        near_enough = max(_NEAR_TOKENS, _NEAR * len(self._ids))
        return best if abs(best - wanted) <= near_enough else wanted


def load_haystacks(files: Sequence[Path] | None, tokenizer: "Tokenizer") -> list[Haystack]:
    """The haystacks of the files, or the default one. Raises UsageError, OSError."""
    if files is None:
        return [Haystack("python-docs", _python_docs(), tokenizer)]
    return [Haystack(file.name, read_text(file), tokenizer) for file in files]


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "this Python came without its documentation: --haystack FILE is needed"
        ) from None
    return "\n\n".join(text.strip() for text in topics.values()) + "\n"
