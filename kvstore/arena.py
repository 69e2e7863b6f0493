"""RamArena: blocks and key sketches of one sequence in memory, allocated as the context grows.

Blocks come in slabs of 1024 tokens; the table of cell addresses covers the whole context from the
start, so that kernels keep one pointer. Freed slabs return to the system.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError
from .geometry import (
    BLOCK_TOKENS,
    CELL_TOKENS,
    CELLS_PER_BLOCK,
    GROUP_TOKENS,
    GROUPS_PER_BLOCK,
    Geometry,
    n_blocks,
)
from .index import Index
from .memory import aligned_zeros
from .route import EVERYTHING, Limits

# Blocks allocated at a time.
SLAB_BLOCKS = 8
SLAB_TOKENS = SLAB_BLOCKS * BLOCK_TOKENS


class RamArena(Index):
    """Owner of one sequence's blocks. Not thread-safe; a view lives until `close` or `shrink`."""

    def __init__(self, geometry: Geometry, ctx: int) -> None:
        super().__init__(geometry, ctx)
        self._slabs: list[NDArray[np.uint8]] = []
        # Rounded up to a slab, so that growing never writes past the table.
        width = -(-n_blocks(ctx) // SLAB_BLOCKS) * SLAB_BLOCKS * CELLS_PER_BLOCK
        # Per layer int64 [G, cells]: the address of every cell, 0 where there is none.
        # np.zeros maps memory that is only backed once written, so a long context costs nothing.
        self.cells: list[NDArray[np.int64]] = [
            np.zeros((shape.n_kv_heads, width), np.int64) for shape in geometry.layers
        ]
        self._offsets = [geometry.cell_offsets(i) for i in range(len(geometry.layers))]

    @property
    def capacity(self) -> int:
        """Tokens that have cells."""
        return len(self._slabs) * SLAB_TOKENS

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(slab.nbytes for slab in self._slabs)

    def reserve(self, n_tokens: int, limits: Limits = EVERYTHING) -> None:
        """Make room for positions 0..n_tokens; StoreError when memory or context is exhausted.
        limits: of the last of them, which reads in place."""
        if n_tokens > self.ctx:
            raise StoreError(f"{n_tokens} tokens do not fit in a context of {self.ctx}")
        while self.capacity < n_tokens:
            size = self.geometry.block_kv_bytes
            try:
                slab = aligned_zeros(SLAB_BLOCKS * size)
            except MemoryError:
                raise StoreError(
                    f"no memory for {SLAB_BLOCKS * size} more bytes of keys and values at"
                    f" {self.capacity} tokens (a smaller --ctx needs less)"
                ) from None
            first = len(self._slabs) * SLAB_BLOCKS
            self._slabs.append(slab)
            for block in range(SLAB_BLOCKS):
                at = (first + block) * CELLS_PER_BLOCK
                base = slab.ctypes.data + block * size
                for cells, offsets in zip(self.cells, self._offsets):
                    cells[:, at : at + CELLS_PER_BLOCK] = base + offsets

    def shrink(self, n_tokens: int) -> None:
        """Free the slabs beyond n_tokens."""
        keep = -(-n_tokens // SLAB_TOKENS)
        del self._slabs[keep:]
        for cells in self.cells:
            cells[:, keep * SLAB_TOKENS // CELL_TOKENS :] = 0

    def close(self) -> None:
        """Free everything."""
        self.shrink(0)

    def block_kv(self, block: int) -> NDArray[np.uint8]:
        """A view of the keys and values of a block, uint8 [block_kv_bytes]."""
        slab, inside = divmod(block, SLAB_BLOCKS)
        size = self.geometry.block_kv_bytes
        return self._slabs[slab][inside * size : (inside + 1) * size]

    def load_kv(self, block: int, read: Callable[[int, NDArray[np.uint8]], None]) -> None:
        """Take over keys and values of a block that `read` puts into uint8 [block_kv_bytes]."""
        read(block, self.block_kv(block))

    def record(self, layer: int, head: int, group: int) -> NDArray[np.float16]:
        """A view of one record (tests and inspection); group counts from 0."""
        block, inside = divmod(group, GROUPS_PER_BLOCK)
        cell, half = divmod(inside, CELL_TOKENS // GROUP_TOKENS)
        size = self.geometry.record_bytes(layer)
        start = int(self._offsets[layer][head, cell]) + half * size
        return self.block_kv(block)[start : start + size].view(np.float16)
