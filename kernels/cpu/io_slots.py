"""The request queue of the reader as it lies in memory: slots, two lists, two indices, a lock.

A slot is free, queued (in the demand or the hint list, and in the indices by ticket and by place)
or in flight. Everything but the words TOKENS, DONE, WAITERS and the counts is read and written
under the lock; it is held for some 100 ns, never across a system call. Links are addresses.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .simd import load_scalar_i64, store_scalar_i64
from .sync import atomic_load, atomic_store, pause, yield_thread
from .system_calls import JIT, atomic_exchange, functions

# Words that threads spin or sleep on have a cache line each.
LOCK, TOKENS, DONE, WAITERS = 0, 64, 128, 192
MERGE_BYTES, FLIGHT_LIMIT, MAX_HINTS = range(256, 280, 8)
BUCKET_MASK, FILES, TICKETS, PLACES = range(280, 312, 8)
FREE, DEMAND_FIRST, DEMAND_LAST, HINT_FIRST, HINT_LAST = range(312, 352, 8)
N_DEMAND, N_HINT, N_FLIGHT, FLIGHT_BYTES, IDLE, CLOSED = range(352, 400, 8)
PREADV, ERRNO, SYSCALL, FUTEX, CLOCK, CLOCK_ID = range(400, 448, 8)
REQUESTS, BYTES, READS, MERGED, ERRORS, WRONG_SUMS, BUSY_NS = range(448, 504, 8)
DIRECT_REFUSED, HELPED, PROMOTED, CANCELLED, REFUSED, STALLS, STALL_NS = range(504, 560, 8)
# Of what is in flight: demands, and bytes of hints.
DEMAND_FLIGHT, HINT_FLIGHT_BYTES = 560, 568
_HEADER_BYTES = 576

# Counts since the queue was made, by the name under which they are reported.
COUNTS = {
    "requests": REQUESTS,
    "bytes": BYTES,
    "reads": READS,
    "merged": MERGED,
    "errors": ERRORS,
    "wrong_sums": WRONG_SUMS,
    "busy_ns": BUSY_NS,
    "direct_refused": DIRECT_REFUSED,
    "helped": HELPED,
    "promoted": PROMOTED,
    "cancelled": CANCELLED,
    "refused": REFUSED,
    "stalls": STALLS,
    "stall_ns": STALL_NS,
}

# Words of a slot.
FILE, OFFSET, SIZE, DEST, TICKET, FLAGS, SUM, SEED, GENERATION, STATUS = range(0, 80, 8)
_NEXT, _PREVIOUS, _NEXT_TICKET, _NEXT_PLACE = range(80, 112, 8)
SLOT_BYTES = 128

# Words of a file. N_PENDING counts its requests, queued and in flight.
STATE, BUFFERED, DIRECT, OFFSET_ALIGN, MEMORY_ALIGN, N_PENDING = range(0, 48, 8)
FILE_BYTES = 64
FILE_FREE, FILE_OPEN, FILE_CLOSING = 0, 1, 2

HINT, VERIFY, MORE, BLOB = 1, 2, 4, 8
# Requests that one read serves at most.
MAX_RUN = 64
# No hint begins while a demand is being read, nor beside so many bytes of others: what is in flight
# shares the disk, and whoever waits would wait for both.
_HINT_BYTES = 4 << 20

_LOCK_SPINS = 200
_HASH = np.int64(0x1E3779B97F4A7C15)


def allocate(
    n_entries: int, n_files: int, merge_bytes: int, flight_bytes: int
) -> tuple[NDArray[np.int64], int]:
    """Memory of an empty queue and the address to give to kernels.

    merge_bytes: the most that neighbouring requests may have together to become one read.
    flight_bytes: no read begins that would bring the bytes being read above this, unless none are.
    """
    n_buckets = 1 << (2 * n_entries - 1).bit_length()
    sizes = (_HEADER_BYTES, n_files * FILE_BYTES, 8 * n_buckets, 8 * n_buckets)
    starts = np.cumsum([-(-size // 64) * 64 for size in sizes]).tolist()
    memory = np.zeros((starts[-1] + n_entries * SLOT_BYTES) // 8 + 8, np.int64)
    queue = (memory.ctypes.data + 63) // 64 * 64
    words = memory[(queue - memory.ctypes.data) // 8 :]
    files, tickets, places, slots = (queue + start for start in starts)
    values = {
        MERGE_BYTES: merge_bytes,
        FLIGHT_LIMIT: flight_bytes,
        # Hints never take the last quarter: a demand finds room without waiting for one.
        MAX_HINTS: n_entries * 3 // 4,
        BUCKET_MASK: n_buckets - 1,
        FILES: files,
        TICKETS: tickets,
        PLACES: places,
        FREE: slots,
        **dict(zip((PREADV, ERRNO, SYSCALL, FUTEX, CLOCK, CLOCK_ID), functions())),
    }
    for word, value in values.items():
        words[word // 8] = value
    first = (slots - queue) // 8
    table = words[first : first + n_entries * SLOT_BYTES // 8].reshape(n_entries, -1)
    table[:-1, _NEXT // 8] = slots + SLOT_BYTES * np.arange(1, n_entries)
    return memory, queue


@njit(**JIT)
def get(address: int) -> int:
    """The int64 at address."""
    value: int = load_scalar_i64(address)
    return value


@njit(**JIT)
def put(address: int, value: int) -> None:
    """Write the int64 at address."""
    store_scalar_i64(address, value)


@njit(**JIT)
def lock(queue: int) -> None:
    """Take the queue for this thread."""
    spins = 0
    while atomic_exchange(queue + LOCK, 1) != 0:
        while atomic_load(queue + LOCK) != 0:
            if spins < _LOCK_SPINS:
                pause()
                spins += 1
            else:
                # The holder may have lost its time slice: spinning would keep it from going on.
                yield_thread()


@njit(**JIT)
def unlock(queue: int) -> None:
    """Let others have the queue."""
    atomic_store(queue + LOCK, 0)


@njit(**JIT)
def count(address: int, amount: int) -> None:
    """Add to a word that the lock guards."""
    put(address, get(address) + amount)


@njit(**JIT)
def file_of(queue: int, slot: int) -> Any:
    """Address of the file entry of a request."""
    return get(queue + FILES) + get(slot + FILE) * FILE_BYTES


@njit(**JIT)
def _ticket_bucket(queue: int, ticket: int) -> Any:
    mixed = ((ticket >> 3) * _HASH) >> 32
    return get(queue + TICKETS) + 8 * (mixed & get(queue + BUCKET_MASK))


@njit(**JIT)
def _place_bucket(queue: int, file: int, offset: int) -> Any:
    mixed = (((offset >> 8) + (file << 44)) * _HASH) >> 32
    return get(queue + PLACES) + 8 * (mixed & get(queue + BUCKET_MASK))


@njit(**JIT)
def _drop(bucket: int, link: int, slot: int) -> None:
    """Take a slot out of a bucket's chain; `link`: offset of the chain's word in a slot."""
    word = bucket
    while get(word) != slot:
        word = get(word) + link
    put(word, get(slot + link))


@njit(**JIT)
def _append(queue: int, slot: int) -> None:
    hint = get(slot + FLAGS) & HINT
    first = queue + (HINT_FIRST if hint else DEMAND_FIRST)
    last = queue + (HINT_LAST if hint else DEMAND_LAST)
    before = get(last)
    put(slot + _NEXT, 0)
    put(slot + _PREVIOUS, before)
    put(before + _NEXT if before else first, slot)
    put(last, slot)
    count(queue + (N_HINT if hint else N_DEMAND), 1)


@njit(**JIT)
def _detach(queue: int, slot: int) -> None:
    hint = get(slot + FLAGS) & HINT
    first = queue + (HINT_FIRST if hint else DEMAND_FIRST)
    last = queue + (HINT_LAST if hint else DEMAND_LAST)
    before, after = get(slot + _PREVIOUS), get(slot + _NEXT)
    put(before + _NEXT if before else first, after)
    put(after + _PREVIOUS if after else last, before)
    count(queue + (N_HINT if hint else N_DEMAND), -1)


@njit(**JIT)
def enqueue(queue: int, slot: int) -> None:
    """Put a filled slot at the end of its list and into both indices."""
    _append(queue, slot)
    bucket = _ticket_bucket(queue, get(slot + TICKET))
    put(slot + _NEXT_TICKET, get(bucket))
    put(bucket, slot)
    bucket = _place_bucket(queue, get(slot + FILE), get(slot + OFFSET))
    put(slot + _NEXT_PLACE, get(bucket))
    put(bucket, slot)
    count(file_of(queue, slot) + N_PENDING, 1)


@njit(**JIT)
def dequeue(queue: int, slot: int) -> None:
    """Take a slot out of its list and both indices."""
    _detach(queue, slot)
    _drop(_ticket_bucket(queue, get(slot + TICKET)), _NEXT_TICKET, slot)
    bucket = _place_bucket(queue, get(slot + FILE), get(slot + OFFSET))
    _drop(bucket, _NEXT_PLACE, slot)


@njit(**JIT)
def release(queue: int, slot: int) -> None:
    """Free a slot that is in no list."""
    count(file_of(queue, slot) + N_PENDING, -1)
    put(slot + _NEXT, get(queue + FREE))
    put(queue + FREE, slot)


@njit(**JIT)
def following(slot: int) -> Any:
    """The next slot of a list, or 0."""
    return get(slot + _NEXT)


@njit(**JIT)
def find_ticket(queue: int, ticket: int) -> Any:
    """The queued slot of a ticket, or 0."""
    slot = get(_ticket_bucket(queue, ticket))
    while slot != 0 and get(slot + TICKET) != ticket:
        slot = get(slot + _NEXT_TICKET)
    return slot


@njit(**JIT)
def make_demand(queue: int, slot: int) -> None:
    """Move a queued hint to the end of the demand list."""
    _detach(queue, slot)
    put(slot + FLAGS, get(slot + FLAGS) & ~HINT)
    _append(queue, slot)
    count(queue + PROMOTED, 1)


@njit(**JIT)
def hints_may_begin(queue: int) -> bool:
    """Under the lock: whether what is in flight leaves the disk to hints."""
    beside = get(queue + DEMAND_FLIGHT) > 0
    return bool(not beside and get(queue + HINT_FLIGHT_BYTES) < _HINT_BYTES)


@njit(**JIT)
def take_run(queue: int, slot: int, run: int) -> int:
    """Take a queued slot and the requests that follow it in its file and are as urgent.

    run: address of MAX_RUN int64, filled with slots. Returns how many; 0 where what is in flight
    forbids it.
    """
    file, end = get(slot + FILE), get(slot + OFFSET)
    hint, flying, total, n = get(slot + FLAGS) & HINT, get(queue + FLIGHT_BYTES), 0, 0
    if hint and not hints_may_begin(queue):
        return 0
    while slot != 0 and n < MAX_RUN:
        size = get(slot + SIZE)
        if flying + total > 0 and flying + total + size > get(queue + FLIGHT_LIMIT):
            break
        if n > 0 and total + size > get(queue + MERGE_BYTES):
            break
        dequeue(queue, slot)
        put(run + 8 * n, slot)
        total, end, n = total + size, end + size, n + 1
        slot = get(_place_bucket(queue, file, end))
        while slot != 0 and (
            get(slot + OFFSET) != end
            or get(slot + FILE) != file
            or get(slot + FLAGS) & HINT != hint
        ):
            slot = get(slot + _NEXT_PLACE)
    count(queue + FLIGHT_BYTES, total)
    count(queue + N_FLIGHT, n)
    if hint:
        count(queue + HINT_FLIGHT_BYTES, total)
    else:
        count(queue + DEMAND_FLIGHT, n)
    return n


@njit(**JIT)
def address_of_file(queue: int, index: int) -> Any:
    """Address of a file's entry."""
    return get(queue + FILES) + index * FILE_BYTES
