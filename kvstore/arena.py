"""RamArena: pages and key sketches of one sequence in memory, allocated as the context grows.

Pages come in slabs of several chunks; the table of page addresses covers the whole context from
the start, so that kernels keep one pointer. Freed slabs return to the system.
"""

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError
from .geometry import GROUPS_PER_CHUNK, Geometry, n_chunks

# Chunks allocated at a time: 1024 tokens.
SLAB_CHUNKS = 16


class RamArena:
    """Owner of one sequence's pages. Not thread-safe; a view lives until `close` or `shrink`."""

    def __init__(self, geometry: Geometry, ctx: int) -> None:
        self.geometry = geometry
        self.ctx = ctx
        self._slabs: list[NDArray[np.uint8]] = []
        n_layers = len(geometry.layers)
        # Rounded up to a slab, so that growing never writes past the table.
        width = -(-n_chunks(ctx) // SLAB_CHUNKS) * SLAB_CHUNKS
        self.pages: NDArray[np.int64] = np.zeros((n_layers, width), np.int64)
        self._offsets = [geometry.page_offset(i) for i in range(n_layers)]
        # np.zeros maps memory that is only backed once written, so a long context costs nothing.
        self.sketches = [
            np.zeros((s.n_kv_heads, geometry.sketch_head_bytes(i, ctx)), np.uint8)
            if s.routed
            else None
            for i, s in enumerate(geometry.layers)
        ]

        self._summaries: dict[int, NDArray[np.float32]] = {}

    def summaries(self, layer: int) -> NDArray[np.float32]:
        """Room for the summaries of the published rule, float32 [G, chunks * 5 * D] of a routed
        layer, made at first use."""
        if layer not in self._summaries:
            size = self.geometry.summary_head_bytes(layer, self.ctx) // 4
            heads = self.geometry.layers[layer].n_kv_heads
            self._summaries[layer] = np.zeros((heads, size), np.float32)
        return self._summaries[layer]

    @property
    def capacity(self) -> int:
        """Tokens that have pages."""
        return len(self._slabs) * SLAB_CHUNKS * 64

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(slab.nbytes for slab in self._slabs)

    def reserve(self, n_tokens: int) -> None:
        """Make room for positions 0..n_tokens; StoreError when memory or context is exhausted."""
        if n_tokens > self.ctx:
            raise StoreError(f"{n_tokens} tokens do not fit in a context of {self.ctx}")
        while self.capacity < n_tokens:
            size = SLAB_CHUNKS * self.geometry.chunk_bytes
            try:
                slab = np.zeros(size, np.uint8)
            except MemoryError:
                raise StoreError(
                    f"no memory for {size} more bytes of keys and values at {self.capacity} tokens"
                    " (a smaller --ctx needs less)"
                ) from None
            first = len(self._slabs) * SLAB_CHUNKS
            self._slabs.append(slab)
            base = slab.ctypes.data + np.arange(SLAB_CHUNKS) * self.geometry.chunk_bytes
            for layer, offset in enumerate(self._offsets):
                self.pages[layer, first : first + SLAB_CHUNKS] = base + offset

    def shrink(self, n_tokens: int) -> None:
        """Free the slabs beyond n_tokens."""
        keep = -(-n_chunks(n_tokens) // SLAB_CHUNKS)
        del self._slabs[keep:]
        self.pages[:, keep * SLAB_CHUNKS :] = 0

    def close(self) -> None:
        """Free everything."""
        self.shrink(0)

    def record(self, layer: int, head: int, group: int) -> NDArray[np.float16]:
        """A view of one record (tests and inspection); group counts from 0."""
        chunk, inside = divmod(group, GROUPS_PER_CHUNK)
        slab, slot = divmod(chunk, SLAB_CHUNKS)
        start = slot * self.geometry.chunk_bytes + self._offsets[layer]
        start += self.geometry.record_offset(layer, head, inside)
        data = self._slabs[slab][start : start + self.geometry.record_bytes(layer)]
        return data.view(np.float16)
