"""What threads that read do: take a run of requests, read it, mark the tickets, sleep.

I/O threads sleep on the word TOKENS of the queue (io_slots.py): who queues work takes one of them
off the count of the idle, under the lock, and leaves it a token, so that no waking is lost and
none is asked for twice. Threads that wait for tickets sleep on DONE, which every end of a read
changes.
"""

from numba import njit

from .io_read import read_run, verify_run
from .io_slots import (
    BYTES,
    CLOSED,
    DEMAND_FIRST,
    DEMAND_FLIGHT,
    DONE,
    ERRORS,
    FLAGS,
    FLIGHT_BYTES,
    FUTEX,
    HELPED,
    HINT,
    HINT_FIRST,
    HINT_FLIGHT_BYTES,
    IDLE,
    MAX_RUN,
    MERGED,
    N_DEMAND,
    N_FLIGHT,
    N_HINT,
    PREADV,
    REQUESTS,
    SIZE,
    STATUS,
    SYSCALL,
    TICKET,
    TOKENS,
    WAITERS,
    count,
    find_ticket,
    get,
    hints_may_begin,
    lock,
    release,
    take_run,
    unlock,
)
from .sync import MILLISECOND, atomic_add, atomic_load, atomic_store, sleep
from .system_calls import (
    JIT,
    compare_exchange,
    sleep_on,
    stack,
    wake,
)

# What a ticket says; below 0 it is -errno, WRONG_SUM or SHORT_FILE (io_read.py).
NOTHING, PENDING, READ = 0, 1, 2

# I/O threads that one thread wakes; those wake others if there is more.
MOST_WOKEN = 2
_NAP_NS = 1_000_000_000

_run = stack(8 * MAX_RUN)


@njit(**JIT)
def claim_idle(queue: int, most: int) -> int:
    """Under the lock: take up to `most` sleeping I/O threads off the count; the caller wakes them
    after unlocking."""
    queued = get(queue + N_DEMAND)
    if hints_may_begin(queue):
        queued += get(queue + N_HINT)
    n: int = min(most, min(queued, get(queue + IDLE)))
    count(queue + IDLE, -n)
    return n


@njit(**JIT)
def wake_idle(queue: int, n: int) -> None:
    # A token for each claimed thread: one that is not asleep yet finds it there.
    if n > 0:
        atomic_add(queue + TOKENS, n)
        wake(get(queue + SYSCALL), get(queue + FUTEX), queue + TOKENS, n)


@njit(**JIT)
def sleep_until_woken(queue: int) -> None:
    """For an I/O thread that `take` counted as idle."""
    naps = 0
    while True:
        tokens = atomic_load(queue + TOKENS)
        if tokens > 0:
            if compare_exchange(queue + TOKENS, tokens, tokens - 1):
                return
        elif get(queue + SYSCALL) == 0:
            # No futex: naps as those of the worker pool.
            naps += 1
            sleep(min(4, 1 + naps // 100) * MILLISECOND)
        else:
            sleep_on(get(queue + SYSCALL), get(queue + FUTEX), queue + TOKENS, 0, _NAP_NS)


@njit(**JIT)
def tell_waiters(queue: int) -> None:
    """After tickets changed."""
    atomic_add(queue + DONE, 1)
    if atomic_load(queue + WAITERS) > 0:
        wake(get(queue + SYSCALL), get(queue + FUTEX), queue + DONE, 1 << 30)


@njit(**JIT)
def take(queue: int, ticket: int, with_hints: int, idle: int, run: int) -> int:
    """Take a run to read: the ticket's, if it is still queued, else the oldest demand, else (with
    hints, and if `hints_may_begin`) the oldest hint.

    run: address of MAX_RUN int64, filled with slots. Returns how many, or -1 when the queue is
    closed. idle: the caller is an I/O thread that sleeps (`sleep_until_woken`) if it gets 0.
    """
    lock(queue)
    slot = find_ticket(queue, ticket) if ticket != 0 else 0
    if slot == 0:
        slot = get(queue + DEMAND_FIRST)
    if slot == 0 and with_hints:
        slot = get(queue + HINT_FIRST)
    n: int = take_run(queue, slot, run) if slot != 0 else 0
    if n == 0 and get(queue + CLOSED):
        n = -1
    elif n == 0 and idle:
        count(queue + IDLE, 1)
    woken = claim_idle(queue, MOST_WOKEN) if n > 0 else 0
    unlock(queue)
    wake_idle(queue, woken)
    return n


@njit(**JIT)
def finish(queue: int, run: int, n: int) -> None:
    """Compare the sums of a run whose outcomes stand in STATUS, and mark its tickets."""
    verify_run(queue, run, n)
    total = 0
    lock(queue)
    for i in range(n):
        slot = get(run + 8 * i)
        size, status = get(slot + SIZE), get(slot + STATUS)
        total += size
        if get(slot + FLAGS) & HINT:
            count(queue + HINT_FLIGHT_BYTES, -size)
        else:
            count(queue + DEMAND_FLIGHT, -1)
        if status == 0:
            count(queue + BYTES, size)
        else:
            count(queue + ERRORS, 1)
        atomic_store(get(slot + TICKET), READ if status == 0 else status)
        release(queue, slot)
    count(queue + REQUESTS, n)
    count(queue + MERGED, n - 1)
    count(queue + N_FLIGHT, -n)
    count(queue + FLIGHT_BYTES, -total)
    woken = claim_idle(queue, 1)
    unlock(queue)
    wake_idle(queue, woken)
    tell_waiters(queue)


@njit(**JIT)
def help_once(queue: int, ticket: int, with_hints: int) -> bool:
    """Read one run in this thread; whether there was one."""
    if get(queue + PREADV) == 0:
        return False
    run = _run()
    n = take(queue, ticket, with_hints, 0, run)
    if n <= 0:
        return False
    read_run(queue, run, n)
    finish(queue, run, n)
    atomic_add(queue + HELPED, n)
    return True


@njit(**JIT)
def serve(queue: int) -> None:
    """Read requests until the queue is closed: the life of an I/O thread."""
    run = _run()
    while True:
        n = take(queue, 0, 1, 1, run)
        if n < 0:
            return
        if n == 0:
            sleep_until_woken(queue)
        else:
            read_run(queue, run, n)
            finish(queue, run, n)
