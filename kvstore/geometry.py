"""Geometry: how many bytes keys, values and sketches take, and where a record lies in a page.

A page is one chunk of 64 tokens of one layer: for each KV head eight groups of 8 tokens, a record
each, keys and values adjacent, float16 or int8 (kernels/cpu/records.py, docs/format.md). Two
records of a KV head are a cell, what is read at a time. Two chunks are a block, what is written at
a time: the pages of a layer lie together, layer after layer. This is the only place with offset
arithmetic outside the kernels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK_TOKENS = 64
GROUP_TOKENS = 8
GROUPS_PER_CHUNK = CHUNK_TOKENS // GROUP_TOKENS
CELL_TOKENS = 16
CELLS_PER_CHUNK = CHUNK_TOKENS // CELL_TOKENS
# Groups whose key sketches lie together and are scored at a time.
GROUPS_PER_BLOCK = 16
BLOCK_TOKENS = GROUPS_PER_BLOCK * GROUP_TOKENS
CHUNKS_PER_BLOCK = BLOCK_TOKENS // CHUNK_TOKENS
CELLS_PER_BLOCK = BLOCK_TOKENS // CELL_TOKENS
# Scales of a group in int8: float16, of 8 keys and 8 values.
SCALE_BYTES = 32
# The published rule sums up a chunk and its groups of 16 tokens, a vector each.
VECTORS_PER_CHUNK = 5


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's G KV heads of D (padded) dimensions; `routed` layers keep key sketches."""

    n_kv_heads: int
    head_dim: int
    routed: bool


@dataclass(frozen=True, slots=True)
class Geometry:
    """Byte sizes of a model's KV store."""

    layers: tuple[LayerShape, ...]
    # Per dimension of a key: 2, or 1 for half the index.
    sketch_bits: int = 2
    # Keys and values are int8 with a scale a token each, not float16.
    int8: bool = False

    def record_bytes(self, layer: int) -> int:
        """One group of 8 tokens of one KV head, keys and values."""
        return GROUP_TOKENS * self.layers[layer].head_dim * 2 * (1 if self.int8 else 2)

    def cell_bytes(self, layer: int) -> int:
        """One cell of 16 tokens of one KV head."""
        return CELL_TOKENS // GROUP_TOKENS * self.record_bytes(layer)

    def page_bytes(self, layer: int) -> int:
        """One chunk of 64 tokens of a layer."""
        return GROUPS_PER_CHUNK * self.record_bytes(layer) * self.layers[layer].n_kv_heads

    def layer_bytes(self, layer: int) -> int:
        """The layer's pages of one block."""
        return CHUNKS_PER_BLOCK * self.page_bytes(layer)

    def layer_offset(self, layer: int) -> int:
        """Where the layer's pages begin inside a block."""
        return sum(self.layer_bytes(i) for i in range(layer))

    @property
    def block_kv_bytes(self) -> int:
        """Keys and values of all layers of one block."""
        return self.layer_offset(len(self.layers))

    def kv_bytes(self, n_tokens: int) -> int:
        """Keys and values of the whole model for a context of n_tokens, in whole chunks; without
        scales."""
        return n_chunks(n_tokens) * (self.block_kv_bytes // CHUNKS_PER_BLOCK)

    def cell_offsets(self, layer: int) -> NDArray[np.int64]:
        """int64 [G, 8]: offset in a block of every cell of the layer."""
        heads = self.layers[layer].n_kv_heads
        head, chunk, cell = np.ogrid[:heads, :CHUNKS_PER_BLOCK, :CELLS_PER_CHUNK]
        number = (chunk * heads + head) * CELLS_PER_CHUNK + cell
        offsets = self.layer_offset(layer) + number.astype(np.int64) * self.cell_bytes(layer)
        return offsets.reshape(heads, CELLS_PER_BLOCK)

    @property
    def block_index_bytes(self) -> int:
        """Key sketches of all routed layers of one block, and scales of all layers."""
        return self.sketch_bytes(BLOCK_TOKENS) + self.scale_bytes(BLOCK_TOKENS)

    def sketch_head_bytes(self, layer: int, n_tokens: int) -> int:
        """Key sketches of one KV head for n_tokens, in whole blocks (kernels/cpu/sketch.py)."""
        blocks = -(-n_tokens // BLOCK_TOKENS)
        return blocks * BLOCK_TOKENS * (self.layers[layer].head_dim * self.sketch_bits // 8 + 1)

    def summary_head_bytes(self, layer: int, n_tokens: int) -> int:
        """Summaries of the published rule of one KV head (kernels/cpu/published.py)."""
        return n_chunks(n_tokens) * VECTORS_PER_CHUNK * 4 * self.layers[layer].head_dim

    def summary_bytes(self, n_tokens: int) -> int:
        """Summaries of the published rule of the whole model for a context of n_tokens."""
        return sum(
            shape.n_kv_heads * self.summary_head_bytes(i, n_tokens)
            for i, shape in enumerate(self.layers)
            if shape.routed
        )

    def scale_head_bytes(self, n_tokens: int) -> int:
        """Scales of one KV head for n_tokens, in whole blocks; 0 for float16."""
        return n_blocks(n_tokens) * GROUPS_PER_BLOCK * SCALE_BYTES if self.int8 else 0

    def scale_bytes(self, n_tokens: int) -> int:
        """Scales of the whole model for a context of n_tokens."""
        heads = sum(shape.n_kv_heads for shape in self.layers)
        return heads * self.scale_head_bytes(n_tokens)

    def sketch_bytes(self, n_tokens: int) -> int:
        """Key sketches of the whole model for a context of n_tokens."""
        return sum(
            shape.n_kv_heads * self.sketch_head_bytes(i, n_tokens)
            for i, shape in enumerate(self.layers)
            if shape.routed
        )


def padded_head_dim(head_dim: int) -> int:
    """Dimensions of a stored head: the model's, rounded up to the kernels' 32."""
    return -(-head_dim // 32) * 32


def n_blocks(n_tokens: int) -> int:
    """Blocks that hold n_tokens."""
    return -(-n_tokens // BLOCK_TOKENS)


def n_chunks(n_tokens: int) -> int:
    """Chunks that hold n_tokens."""
    return -(-n_tokens // CHUNK_TOKENS)
