"""What callers of a session meet besides it: its errors, and what it takes."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
StopReason = Literal["eos", "length", "ctx", "interrupt"]


class ContextError(ValueError):
    """A prompt does not fit in the context."""


class TokenSampler(Protocol):
    """What `generate` needs of a sampler."""

    def sample(self, logits: Logits, recent: Sequence[int]) -> int:
        """The next token id."""
        ...


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """ValueError unless all ids are of the vocabulary."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise ValueError(f"token ids must lie in 0..{vocab_size - 1}")
