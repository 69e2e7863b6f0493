"""Memory that begins on a page: as O_DIRECT wants it, and no vector of a kernel straddles lines."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hga.kernels.system import private_memory

PAGE_BYTES = 4096
# From here on large pages are asked for, as numpy does.
_LARGE = 4 << 20


def aligned_zeros(n_bytes: int) -> NDArray[np.uint8]:
    """uint8 [n_bytes], zero, that begins on a page and is backed page by page as it is written.

    Raises MemoryError.
    """
    try:
        memory = private_memory(max(n_bytes, 1), n_bytes >= _LARGE)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {n_bytes} bytes") from error
    return np.frombuffer(memory, np.uint8)[:n_bytes]


class Memory(Protocol):
    """Where an arena gets memory that lasts: a device may have to see it."""

    def zeros(self, n_bytes: int) -> NDArray[np.uint8]:
        """uint8 [n_bytes], zero, that begins on a page; raises MemoryError."""

    def release(self, array: NDArray[np.uint8]) -> None:
        """Give back what `zeros` gave; nothing may use it any more."""


class OwnMemory:
    """The process's own memory, which goes with its last user."""

    def zeros(self, n_bytes: int) -> NDArray[np.uint8]:
        """See Memory."""
        return aligned_zeros(n_bytes)

    def release(self, array: NDArray[np.uint8]) -> None:
        """See Memory."""
