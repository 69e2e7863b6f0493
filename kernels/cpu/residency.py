"""Cells of keys and values that lie on disk: which frames of memory hold them, and fetching more.

Every KV head of a layer has frames of its own, so that no two threads share one. A cell's entry in
the layer's table of addresses is its frame, or 0. `fetch` gives every cell of a route a frame and
asks the reader for those that are missing; `await_cells` waits for some of them. A frame of the
token at hand is never given away: when all are, the rest goes to overflow frames, which all layers
share and `release` empties. Which cells are resident changes no result.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from .io_queue import kick, push, wait_ticket
from .io_slots import MORE, VERIFY
from .io_worker import PENDING
from .params import RESIDENCY
from .simd import load_scalar_i32, load_scalar_i64, store_scalar_i64
from .sync import as_pointer, atomic_load

JIT = {"nogil": True, "error_model": "numpy"}

# Frames looked at for one to give away: the least recently used of them goes.
_CANDIDATES = 8
# Counters per KV head: cells found, cells read, of them to overflow frames.
_HITS, _READS, _OVERFLOWS = 0, 1, 2
COUNTERS = 8


@njit(**JIT)
def open_residency(layer: Any) -> Any:
    """The RESIDENCY record of a layer whose cells lie on disk."""
    return carray(as_pointer(layer.residency), 1, RESIDENCY)[0]


@njit(**JIT)
def _count(r: Any, head: Any, which: Any) -> None:
    at = r.counters + 8 * (COUNTERS * head + which)
    store_scalar_i64(at, load_scalar_i64(at) + 1)


@njit(**JIT)
def _take_frame(r: Any, cells: Any, head: Any, now: Any) -> Any:
    """A frame of the head for another cell, -1 if the token at hand needs them all."""
    n, row = r.n_frames, 8 * head * r.n_frames
    hand = load_scalar_i64(r.hands + 8 * head)
    best, oldest, seen = np.int64(-1), now, 0
    for _ in range(n):
        at = row + 8 * hand
        stamp = load_scalar_i64(r.stamps + at)
        if stamp < oldest and atomic_load(r.tickets + at) != PENDING:
            best, oldest = hand, stamp
        hand = hand + 1 if hand + 1 < n else 0
        if stamp < now:
            seen += 1
            if seen >= _CANDIDATES and best >= 0:
                break
    store_scalar_i64(r.hands + 8 * head, hand)
    if best >= 0:
        owner = load_scalar_i64(r.owners + row + 8 * best)
        if owner >= 0:
            store_scalar_i64(cells + 8 * owner, 0)
    return best


@njit(**JIT)
def _ask(r: Any, queue: Any, head: Any, cell: Any, frame: Any, ticket: Any) -> None:
    """Ask the reader for a cell of 16 tokens."""
    # Eight cells a block: four of each of its two chunks.
    block, inside = cell >> 3, ((cell >> 2) & 1) * r.n_heads * 4 + head * 4 + (cell & 3)
    place = r.places + 24 * block
    push(
        queue,
        load_scalar_i64(place),
        load_scalar_i64(place + 8) + inside * r.cell_bytes,
        r.cell_bytes,
        frame,
        ticket,
        VERIFY | MORE,
        0,
        np.int64(np.uint32(load_scalar_i32(r.sums + 4 * (8 * r.n_heads * block + inside)))),
        load_scalar_i64(place + 16) + inside,
    )


@njit(**JIT)
def fetch(r: Any, queue: Any, cells: Any, head: Any, groups: Any, count: Any, now: Any) -> None:
    """Give every cell of `count` listed groups (int32, ascending) a frame, and ask for what is
    missing. cells: the KV head's table; now: grows from token to token."""
    first, size = r.frames + head * r.n_frames * r.cell_bytes, r.n_frames * r.cell_bytes
    last, asked = np.int64(-1), False
    for i in range(count):
        cell = np.int64(load_scalar_i32(groups + 4 * i)) >> 1
        if cell == last:
            continue
        last = cell
        address = load_scalar_i64(cells + 8 * cell)
        if address != 0:
            inside = address - first
            if 0 <= inside < size:
                at = 8 * (head * r.n_frames + inside // r.cell_bytes)
                store_scalar_i64(r.stamps + at, now)
            _count(r, head, _HITS)
            continue
        _count(r, head, _READS)
        frame = _take_frame(r, cells, head, now)
        if frame >= 0:
            at, address = 8 * (head * r.n_frames + frame), first + frame * r.cell_bytes
            store_scalar_i64(r.stamps + at, now)
            store_scalar_i64(r.owners + at, cell)
            ticket = r.tickets + at
        else:
            _count(r, head, _OVERFLOWS)
            n = load_scalar_i64(r.overflow_counts + 8 * head)
            store_scalar_i64(r.overflow_counts + 8 * head, n + 1)
            slot = head * r.n_overflow + n
            address = r.overflow + slot * r.cell_bytes
            store_scalar_i64(r.overflow_owners + 8 * slot, cell)
            ticket = r.overflow_tickets + 8 * slot
        store_scalar_i64(cells + 8 * cell, address)
        _ask(r, queue, head, cell, address, ticket)
        asked = True
    if asked:
        kick(queue)


@njit(**JIT)
def _ticket(r: Any, head: Any, address: Any) -> Any:
    """Address of the ticket of the frame at an address; 0 for memory that is no frame."""
    inside = address - r.frames - head * r.n_frames * r.cell_bytes
    if 0 <= inside < r.n_frames * r.cell_bytes:
        return r.tickets + 8 * (head * r.n_frames + inside // r.cell_bytes)
    inside = address - r.overflow - head * r.n_overflow * r.cell_bytes
    if 0 <= inside < r.n_overflow * r.cell_bytes:
        return r.overflow_tickets + 8 * (head * r.n_overflow + inside // r.cell_bytes)
    return np.int64(0)


@njit(**JIT)
def have_landed(r: Any, cells: Any, head: Any, groups: Any, first: Any, end: Any) -> Any:
    """Whether the cells of the listed groups first..end are there."""
    for i in range(first, end):
        cell = np.int64(load_scalar_i32(groups + 4 * i)) >> 1
        ticket = _ticket(r, head, load_scalar_i64(cells + 8 * cell))
        if ticket != 0 and atomic_load(ticket) == PENDING:
            return False
    return True


@njit(**JIT)
def await_cells(
    r: Any, queue: Any, cells: Any, head: Any, groups: Any, first: Any, end: Any
) -> Any:
    """Wait until the cells of the listed groups first..end are there; 0, or a failed ticket."""
    problem = np.int64(0)
    for i in range(first, end):
        cell = np.int64(load_scalar_i32(groups + 4 * i)) >> 1
        ticket = _ticket(r, head, load_scalar_i64(cells + 8 * cell))
        if ticket != 0:
            problem = min(problem, wait_ticket(queue, ticket))
    if problem < 0:
        r.problem = problem
    return problem


@njit(**JIT)
def release(r: Any, cells: Any, head: Any) -> None:
    """Empty the overflow frames of a KV head after its attention."""
    for i in range(load_scalar_i64(r.overflow_counts + 8 * head)):
        slot = head * r.n_overflow + i
        store_scalar_i64(cells + 8 * load_scalar_i64(r.overflow_owners + 8 * slot), 0)
    store_scalar_i64(r.overflow_counts + 8 * head, 0)


@njit(**JIT)
def list_everything(groups: Any, n_groups: Any) -> None:
    """The list of all groups, for a token that reads them all."""
    for i in range(n_groups):
        address = carray(as_pointer(groups + 4 * i), 1, np.int32)
        address[0] = np.int32(i)


@njit(nogil=True, error_model="numpy", cache=True)
def read_blocks(
    queue: int,
    places: int,
    sums: int,
    n_cells: int,
    cell_bytes: int,
    dest: int,
    tickets: int,
    first: int,
    end: int,
) -> int:
    """Read one layer's cells of blocks first..end; 0, or a failed ticket.

    places, sums: as in RESIDENCY; n_cells: of a block, 8 G; dest: the layer's pages, block after
    block from `first` on; tickets: int64 [end - first][n_cells].
    """
    for block in range(first, end):
        place = places + 24 * block
        for i in range(n_cells):
            push(
                queue,
                load_scalar_i64(place),
                load_scalar_i64(place + 8) + i * cell_bytes,
                cell_bytes,
                dest + ((block - first) * n_cells + i) * cell_bytes,
                tickets + 8 * ((block - first) * n_cells + i),
                VERIFY | MORE,
                0,
                np.int64(np.uint32(load_scalar_i32(sums + 4 * (n_cells * block + i)))),
                load_scalar_i64(place + 16) + i,
            )
        kick(queue)
    problem = 0
    for i in range((end - first) * n_cells):
        problem = min(problem, wait_ticket(queue, tickets + 8 * i))
    return problem
