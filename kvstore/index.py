"""Index: what lies in memory whole of a sequence: the key sketches that routing reads, summaries of
the published rule, and scales of keys and values in int8."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .geometry import BLOCK_TOKENS, Geometry
from .memory import aligned_zeros


def _by_head(n_heads: int, head_bytes: int) -> NDArray[np.uint8]:
    return aligned_zeros(n_heads * head_bytes).reshape(n_heads, head_bytes)


class KeptIndex(Protocol):
    """Who has the key sketches and scales of a sequence that lie elsewhere, on a card."""

    def block_index(self, block: int) -> NDArray[np.uint8]:
        """As of Index."""

    def load_index(self, block: int, data: NDArray[np.uint8]) -> None:
        """As of Index."""


class Index:
    """Key sketches and scales of a sequence; the base of the arenas, which own keys and values."""

    def __init__(self, geometry: Geometry, ctx: int, kept: KeptIndex | None = None) -> None:
        """kept: who has what this object would have."""
        self.geometry = geometry
        self.ctx = ctx
        self._kept = kept
        # Backed only once written, so a long context costs nothing.
        self.sketches = [
            _by_head(s.n_kv_heads, geometry.sketch_head_bytes(i, ctx))
            if s.routed and kept is None
            else None
            for i, s in enumerate(geometry.layers)
        ]
        # Per layer uint8 [G, groups * 32]: float16 (kernels/cpu/records.py).
        self.scales = [
            _by_head(s.n_kv_heads, geometry.scale_head_bytes(ctx))
            if geometry.int8 and kept is None
            else None
            for s in geometry.layers
        ]
        self._summaries: dict[int, NDArray[np.float32]] = {}

    @property
    def kept(self) -> KeptIndex | None:
        """Who has key sketches and scales, if not this object."""
        return self._kept

    def summaries(self, layer: int) -> NDArray[np.float32]:
        """Room for the summaries of the published rule, float32 [G, chunks * 5 * D] of a routed
        layer, made at first use."""
        if layer not in self._summaries:
            size = self.geometry.summary_head_bytes(layer, self.ctx) // 4
            heads = self.geometry.layers[layer].n_kv_heads
            self._summaries[layer] = np.zeros((heads, size), np.float32)
        return self._summaries[layer]

    def block_index(self, block: int) -> NDArray[np.uint8]:
        """A copy of the key sketches of a block, then the scales: layer after layer, KV head after
        KV head."""
        if self._kept is not None:
            return self._kept.block_index(block)
        parts = [view.ravel() for view in self._block_views(block)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def load_index(self, block: int, data: NDArray[np.uint8]) -> None:
        """Put back what `block_index` gave."""
        if self._kept is not None:
            self._kept.load_index(block, data)
            return
        at = 0
        for view in self._block_views(block):
            view[...] = data[at : at + view.size].reshape(view.shape)
            at += view.size

    def _block_views(self, block: int) -> list[NDArray[np.uint8]]:
        views = []
        for layer, sketches in enumerate(self.sketches):
            if sketches is not None:
                size = self.geometry.sketch_head_bytes(layer, BLOCK_TOKENS)
                views.append(sketches[:, block * size : (block + 1) * size])
        size = self.geometry.scale_head_bytes(BLOCK_TOKENS)
        views += [s[:, block * size : (block + 1) * size] for s in self.scales if s is not None]
        return views
