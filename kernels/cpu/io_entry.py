"""Entry points of the reader's queue for Python, compiled once and kept (kvstore/reader.py)."""

from collections.abc import Callable
from typing import Any

from numba import njit, types

from . import io_queue, io_worker
from .io_read import direct_descriptor, read_run
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
# What `finish` is told of a run.
WHOLE, SAID, UNREAD = 0, 1, 2


_entries: list[tuple[Any, int]] = []


def _entry(n_arguments: int) -> Callable[[Any], Any]:
    """Compile for int64 arguments, when `prepare` is called."""

    def wrap(function: Any) -> Any:
        compiled = njit(cache=True, **JIT)(function)
        _entries.append((compiled, n_arguments))
        return compiled

    return wrap


def prepare() -> None:
    """Compile all entry points, or load them: an I/O thread that meets its first request must not
    begin to."""
    for compiled, n_arguments in _entries:
        compiled.compile((types.int64,) * n_arguments)


@_entry(5)
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


@_entry(3)
def wait_all(queue: int, tickets: int, n: int) -> int:
    """Wait for n tickets that lie side by side; returns how many are READ."""
    n_read = 0
    for i in range(n):
        n_read += io_queue.wait_ticket(queue, tickets + 8 * i) == io_queue.READ
    return n_read


@_entry(2)
def promote(queue: int, ticket: int) -> int:
    """See io_queue.promote."""
    return int(io_queue.promote(queue, ticket))


@_entry(2)
def cancel_hints(queue: int, generation: int) -> int:
    """See io_queue.cancel_hints."""
    n: int = io_queue.cancel_hints(queue, generation)
    return n


@_entry(6)
def set_file(
    queue: int, index: int, buffered: int, direct: int, offset_align: int, memory_align: int
) -> int:
    """Open a file entry: its descriptors (direct: -1 for none) and what O_DIRECT asks for."""
    file = address_of_file(queue, index)
    lock(queue)
    put(file + BUFFERED, buffered)
    put(file + DIRECT, direct)
    put(file + OFFSET_ALIGN, offset_align)
    put(file + MEMORY_ALIGN, memory_align)
    put(file + STATE, FILE_OPEN)
    unlock(queue)
    return 0


@_entry(2)
def refuse_file(queue: int, index: int) -> int:
    """Take no more requests for a file and drop the queued ones."""
    lock(queue)
    put(address_of_file(queue, index) + STATE, FILE_CLOSING)
    unlock(queue)
    io_queue.cancel_file(queue, index)
    return 0


@_entry(2)
def close_queue(queue: int, n_threads: int) -> int:
    """See io_queue.close_queue."""
    io_queue.close_queue(queue, n_threads)
    return 0


@_entry(1)
def serve(queue: int) -> int:
    """The life of an I/O thread that reads with preadv."""
    io_worker.serve(queue)
    return 0


@_entry(3)
def take(queue: int, sleeps: int, run: int) -> int:
    """A run of requests for a thread that reads in Python, hints too: see io_worker.take.

    sleeps: wait where there is none; then 0 means to call again.
    """
    n: int = io_worker.take(queue, 0, 1, sleeps, run)
    if n == 0 and sleeps:
        io_worker.sleep_until_woken(queue)
    return n


@_entry(3)
def direct_of(queue: int, run: int, n: int) -> int:
    """The descriptor with O_DIRECT that may read a run, or -1."""
    fd: int = direct_descriptor(run, n, file_of(queue, get(run)))
    return fd


@_entry(5)
def finish(queue: int, run: int, n: int, how: int, busy_ns: int) -> int:
    """End a run that was read in busy_ns: whole (WHOLE), as STATUS says (SAID), or not, so that it
    is read here (UNREAD)."""
    if how == UNREAD:
        read_run(queue, run, n)
    else:
        atomic_add(queue + READS, 1)
        atomic_add(queue + BUSY_NS, busy_ns)
    if how == WHOLE:
        for i in range(n):
            put(get(run + 8 * i) + STATUS, 0)
    io_worker.finish(queue, run, n)
    return 0
