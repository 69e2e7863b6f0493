"""The queue between kernels, which want bytes of files, and I/O threads, which read them.

A kernel pushes a request and goes on; an I/O thread takes it, demand before hints, reads, compares
the sum and marks the ticket, an int64 of the caller's that must outlive the request. A thread that
waits for a ticket reads itself what nobody has begun to read. Everything here may be called by any
number of compute and I/O threads at once. kvstore/reader.py owns the memory, files and threads.
"""

import errno

from numba import njit

from .io_slots import (
    BLOB,
    CANCELLED,
    CLOCK,
    CLOCK_ID,
    CLOSED,
    DEMAND_FIRST,
    DEST,
    DONE,
    FILE,
    FILE_OPEN,
    FLAGS,
    FREE,
    FUTEX,
    GENERATION,
    HINT,
    HINT_FIRST,
    MAX_HINTS,
    MORE,
    N_HINT,
    OFFSET,
    REFUSED,
    SEED,
    SIZE,
    STALL_NS,
    STALLS,
    STATE,
    SUM,
    SYSCALL,
    TICKET,
    VERIFY,
    WAITERS,
    address_of_file,
    count,
    dequeue,
    enqueue,
    find_ticket,
    following,
    get,
    lock,
    make_demand,
    put,
    release,
    unlock,
)
from .io_worker import (
    MOST_WOKEN,
    NOTHING,
    PENDING,
    READ,
    claim_idle,
    help_once,
    tell_waiters,
    wake_idle,
)
from .sync import (
    atomic_add,
    atomic_load,
    atomic_store,
    pause,
)
from .system_calls import (
    JIT,
    now_ns,
    sleep_on,
)

# For callers of `push` and readers of tickets.
__all__ = ["BLOB", "HINT", "MORE", "NOTHING", "PENDING", "READ", "VERIFY"]

_ECANCELED, _EBADF, _EINVAL = errno.ECANCELED, errno.EBADF, errno.EINVAL
_MS = 1_000_000
# A read takes 70 us and more: to spin longer than some us only takes the core from its I/O thread.
_SPINS = 100


@njit(**JIT)
def push(
    queue: int,
    file: int,
    offset: int,
    n_bytes: int,
    dest: int,
    ticket: int,
    flags: int,
    generation: int,
    expected_sum: int,
    seed: int,
) -> bool:
    """Ask for n_bytes at an offset of a file; everything is int64, dest and ticket are addresses.

    flags: HINT (not needed yet), VERIFY (n_bytes, a multiple of 256, are one cell with this sum,
    uint32, and seed, uint64 as int64), BLOB (the first `seed` of the n_bytes have this XXH3, uint64
    as int64), MORE (other requests follow at once, then `kick`).
    The ticket becomes PENDING and later READ or an error. False where nothing was queued: a hint
    that found no room leaves its ticket at NOTHING; after an error (a closed queue or file) the
    ticket says which. A demand that finds no room reads other requests until there is some.
    """
    entry = address_of_file(queue, file)
    while True:
        problem = 0
        lock(queue)
        slot = get(queue + FREE)
        if get(queue + CLOSED):
            problem = -_ECANCELED
        elif get(entry + STATE) != FILE_OPEN:
            problem = -_EBADF
        elif n_bytes <= 0 or offset < 0 or (flags & VERIFY and n_bytes & 255):
            problem = -_EINVAL
        elif flags & HINT and (slot == 0 or get(queue + N_HINT) >= get(queue + MAX_HINTS)):
            count(queue + REFUSED, 1)
            unlock(queue)
            atomic_store(ticket, NOTHING)
            return False
        if problem != 0 or slot != 0:
            break
        unlock(queue)
        if not help_once(queue, 0, 1):
            _sleep_until_done(queue, 0)
    if problem != 0:
        unlock(queue)
        atomic_store(ticket, problem)
        return False
    atomic_store(ticket, PENDING)
    put(queue + FREE, following(slot))
    put(slot + FILE, file)
    put(slot + OFFSET, offset)
    put(slot + SIZE, n_bytes)
    put(slot + DEST, dest)
    put(slot + TICKET, ticket)
    put(slot + FLAGS, flags)
    put(slot + GENERATION, generation)
    put(slot + SUM, expected_sum)
    put(slot + SEED, seed)
    enqueue(queue, slot)
    woken = 0 if flags & MORE else claim_idle(queue, 1)
    unlock(queue)
    wake_idle(queue, woken)
    return True


