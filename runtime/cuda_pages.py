"""Pages: the card's side of keys and values on disk (kvstore/disk_arena.py).

Cells lie in pinned host memory, in frames and among the last blocks, found through tables that
kernels read in place. The host writes tables and frames only while no kernel runs: before every
layer that routes the card stops, the host reads what the route lacks, and the card goes on
(`bring`). A prompt passes layer by layer, its layer's keys and values in rows on the card.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hga.kernels.reference.checksum import cell_sums
from hga.kernels.triton.bank import StagingRoom, bank_capacity, pin, unpin
from hga.kernels.triton.places import Cells, Place, Rows, find_missing, pages_of, rows_of
from hga.kernels.triton.sketches import BankShape, Sketches
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.geometry import BLOCK_TOKENS, CELLS_PER_BLOCK, CELLS_PER_CHUNK, n_blocks
from hga.kvstore.memory import aligned_zeros
from hga.kvstore.plain_reader import PlainReader
from hga.kvstore.reader_request import WRONG_SUM

from .cuda_plan import CHUNK_BLOCKS

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


class PinnedMemory:
    """Host memory that the card reads and writes."""

    def __init__(self) -> None:
        self._pinned: dict[int, torch.Tensor] = {}

    def zeros(self, n_bytes: int) -> U8:
        """See kvstore.memory.Memory."""
        array = aligned_zeros(n_bytes)
        tensor = torch.from_numpy(array)
        pin(tensor)
        self._pinned[array.ctypes.data] = tensor
        return array

    def release(self, array: U8) -> None:
        """See kvstore.memory.Memory; no kernel may be using it."""
        tensor = self._pinned.pop(array.ctypes.data, None)
        if tensor is not None:
            unpin(tensor)

    def close(self) -> None:
        """Give back everything."""
        for tensor in self._pinned.values():
            unpin(tensor)
        self._pinned.clear()


class Pages:
    """Made before its arena, then bound to it; `close` it when the arena is. Keeps the sketches."""

    def __init__(self, shapes: Sequence[BankShape], ctx: int, device: str) -> None:
        self.memory = PinnedMemory()
        self.capacity = bank_capacity(ctx)
        self.graphs: dict[int, list[Any]] = {}
        self._shapes, self._device = tuple(shapes), device
        self._kept = Sketches(shapes, self.capacity, device)
        self.sketches = self._kept.layers
        self.block_index, self.load_index = self._kept.block_index, self._kept.load_index
        self.cuts = tuple(i for i, shape in enumerate(shapes) if shape.routed)
        n_cells, heads = self.capacity // 16, max(s.n_kv_heads for s in shapes)
        self._found = self._int32(heads, 2 + n_cells)
        self._used = [self._int32(s.n_kv_heads, n_cells if s.routed else 0) for s in shapes]
        self._room: StagingRoom | None = None
        # What the token at hand was given and is not verified yet.
        self._pending: list[_Given] = []
        self._overflowed: int | None = None

    def _int32(self, rows: int, columns: int) -> NDArray[np.int32]:
        return self.memory.zeros(4 * rows * columns).view(np.int32).reshape(rows, columns)

    def bind(self, arena: DiskArena, reader: PlainReader) -> None:
        """Say whose cells these are and what reads them."""
        self._arena, self._reader = arena, reader
        dims = [shape.head_dim for shape in self._shapes]
        self._tables = [Cells(torch.from_numpy(t), d) for t, d in zip(arena.cells, dims)]
        size = max(arena.geometry.layer_bytes(i) for i in range(len(dims)))
        self._chunk = self.memory.zeros(CHUNK_BLOCKS * size)

    # --- a token --------------------------------------------------------------------------------

    def written(self, layer: int) -> Cells:
        """Where a token's keys and values go."""
        return self._tables[layer]

    def read(self, layer: int, n_groups: int) -> Place:
        """Where a token reads them: all of a layer on the card where nothing is routed."""
        if self._shapes[layer].routed and n_groups == 0:
            return self._rows(layer)
        return self._tables[layer]

    def find(
        self, layer: int, groups: torch.Tensor, counts: torch.Tensor, params: torch.Tensor
    ) -> None:
        """Note which cells of the groups are nowhere."""
        n = self._shapes[layer].n_kv_heads
        used, found = torch.from_numpy(self._used[layer]), torch.from_numpy(self._found[:n])
        find_missing(groups, counts[:n], params, self._tables[layer], used, found)

    def begin(self) -> None:
        """Begin a token; no kernel runs."""
        self._settle(verify=False)

    def bring(self, layer: int, n_groups: int, position: int, now: int) -> None:
        """Bring what the attention of a layer reads: after the kernels before it have ended, before
        it begins. now: the number of the token. Raises StoreError."""
        self._release()
        if n_groups == 0:
            self._bring_all(layer, n_blocks(position + 1))
            return
        arena, found = self._arena, self._found[: self._shapes[layer].n_kv_heads]
        missing = found[:, 0].astype(np.int64)
        arena.frames.count_hits(layer, found[:, 1] - missing)
        if missing.any():
            # Noted first: an interrupt may come at any time, and what was given then is forgotten.
            given = _Given(arena, layer)
            self._pending.append(given)
            given.take(found, self._used[layer], now)
            failed = self._reader.read_cells(*given.where(), given.cell_bytes)
            if failed is not None:
                raise given.error(*failed)
            if given.overflows:
                # What is there now is another layer's soon.
                self._overflowed = layer
                given.verify()

    def end(self) -> None:
        """End a token, all of whose kernels have ended; StoreError where a cell that it read is
        not what was written."""
        self._release()
        self._settle(verify=True)

    def _release(self) -> None:
        if self._overflowed is not None:
            self._arena.frames.release(self._arena.cells[self._overflowed])
            self._overflowed = None

    def _settle(self, verify: bool) -> None:
        try:
            if verify:
                _verify([given for given in self._pending if not given.overflows])
        except BaseException:
            self._settle(verify=False)
            raise
        if not verify:
            # A token that came to no end: what it was given may hold anything.
            self._release()
            for given in self._pending:
                given.forget()
        self._pending.clear()

    # --- all of a layer, on the card ------------------------------------------------------------

    def _rows(self, layer: int) -> Rows:
        if self._room is None:
            self._room = StagingRoom(self._shapes, self.capacity, self._device)
        return self._room.rows(layer)

    def _bring_all(self, layer: int, end: int) -> None:
        size = self._arena.geometry.layer_bytes(layer)
        for first in range(0, end, CHUNK_BLOCKS):
            last = min(first + CHUNK_BLOCKS, end)
            pages = self._chunk[: (last - first) * size].reshape(last - first, size)
            self._arena.gather(layer, first, last, pages)
            self._upload(layer, pages, first)
            synchronize(self._device)

    def _upload(self, layer: int, pages: U8, first: int) -> None:
        """Bring pages, uint8 [blocks][pages], to rows from block `first` on."""
        shape, rows = self._shapes[layer], self._rows(layer)
        for at in range(0, len(pages), CHUNK_BLOCKS):
            part = torch.from_numpy(pages[at : at + CHUNK_BLOCKS]).to(
                self._device, non_blocking=True
            )
            view = part.view(torch.float16).view(-1, 2, shape.n_kv_heads, 8, 2, 8 * shape.head_dim)
            rows_of(view, first + at, rows)

    def begin_layer(self, layer: int, pages: U8, position: int) -> None:
        """Bring what a layer sees of the positions before a prompt to the card; pages: of all its
        blocks, left alone until `end_layer` returns."""
        window = self._arena.windows[layer]
        first = max(0, position + 1 - window) // BLOCK_TOKENS if window else 0
        self._upload(layer, pages[first : n_blocks(position)], first)

    def end_layer(self, layer: int, pages: U8, position: int, end: int) -> None:
        """Bring positions position..end of a layer to its pages, and wait for it."""
        rows, last = self._rows(layer), n_blocks(end)
        for x in (rows.keys, rows.values):
            x[:, end : last * BLOCK_TOKENS] = 0
        for at in range(position // BLOCK_TOKENS, last, CHUNK_BLOCKS):
            stop = min(at + CHUNK_BLOCKS, last)
            made = pages_of(rows, at, stop).view(stop - at, -1).view(torch.uint8)
            torch.from_numpy(pages[at:stop]).copy_(made, non_blocking=True)
        synchronize(self._device)

    def stage(self, layer: int, position: int) -> Rows:
        """A layer on the card, where `begin_layer` has brought it."""
        return self._rows(layer)

    def unstage(self, layer: int, staged: Rows, position: int, end: int) -> None:
        """Nothing: `end_layer` does it for all blocks of a prompt."""

    def close(self) -> None:
        """Free what lies on the card and unpin host memory."""
        self.graphs.clear()
        synchronize(self._device)
        self.memory.close()
        self.sketches, self._room = [], None


def synchronize(device: str) -> None:
    """Wait until no kernel runs and no copy is under way."""
    if device != "cpu":
        torch.cuda.synchronize()


class _Given:
    """Cells of a layer that were given memory for a token, and where they are read."""

    def __init__(self, arena: DiskArena, layer: int) -> None:
        self._arena, self._layer = arena, layer
        self.cell_bytes = arena.geometry.cell_bytes(layer)
        self._cells: list[tuple[int, I64]] = []
        self._addresses = self._blocks = self._numbers = np.zeros(0, np.int64)
        self.overflows = False

    def take(self, found: NDArray[np.int32], used: NDArray[np.int32], now: int) -> None:
        """Give memory to the cells that a KV head lacks, int32 [G, 2 + cells]; used, now: as of
        Frames.give."""
        arena, layer, n_heads = self._arena, self._layer, len(found)
        addresses, numbers, blocks = [], [], []
        for head in np.flatnonzero(found[:, 0]).tolist():
            cells = found[head, 2 : 2 + found[head, 0]].astype(np.int64)
            self._cells.append((head, cells))
            addresses.append(arena.frames.give(layer, head, arena.cells[layer], cells, used, now))
            block, inside = np.divmod(cells, CELLS_PER_BLOCK)
            chunk, inside = np.divmod(inside, CELLS_PER_CHUNK)
            blocks.append(block)
            numbers.append((chunk * n_heads + head) * CELLS_PER_CHUNK + inside)
        self._addresses, self._blocks = np.concatenate(addresses), np.concatenate(blocks)
        self._numbers = np.concatenate(numbers)
        self.overflows = arena.frames.has_overflows

    def where(self) -> tuple[I64, I64, I64]:
        """Files, offsets and addresses."""
        places = self._arena.places[self._layer][self._blocks]
        return places[:, 0], places[:, 1] + self._numbers * self.cell_bytes, self._addresses

    def contents(self) -> U8:
        """The cells as they are in memory, uint8 [n, cell_bytes]; a copy."""
        return self._arena.frames.contents(self._layer, self._addresses)

    def sums(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Seeds and checksums."""
        seeds = self._arena.places[self._layer][self._blocks, 2] + self._numbers
        return seeds.astype(np.uint64), self._arena.sums[self._layer][self._blocks, self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def verify(self) -> None:
        """StoreError where a cell is not what was written."""
        _verify([self])

    def error(self, at: int, ticket: int) -> Exception:
        """What reading the at-th cell failed by."""
        return self._arena.error(self._layer, int(self._blocks[at]), int(self._numbers[at]), ticket)

    def forget(self) -> None:
        """Empty the memory that the cells were given."""
        table, frames = self._arena.cells[self._layer], self._arena.frames
        for head, cells in self._cells:
            frames.forget(self._layer, head, table, cells)
        if frames.has_overflows:
            # Nobody has come to know of these: the layer at hand is the only one that can have any.
            frames.release(table)


def _verify(given: Sequence[_Given]) -> None:
    """Compare checksums, all at once: numpy takes as long for one as for many."""
    for size in {part.cell_bytes for part in given}:
        parts = [part for part in given if part.cell_bytes == size]
        seeds, sums = (np.concatenate(x) for x in zip(*(part.sums() for part in parts)))
        found = cell_sums(np.concatenate([part.contents() for part in parts]), seeds)
        wrong = np.flatnonzero(found != sums)
        if wrong.size:
            at = int(wrong[0])
            for part in parts:
                if at < len(part):
                    raise part.error(at, WRONG_SUM)
                at -= len(part)
