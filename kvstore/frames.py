"""Frames: bounded memory for cells that lie on disk, and what the kernels know about them.

Every routed layer and KV head has as many frames as its part of the memory holds; overflow frames
serve one layer after the other, so that a token that reads more than the frames hold is served as
well (kernels/cpu/residency.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hga.kernels.cpu.params import RESIDENCY

from .geometry import CELL_TOKENS, Geometry
from .memory import Memory, OwnMemory

# Counters per KV head (kernels/cpu/residency.py), checked by a test.
COUNTERS = 8
# Fewer frames than this would only move cells about.
LEAST_FRAMES = 8


@dataclass(frozen=True, slots=True)
class CellReads:
    """Cells asked for by routed tokens: found in memory, read, of those beyond the frames."""

    hits: int = 0
    reads: int = 0
    overflows: int = 0


class Frames:
    """One RESIDENCY record per layer; those of layers that are not routed stay empty."""

    def __init__(
        self,
        geometry: Geometry,
        ctx: int,
        frame_bytes: int,
        overflow_cells: int,
        memory: Memory | None = None,
    ) -> None:
        """frame_bytes: for the frames of all layers; overflow_cells: the most that a KV head of a
        layer reads for one token; memory: where frames lie."""
        memory = memory or OwnMemory()
        self.records: NDArray[Any] = np.zeros(len(geometry.layers), RESIDENCY)
        self._owners: dict[int, NDArray[np.int64]] = {}
        self._tickets: dict[int, NDArray[np.int64]] = {}
        self._counters: dict[int, NDArray[np.int64]] = {}
        self._keep: list[NDArray[Any]] = []
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self.frame_bytes = 0
        routed = [i for i, shape in enumerate(geometry.layers) if shape.routed]
        cells = -(-ctx // CELL_TOKENS)
        self.n_overflow = overflow = min(overflow_cells, cells)
        sizes = (geometry.cell_bytes(i) * geometry.layers[i].n_kv_heads for i in routed)
        most = max(sizes, default=0)
        shared = memory.zeros(most * overflow)
        heads = max((geometry.layers[i].n_kv_heads for i in routed), default=0)
        # Tickets, owners, and how many are taken.
        tables = [self._int64(heads, overflow) for _ in range(2)] + [self._int64(heads)]
        self._overflow = tables
        self._shared = shared
        for i in routed:
            n_heads, size = geometry.layers[i].n_kv_heads, geometry.cell_bytes(i)
            n = frame_bytes // len(routed) // (n_heads * size)
            n = min(max(n, LEAST_FRAMES), cells)
            frames = memory.zeros(n_heads * n * size)
            self._frames[i] = frames
            self.frame_bytes += frames.nbytes
            stamps, tickets = self._int64(n_heads, n), self._int64(n_heads, n)
            stamps[...] = -1
            self._owners[i], self._counters[i] = (
                self._int64(n_heads, n),
                self._int64(n_heads, COUNTERS),
            )
            self._owners[i][...] = -1
            r = self.records[i]
            r["n_heads"], r["cell_bytes"], r["n_frames"] = n_heads, size, n
            r["frames"], r["stamps"] = frames.ctypes.data, stamps.ctypes.data
            self._tickets[i] = tickets
            r["owners"], r["tickets"] = self._owners[i].ctypes.data, tickets.ctypes.data
            r["hands"] = self._int64(n_heads).ctypes.data
            r["counters"] = self._counters[i].ctypes.data
            r["n_overflow"], r["overflow"] = overflow, shared.ctypes.data
            names = ("overflow_tickets", "overflow_owners", "overflow_counts")
            for name, table in zip(names, tables, strict=True):
                r[name] = table.ctypes.data

    def _int64(self, *shape: int) -> NDArray[np.int64]:
        array = np.zeros(shape, np.int64)
        self._keep.append(array)
        return array

    def place(self, layer: int, places: NDArray[np.int64], sums: NDArray[np.uint32]) -> None:
        """Where a layer's cells lie on disk, tables that the arena keeps."""
        self.records[layer]["places"] = places.ctypes.data
        self.records[layer]["sums"] = sums.ctypes.data

    def give(
        self,
        layer: int,
        head: int,
        cells: NDArray[np.int64],
        wanted: NDArray[np.int64],
        used: NDArray[np.int32],
        now: int,
    ) -> NDArray[np.int64]:
        """Give cells [n] of a KV head memory and their entries in the layer's table `cells`; their
        addresses [n]. For a host that reads on behalf of a device: what the CPU's kernels do by
        themselves, but with the least recently used of all frames.

        used: int32 [G, cells]: the last token that read each cell, `now` for those of this token,
        whose frames are kept.
        """
        r, owners = self.records[layer], self._owners[layer][head]
        frames = np.flatnonzero(owners < 0)[: len(wanted)]
        missing = len(wanted) - len(frames)
        if missing > 0:
            held = np.flatnonzero(owners >= 0)
            stamps = used[head, owners[held]]
            held, stamps = held[stamps != now], stamps[stamps != now]
            if missing < len(held):
                held = held[np.argpartition(stamps, missing)[:missing]]
            cells[head, owners[held]] = 0
            frames = np.append(frames, held)
        size, n = int(r["cell_bytes"]), len(frames)
        owners[frames] = wanted[:n]
        addresses = int(r["frames"]) + (head * int(r["n_frames"]) + frames) * size
        if n < len(wanted):
            _, overflow_owners, counts = self._overflow
            first, more = int(counts[head]), len(wanted) - n
            places = np.arange(first, first + more)
            overflow_owners[head, places] = wanted[n:]
            counts[head] += more
            room = int(r["overflow"]) + (head * int(r["n_overflow"]) + places) * size
            addresses = np.append(addresses, room)
        cells[head, wanted] = addresses
        self._counters[layer][head, 1:3] += (len(wanted), len(wanted) - n)
        return addresses

    def count_hits(self, layer: int, hits: NDArray[np.int64]) -> None:
        """Count cells [G] that a token found in memory."""
        self._counters[layer][:, 0] += hits

    def release(self, cells: NDArray[np.int64]) -> None:
        """Empty the overflow frames; cells: the table of the layer that took them with `give`."""
        _, owners, counts = self._overflow
        for head in np.flatnonzero(counts).tolist():
            cells[head, owners[head, : counts[head]]] = 0
        counts[:] = 0

    @property
    def has_overflows(self) -> bool:
        """Whether cells lie in overflow frames."""
        return bool(self._overflow[2].any())

    def contents(self, layer: int, addresses: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the frames at addresses [n], uint8 [n, bytes of a cell]."""
        r = self.records[layer]
        size = int(r["cell_bytes"])
        frames = self._frames[layer].reshape(-1, size)
        at = (addresses - int(r["frames"])) // size
        inside = (at >= 0) & (at < len(frames))
        out = np.empty((len(addresses), size), np.uint8)
        out[inside] = frames[at[inside]]
        others = (addresses[~inside] - int(r["overflow"])) // size
        n_overflow = len(self._shared) // size
        out[~inside] = self._shared[: n_overflow * size].reshape(-1, size)[others]
        return out

    def forget(
        self, layer: int, head: int, cells: NDArray[np.int64], gone: NDArray[np.int64]
    ) -> None:
        """Empty the frames of cells of a KV head that were not read well."""
        owners = self._owners[layer][head]
        cells[head, gone] = 0
        owners[np.isin(owners, gone)] = -1

    def drop(self, layer: int, cells: NDArray[np.int64], first: int, end: int) -> None:
        """Empty the frames that hold cells first..end; cells: the layer's table."""
        if layer in self._owners:
            owners = self._owners[layer]
            for head, row in enumerate(owners):
                gone = np.flatnonzero((row >= first) & (row < end))
                cells[head, row[gone]] = 0
                row[gone] = -1

    def failed(self, layer: int, cells: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """(cell, KV head, ticket) of every read that failed since the last call; their frames are
        emptied. cells: the layer's table."""
        if not self.records[layer]["problem"]:
            return []
        self.records[layer]["problem"] = 0
        owners, tickets, found = self._owners[layer], self._tickets[layer], []
        for head, frame in np.argwhere(tickets < 0).tolist():
            cell = int(owners[head, frame])
            found.append((cell, head, int(tickets[head, frame])))
            cells[head, cell] = tickets[head, frame] = 0
            owners[head, frame] = -1
        r, tables = self.records[layer], self._overflow
        for head, place in np.argwhere(tables[0] < 0).tolist():
            if head < r["n_heads"]:
                found.append((int(tables[1][head, place]), head, int(tables[0][head, place])))
        tables[0][...] = 0
        return found

    @property
    def cell_reads(self) -> CellReads:
        """Counts since the start."""
        total = sum((c.sum(0) for c in self._counters.values()), np.zeros(COUNTERS, np.int64))
        return CellReads(*(int(n) for n in total[:3]))