@njit(**JIT)
def kick(queue: int) -> None:
    """Wake I/O threads for requests that were pushed with MORE."""
    lock(queue)
    woken = claim_idle(queue, MOST_WOKEN)
    unlock(queue)
    wake_idle(queue, woken)


@njit(**JIT)
def promote(queue: int, ticket: int) -> bool:
    """Make a hint that is still queued a demand; whether the ticket's request is queued."""
    lock(queue)
    slot = find_ticket(queue, ticket)
    if slot != 0 and get(slot + FLAGS) & HINT:
        make_demand(queue, slot)
    unlock(queue)
    return bool(slot != 0)


@njit(**JIT)
def withdraw(queue: int, ticket: int) -> bool:
    """Drop a hint that is still queued; its ticket becomes NOTHING. Whether it was."""
    lock(queue)
    slot = find_ticket(queue, ticket)
    found = bool(slot != 0 and get(slot + FLAGS) & HINT)
    if found:
        dequeue(queue, slot)
        atomic_store(ticket, NOTHING)
        release(queue, slot)
        count(queue + CANCELLED, 1)
    unlock(queue)
    return found


@njit(**JIT)
def _cancel(queue: int, first: int, file: int, generation: int, outcome: int) -> int:
    """Under the lock: drop queued requests of a list, of one file (-1: any) and older than a
    generation."""
    slot, n = get(queue + first), 0
    while slot != 0:
        after = following(slot)
        if (file < 0 or get(slot + FILE) == file) and get(slot + GENERATION) < generation:
            dequeue(queue, slot)
            atomic_store(get(slot + TICKET), outcome)
            release(queue, slot)
            n += 1
        slot = after
    count(queue + CANCELLED, n)
    return n


@njit(**JIT)
def cancel_hints(queue: int, generation: int) -> int:
    """Drop queued hints of earlier generations; their tickets become NOTHING. Returns how many."""
    lock(queue)
    n: int = _cancel(queue, HINT_FIRST, -1, generation, NOTHING)
    unlock(queue)
    tell_waiters(queue)
    return n


@njit(**JIT)
def cancel_file(queue: int, file: int) -> None:
    """Drop all queued requests of a file (-1: of all files); their tickets become -ECANCELED."""
    lock(queue)
    most = 0x7FFFFFFFFFFFFFFF
    _cancel(queue, DEMAND_FIRST, file, most, -_ECANCELED)
    _cancel(queue, HINT_FIRST, file, most, -_ECANCELED)
    unlock(queue)
    tell_waiters(queue)


@njit(**JIT)
def close_queue(queue: int, n_threads: int) -> None:
    """Refuse requests from now on, drop the queued ones and let n_threads I/O threads leave."""
    lock(queue)
    put(queue + CLOSED, 1)
    unlock(queue)
    cancel_file(queue, -1)
    wake_idle(queue, n_threads)


@njit(**JIT)
def _sleep_until_done(queue: int, ticket: int) -> None:
    """Sleep until some read ends; not if the ticket (0: none) is no longer pending."""
    atomic_add(queue + WAITERS, 1)
    seen = atomic_load(queue + DONE)
    if ticket == 0 or atomic_load(ticket) == PENDING:
        # The time is a net under the net: every end of a read wakes.
        low = seen & 0xFFFFFFFF
        limit = _MS if ticket == 0 else 100 * _MS
        sleep_on(get(queue + SYSCALL), get(queue + FUTEX), queue + DONE, low, limit)
    atomic_add(queue + WAITERS, -1)


@njit(**JIT)
def wait_ticket(queue: int, ticket: int) -> int:
    """Wait until a ticket is no longer PENDING, and return it.

    Its request, if nobody has begun it, is read here (a hint becomes a demand); else, after some
    us, other demands are, and where there is none the thread sleeps.
    """
    outcome: int = atomic_load(ticket)
    if outcome != PENDING:
        return outcome
    start = now_ns(get(queue + CLOCK), get(queue + CLOCK_ID))
    mine = promote(queue, ticket)
    spins = 0
    while outcome == PENDING:
        if not mine and spins < _SPINS:
            pause()
            spins += 1
        elif not help_once(queue, ticket, 0):
            _sleep_until_done(queue, ticket)
        outcome = atomic_load(ticket)
    atomic_add(queue + STALLS, 1)
    atomic_add(queue + STALL_NS, now_ns(get(queue + CLOCK), get(queue + CLOCK_ID)) - start)
    return outcome
