"""How each token of a timeline was run: what its logits need to be computed again."""

import numpy as np
from numpy.typing import NDArray

from hga.kvstore.geometry import CHUNK_TOKENS

IN_A_PROMPT, DECODED, FIRST_OF_A_CALL = 0, 1, 2


def begin_of_last(marks: bytearray) -> int:
    """The first token to run again for the logits of the last one, which a prompt runs with what
    shares its unit of 64 tokens: a routed prompt attends alike for all of it."""
    found: NDArray[np.uint8] = np.frombuffer(bytes(marks), np.uint8)
    last = found.size - 1
    if found[last] == DECODED:
        return last
    starts = np.flatnonzero(found != IN_A_PROMPT)
    return max(int(starts[-1]) if starts.size else 0, last // CHUNK_TOKENS * CHUNK_TOKENS)
