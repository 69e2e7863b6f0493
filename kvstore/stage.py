"""Stage: memory in which a prompt passes a DiskArena's layers, one layer after the other.

Two buffers take turns: while a layer runs in one, the earlier pages of the next are read into the
other, and the new pages of the last are written. A layer's pages lie side by side, block after
block. Until `finish` the arena's timeline is what it was; `abandon` brings it back to that.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .disk_arena import DiskArena
from .geometry import BLOCK_TOKENS, n_blocks


class Stage:
    """Takes positions position..end through all layers, in order; closed by finish or abandon."""

    def __init__(self, arena: DiskArena, position: int, end: int) -> None:
        self._arena, self._position, self._end = arena, position, end
        geometry = arena.geometry
        self._n_layers, self._n_blocks = len(geometry.layers), n_blocks(end)
        # The first block that grows, and those that will be whole.
        self._first = position // BLOCK_TOKENS
        self._whole = range(self._first, end // BLOCK_TOKENS)
        widest = max(geometry.layer_bytes(i) for i in range(self._n_layers))
        self._buffers = [arena.memory.zeros(widest * self._n_blocks) for _ in range(2)]
        # The block that is begun, whose only copy is in memory.
        self._begun: list[NDArray[np.uint8]] = []
        if position % BLOCK_TOKENS:
            layers = range(self._n_layers)
            self._begun = [arena.recent(layer, self._first).copy() for layer in layers]
        try:
            for block in self._whole:
                arena.store.begin_block(block)
        except BaseException:
            arena.shrink(position)
            raise
        self._worker = ThreadPoolExecutor(1, "hga-stage")
        self._next: Future[None] = self._worker.submit(self._load, 0)
        self._written: list[Future[None]] = []

    def _pages(self, layer: int) -> NDArray[np.uint8]:
        """The layer's pages, uint8 [blocks][pages]."""
        size = self._arena.geometry.layer_bytes(layer)
        return self._buffers[layer % 2][: size * self._n_blocks].reshape(self._n_blocks, size)

    def _load(self, layer: int) -> None:
        """Bring the earlier pages that the layer sees."""
        arena, pages = self._arena, self._pages(layer)
        window, first = arena.windows[layer], 0
        if window > 0:
            first = max(0, self._position + 1 - window) // BLOCK_TOKENS
        arena.gather(layer, first, self._first, pages[first : self._first])
        if self._begun:
            pages[self._first] = self._begun[layer]
        pages[self._first + bool(self._begun) :] = 0

    def pages(self, layer: int) -> NDArray[np.uint8]:
        """Wait for a layer's earlier pages; all of them with room for the new ones, uint8
        [blocks][pages]."""
        self._next.result()
        if layer + 1 < self._n_layers:
            self._next = self._worker.submit(self._load, layer + 1)
        return self._pages(layer)

    def layer(self, layer: int) -> NDArray[np.int64]:
        """Wait for a layer's earlier pages; its table of cells, int64 [G, cells]."""
        pages, offsets = self.pages(layer), self._arena.offsets[layer]
        base = pages.ctypes.data + np.arange(self._n_blocks) * pages.strides[0]
        return np.ascontiguousarray(
            (base[None, :, None] + offsets[:, None, :]).reshape(len(offsets), -1)
        )

    def end_layer(self, layer: int) -> None:
        """Take a layer's new pages: the whole blocks to the store, the last ones to memory."""
        self._written.append(self._worker.submit(self._write, layer))
        # The next but one is read into this buffer by the same worker, after this.

    def _write(self, layer: int) -> None:
        arena, pages = self._arena, self._pages(layer)
        for block in self._whole:
            arena.store.write_layer(block, layer, pages[block])
        kept = arena.n_recent(layer)
        for block in range(max(self._first, self._n_blocks - kept), self._n_blocks):
            arena.recent(layer, block)[...] = pages[block]

    def finish(self) -> None:
        """Make the new positions part of the arena; the caller's timeline has to follow."""
        for written in self._written:
            written.result()
        for block in self._whole:
            self._arena.store.seal_block(block, self._arena.block_index(block))
            self._arena.take_place(block)
        self._arena.grown_to(self._n_blocks)
        self._close()

    def abandon(self) -> None:
        """Bring the arena back to the positions before this stage."""
        self._close()
        arena = self._arena
        for layer, page in enumerate(self._begun):
            arena.recent(layer, self._first)[...] = page
        arena.shrink(self._position)

    def _close(self) -> None:
        self._worker.shutdown(cancel_futures=True)
        for buffer in self._buffers:
            self._arena.memory.release(buffer)
