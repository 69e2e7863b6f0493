"""What callers of a session meet besides it: its errors, and the shapes of what it takes."""

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
