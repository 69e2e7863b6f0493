"""How each token of a timeline was run, and with which others: what its logits need to be computed
again."""

import numpy as np
from numpy.typing import NDArray

from hga.kvstore.geometry import CHUNK_TOKENS

IN_A_PROMPT, DECODED, FIRST_OF_A_CALL = 0, 1, 2


def begin_of_last(marks: bytearray, block: int = 0) -> int:
    """The first token to run again for the logits of the last one, which a prompt runs with what
    shares its unit of 64 tokens: a routed prompt attends alike for all of it. block: above 0 with
    what shares its block of so many tokens (`cuts`)."""
    found: NDArray[np.uint8] = np.frombuffer(bytes(marks), np.uint8)
    last = found.size - 1
    if found[last] == DECODED:
        return last
    starts = np.flatnonzero(found != IN_A_PROMPT)
    start = int(starts[-1]) if starts.size else 0
    if block:
        return start + cuts(start, last + 1 - start, block)[-1][0]
    return max(start, last // CHUNK_TOKENS * CHUNK_TOKENS)


def cuts(position: int, n_tokens: int, step: int) -> list[tuple[int, int]]:
    """Ranges of at most `step` tokens of a prompt at position…, which end at multiples of a chunk,
    where units of a routed prompt do."""
    ranges, first = [], 0
    while first < n_tokens:
        size = step - (position + first) % CHUNK_TOKENS if step > CHUNK_TOKENS else step
        ranges.append((first, min(first + size, n_tokens)))
        first += size
    return ranges
