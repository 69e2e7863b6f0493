"""DiskArena: blocks of one sequence on disk, with what a token needs of them in memory.

In memory lie the key sketches of all tokens; of every layer the last blocks, still growing or seen
by its window; and frames for cells that routing picks (kvstore/frames.py). A block is written when
the next one begins. A prompt passes layer by layer (kvstore/stage.py).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import PagesError, StoreError
from .frames import Frames
from .geometry import (
    BLOCK_TOKENS,
    CELL_TOKENS,
    CELLS_PER_BLOCK,
    CELLS_PER_CHUNK,
    Geometry,
    n_blocks,
)
from .index import Index, KeptIndex
from .memory import Memory, OwnMemory
from .reader_request import SHORT_FILE, WRONG_SUM
from .route import EVERYTHING, WINDOW_TOKENS, Limits
from .store import SessionStore
from .store_layout import block_name


def signed(number: int) -> int:
    """A uint64 as the int64 of the same bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def recent_blocks(window: int) -> int:
    """Blocks of a layer that stay in memory: those that its window (0: the window of routing)
    reaches into, besides the one that grows."""
    return -(-max(window, WINDOW_TOKENS) // BLOCK_TOKENS) + 2


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """Since the arena began: cells of decoded tokens found in memory and read; bytes that all
    reads brought, and nanoseconds that threads waited for them (of all users of the reader)."""

    hits: int = 0
    reads: int = 0
    disk_bytes: int = 0
    stall_ns: int = 0


class BlockReader(Protocol):
    """What an arena asks of a reader: Reader or PlainReader."""

    @property
    def stats(self) -> Mapping[str, int]:
        """Counts, "bytes" and "stall_ns" among them."""

    def add_file(self, place: Path) -> int:
        """Open a file; its number."""

    def remove_file(self, index: int) -> None:
        """Close a file."""

    def read_blocks(
        self,
        places: NDArray[np.int64],
        sums: NDArray[np.uint32],
        cell_bytes: int,
        first: int,
        end: int,
        out: NDArray[np.uint8],
    ) -> tuple[int, int, int] | None:
        """See PlainReader."""

    def error(self, ticket: int, file: int, offset: int, n_bytes: int) -> StoreError:
        """The error of a read that failed."""


class DiskArena(Index):
    """Owner of the memory; the store and the reader stay the caller's. Not thread-safe."""

    def __init__(
        self,
        geometry: Geometry,
        ctx: int,
        windows: Sequence[int],
        store: SessionStore,
        reader: BlockReader,
        frame_bytes: int,
        overflow_cells: int,
        on_close: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
        index: KeptIndex | None = None,
    ) -> None:
        """windows: tokens that each layer sees, 0 for all of them; frame_bytes, overflow_cells:
        see Frames; on_close: called once, when nothing reads the store any more; memory: where
        cells and their tables lie (None: the process's own); index: who has the key sketches
        (None: this object)."""
        super().__init__(geometry, ctx, index)
        self.memory = memory or OwnMemory()
        self.windows = tuple(windows)
        self.store, self.reader = store, reader
        n = n_blocks(ctx)
        self.cells: list[NDArray[np.int64]] = []
        for s in geometry.layers:
            table = self.memory.zeros(8 * s.n_kv_heads * n * CELLS_PER_BLOCK).view(np.int64)
            self.cells.append(table.reshape(s.n_kv_heads, n * CELLS_PER_BLOCK))
        self.frames = Frames(geometry, ctx, frame_bytes, overflow_cells, self.memory)
        # Where the layer's pages of every block lie, and the sums of its cells (RESIDENCY).
        self.places = [np.zeros((n, 3), np.int64) for _ in geometry.layers]
        self.sums = [
            np.zeros((n, CELLS_PER_BLOCK * s.n_kv_heads), np.uint32) for s in geometry.layers
        ]
        # Per layer uint8 [recent blocks][pages].
        self._recent: list[NDArray[np.uint8]] = []
        # The block that each place of `recent` holds, -1: none.
        self._held: list[NDArray[np.int64]] = []
        # Per layer int64 [G, 8]: of every cell, in its pages of a block.
        self.offsets: list[NDArray[np.int64]] = []
        for i in range(len(geometry.layers)):
            size, count = geometry.layer_bytes(i), recent_blocks(self.windows[i])
            self._recent.append(self.memory.zeros(count * size).reshape(count, size))
            self._held.append(np.full(count, -1, np.int64))
            self.offsets.append(geometry.cell_offsets(i) - geometry.layer_offset(i))
            self.frames.place(i, self.places[i], self.sums[i])
        self._files: dict[tuple[Path, int], int] = {}
        self._on_close: Callable[[], None] | None = on_close
        self._opened = 0
        self._stored = 0

    @property
    def capacity(self) -> int:
        """Tokens that have room."""
        return self._opened * BLOCK_TOKENS

    @property
    def allocated_bytes(self) -> int:
        """Memory for keys and values: recent blocks and frames."""
        return sum(r.nbytes for r in self._recent) + self.frames.frame_bytes

    @property
    def reads(self) -> ReadCounts:
        """Counts so far."""
        cells, stats = self.frames.cell_reads, self.reader.stats
        return ReadCounts(cells.hits, cells.reads, stats["bytes"], stats["stall_ns"])

    def reserve(self, n_tokens: int, limits: Limits = EVERYTHING) -> None:
        """Make room for one more block at most; StoreError when disk or context is exhausted.
        limits: of the last token; where it may read more cells than have room, a StoreError."""
        if n_tokens > self.ctx:
            raise StoreError(f"{n_tokens} tokens do not fit in a context of {self.ctx}")
        # As many as groups, at worst.
        most = limits.sinks + limits.window + limits.most
        most = min(most, -(-n_tokens // CELL_TOKENS))
        if most > self.frames.n_overflow:
            raise StoreError(
                f"a token may read {most} cells of a KV head, and {self.frames.n_overflow} have"
                " room: --attention and --budget, when the model is opened, make it"
            )
        while self._opened < n_blocks(n_tokens):
            if self._opened > self._stored:
                self.write_block(self._opened - 1)
            for layer in range(len(self.cells)):
                self.recent(layer, self._opened)[...] = 0
            self._opened += 1

    def recent(self, layer: int, block: int) -> NDArray[np.uint8]:
        """The place of a block of a layer among the recent ones, uint8 [pages]; taken from the
        block that holds it, if another does."""
        held, size = self._held[layer], len(self._recent[layer])
        at, cells = block % size, self.cells[layer]
        if held[at] != block:
            if held[at] >= 0:
                old = int(held[at]) * CELLS_PER_BLOCK
                cells[:, old : old + CELLS_PER_BLOCK] = 0
            first = block * CELLS_PER_BLOCK
            self.frames.drop(layer, cells, first, first + CELLS_PER_BLOCK)
            base = self._recent[layer][at].ctypes.data
            cells[:, first : first + CELLS_PER_BLOCK] = base + self.offsets[layer]
            held[at] = block
        page: NDArray[np.uint8] = self._recent[layer][at]
        return page

    def n_recent(self, layer: int) -> int:
        """Blocks of a layer that stay in memory."""
        return len(self._held[layer])

    def grown_to(self, n: int) -> None:
        """Note that blocks 0..n are there."""
        self._opened = n

    def holds(self, layer: int, block: int) -> bool:
        """Whether a block of a layer is among the recent ones."""
        held = self._held[layer]
        return bool(held[block % len(held)] == block)

    def write_block(self, block: int) -> None:
        """Write a whole block from memory to the store."""
        self.store.begin_block(block)
        for layer in range(len(self.cells)):
            self.store.write_layer(block, layer, self.recent(layer, block))
        self.store.seal_block(block, self.block_index(block))
        self.take_place(block)
        self._stored = block + 1

    def take_place(self, block: int) -> None:
        """Note where the store has put a block, and the sums of its cells."""
        slot, at = self.store.locate(block), 0
        file = self._file(slot.path, slot.fd)
        for layer, sums in enumerate(self.sums):
            n = sums.shape[1]
            self.places[layer][block] = (
                file,
                slot.offset + self.geometry.layer_offset(layer),
                signed(slot.seed + at),
            )
            sums[block] = slot.sums[at : at + n]
            at += n
        self._stored = max(self._stored, block + 1)

    def _file(self, path: Path, fd: int) -> int:
        # A segment that was dropped and made anew has the same path. An open file's number is
        # nobody else's.
        key = path, os.fstat(fd).st_ino
        if key not in self._files:
            self._files[key] = self.reader.add_file(path)
        return self._files[key]

    def read_layer(self, layer: int, first: int, end: int, out: NDArray[np.uint8]) -> None:
        """Read a layer's pages of blocks first..end to out, uint8 [end - first][pages]; StoreError
        names the cell that cannot be read or has changed."""
        if first >= end:
            return
        places, sums = self.places[layer], self.sums[layer]
        size = self.geometry.cell_bytes(layer)
        failed = self.reader.read_blocks(places, sums, size, first, end, out)
        if failed is not None:
            raise self.error(layer, *failed)

    def gather(self, layer: int, first: int, end: int, out: NDArray[np.uint8]) -> None:
        """Bring a layer's pages of blocks first..end, from the disk or from among the recent ones,
        to out, uint8 [end - first][pages]. Raises as `read_layer`."""
        on_disk = first
        while on_disk < end and not self.holds(layer, on_disk):
            on_disk += 1
        self.read_layer(layer, first, on_disk, out)
        for block in range(on_disk, end):
            out[block - first] = self.recent(layer, block)

    def check_reads(self) -> None:
        """Raise the StoreError of a read for a token that failed, and forget what it brought."""
        failed = [
            (layer, cell, head, ticket)
            for layer in range(len(self.cells))
            for cell, head, ticket in self.frames.failed(layer, self.cells[layer])
        ]
        for layer, cell, head, ticket in failed:
            block, inside = divmod(cell, CELLS_PER_BLOCK)
            chunk, inside = divmod(inside, CELLS_PER_CHUNK)
            heads = self.geometry.layers[layer].n_kv_heads
            number = (chunk * heads + head) * CELLS_PER_CHUNK + inside
            raise self.error(layer, block, number, ticket)
        raise StoreError("a read of keys and values failed")

    def error(self, layer: int, block: int, number: int, ticket: int) -> StoreError:
        """StoreError for a cell, counted in the order of bytes, that could not be read; PagesError
        for one that is not what was written."""
        file, offset, _ = (int(n) for n in self.places[layer][block])
        size = self.geometry.cell_bytes(layer)
        error = self.reader.error(ticket, file, offset + number * size, size)
        if ticket not in (SHORT_FILE, WRONG_SUM):
            return error
        shape = self.store.shape
        place, _ = shape.place(shape.layer_spans()[layer][1] + number)
        return PagesError(f"{block_name(block)}, {place}: {error}")

    def shrink(self, n_tokens: int) -> None:
        """Forget everything from n_tokens on, and bring back what the layers see of the rest."""
        keep, whole = n_blocks(n_tokens), n_tokens // BLOCK_TOKENS
        self._opened = min(self._opened, keep)
        for layer, cells in enumerate(self.cells):
            held = self._held[layer]
            for at in np.flatnonzero(held >= keep):
                first = int(held[at]) * CELLS_PER_BLOCK
                cells[:, first : first + CELLS_PER_BLOCK] = 0
                held[at] = -1
            self.frames.drop(layer, cells, whole * CELLS_PER_BLOCK, cells.shape[1])
            for block in range(max(0, keep - len(held) + 1), keep):
                if not self.holds(layer, block):
                    page = self.recent(layer, block)
                    self.read_layer(layer, block, block + 1, page[None])
        self._stored = min(self._stored, whole)
        self.store.truncate(whole * BLOCK_TOKENS)

    def restore(self, n_tokens: int) -> None:
        """Take over n_tokens that the store holds: index, places, recent blocks."""
        for block in range(n_blocks(n_tokens)):
            self.load_index(block, self.store.read_index(block))
            self.take_place(block)
        self._opened = n_blocks(n_tokens)
        for layer, held in enumerate(self._held):
            held[:] = -1
            self.cells[layer][...] = 0
        self.shrink(n_tokens)

    def close(self) -> None:
        """Forget everything; the memory goes with the object."""
        for file in self._files.values():
            self.reader.remove_file(file)
        self._files.clear()
        self._opened = 0
        if self._on_close is not None:
            self._on_close()
            self._on_close = None
