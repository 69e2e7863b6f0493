"""Entry points of the reader's queue for Python, compiled once and kept (kvstore/reader.py)."""

from numba import njit

from . import io_queue, io_worker
from .io_read import direct_descriptor
from .io_slots import (
    BUFFERED,
    BUSY_NS,
    DIRECT,
    FILE_CLOSING,
    FILE_OPEN,
    MEMORY_ALIGN,
    OFFSET_ALIGN,
    READS,
    STATE,
    STATUS,
    address_of_file,
    file_of,
    get,
    lock,
    put,
    unlock,
)
from .sync import atomic_add
from .system_calls import JIT

# Words of a request in the table that `push_all` takes.
REQUEST_WORDS = 8

_ENTRY = {**JIT, "cache": True}


@njit(**_ENTRY)
def push_all(queue: int, table: int, n: int, flags: int, generation: int) -> int:
    """Push n requests: int64 [n, 8] of file, offset, n_bytes, dest, ticket, flags, sum, seed.

    flags are added to those of every request. Returns how many were queued.
    """
    queued = 0
    for i in range(n):
        r = table + 8 * REQUEST_WORDS * i
        own = flags | get(r + 40) | io_queue.MORE
        place = (get(r), get(r + 8), get(r + 16), get(r + 24), get(r + 32))
        queued += io_queue.push(queue, *place, own, generation, get(r + 48), get(r + 56))
    io_queue.kick(queue)
    return queued


@njit(**_ENTRY)
def wait_all(queue: int, tickets: int, n: int) -> int:
    """Wait for n tickets that lie side by side; returns how many are READ."""
    n_read = 0
    for i in range(n):
        n_read += io_queue.wait_ticket(queue, tickets + 8 * i) == io_queue.READ
    return n_read


@njit(**_ENTRY)
def promote(queue: int, ticket: int) -> bool:
    """See io_queue.promote."""
    return bool(io_queue.promote(queue, ticket))


@njit(**_ENTRY)
def cancel_hints(queue: int, generation: int) -> int:
    """See io_queue.cancel_hints."""
    n: int = io_queue.cancel_hints(queue, generation)
    return n


@njit(**_ENTRY)
def set_file(
    queue: int, index: int, buffered: int, direct: int, offset_align: int, memory_align: int
) -> None:
    """Open a file entry: its descriptors (direct: -1 for none) and what O_DIRECT asks for."""
    file = address_of_file(queue, index)
    lock(queue)
    put(file + BUFFERED, buffered)
    put(file + DIRECT, direct)
    put(file + OFFSET_ALIGN, offset_align)
    put(file + MEMORY_ALIGN, memory_align)
    put(file + STATE, FILE_OPEN)
    unlock(queue)


@njit(**_ENTRY)
def refuse_file(queue: int, index: int) -> None:
    """Take no more requests for a file and drop the queued ones."""
    lock(queue)
    put(address_of_file(queue, index) + STATE, FILE_CLOSING)
    unlock(queue)
    io_queue.cancel_file(queue, index)


@njit(**_ENTRY)
def close_queue(queue: int, n_threads: int) -> None:
    """See io_queue.close_queue."""
    io_queue.close_queue(queue, n_threads)


@njit(**_ENTRY)
def serve(queue: int) -> None:
    """The life of an I/O thread that reads with preadv."""
    io_worker.serve(queue)


@njit(**_ENTRY)
def read_once(queue: int) -> int:
    """See io_worker.read_once."""
    n: int = io_worker.read_once(queue)
    return n


@njit(**_ENTRY)
def take(queue: int, sleeps: bool, run: int) -> int:
    """A run of requests for a thread that reads in Python, hints too: see io_worker.take.

    sleeps: wait where there is none; then 0 means to call again.
    """
    n: int = io_worker.take(queue, 0, True, sleeps, run)
    if n == 0 and sleeps:
        io_worker.sleep_until_woken(queue)
    return n


@njit(**_ENTRY)
def direct_of(queue: int, run: int, n: int) -> int:
    """The descriptor with O_DIRECT that may read a run, or -1."""
    fd: int = direct_descriptor(run, n, file_of(queue, get(run)))
    return fd


@njit(**_ENTRY)
def finish(queue: int, run: int, n: int, busy_ns: int) -> None:
    """End a run whose outcomes stand in STATUS, after one read that took busy_ns."""
    atomic_add(queue + READS, 1)
    atomic_add(queue + BUSY_NS, busy_ns)
    io_worker.finish(queue, run, n)


@njit(**_ENTRY)
def finish_read(queue: int, run: int, n: int, busy_ns: int) -> None:
    """End a run that was read whole."""
    for i in range(n):
        put(get(run + 8 * i) + STATUS, 0)
    atomic_add(queue + READS, 1)
    atomic_add(queue + BUSY_NS, busy_ns)
    io_worker.finish(queue, run, n)


@njit(**_ENTRY)
def read_taken(queue: int, run: int, n: int) -> None:
    """Read and end a run with preadv."""
    io_worker.read_run(queue, run, n)
    io_worker.finish(queue, run, n)
