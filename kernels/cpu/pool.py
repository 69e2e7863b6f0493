"""Worker threads that run a kernel together.

`run` hands a kernel (by address) and its parameter block to all threads and takes part itself, in
one compiled call: no signal handler can come between posting and joining. Workers never return to
the interpreter: they spin for about a millisecond, so that the kernels of successive tokens start
at once, then nap for ever longer, up to 4 ms, so that an idle prompt costs no processor time.
A kernel may be given to the first threads alone; the others do not notice.
"""

import threading
from types import TracebackType

import numpy as np
from numba import njit

from .sync import (
    MILLISECOND,
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    pause,
    sleep,
    wait_at_least,
)

# One word per cache line of the mailbox. A ticket is the number of the kernel and, in its low bits,
# how many threads are to run it: read together, so that a worker that was asleep mistakes no kernel
# for another.
_TICKET, _DONE, _KERNEL, _PARAMS, _STOP = (64 * i for i in range(5))
_MAILBOX_BYTES = 5 * 64
_ACTIVE_BITS = 16

# Pauses before a worker naps (about a millisecond), and naps of each length.
_IDLE_SPINS = 50_000
_NAPS = 100
_LONGEST_NAP = 4 * MILLISECOND


@njit(nogil=True, cache=True)
def _serve(mailbox: int, thread: int) -> None:
    """Run kernels as they are posted, until told to stop."""
    seen, idle = 0, 0
    while True:
        ticket = atomic_load(mailbox + _TICKET)
        if ticket == seen:
            idle += 1
            if idle < _IDLE_SPINS:
                pause()
            else:
                sleep(min(_LONGEST_NAP, MILLISECOND * (1 + (idle - _IDLE_SPINS) // _NAPS)))
            continue
        seen = ticket
        if atomic_load(mailbox + _STOP) != 0:
            return
        active = ticket & ((1 << _ACTIVE_BITS) - 1)
        if thread >= active:
            # Not idle: it may be wanted for the next one.
            continue
        idle = 0
        kernel, params = atomic_load(mailbox + _KERNEL), atomic_load(mailbox + _PARAMS)
        call_kernel(kernel, thread, active, params)
        atomic_add(mailbox + _DONE, 1)


@njit(nogil=True, cache=True)
def _run(mailbox: int, n_threads: int, kernel: int, params: int) -> None:
    """Post a kernel, take part as thread 0 and wait for the others."""
    if n_threads > 1:
        atomic_store(mailbox + _KERNEL, kernel)
        atomic_store(mailbox + _PARAMS, params)
        atomic_store(mailbox + _DONE, 0)
        ticket = (atomic_load(mailbox + _TICKET) >> _ACTIVE_BITS) + 1
        atomic_store(mailbox + _TICKET, (ticket << _ACTIVE_BITS) | n_threads)
    call_kernel(kernel, 0, n_threads, params)
    if n_threads > 1:
        wait_at_least(mailbox + _DONE, n_threads - 1)


@njit(nogil=True, cache=True)
def _stop(mailbox: int) -> None:
    atomic_store(mailbox + _STOP, 1)
    atomic_add(mailbox + _TICKET, 1 << _ACTIVE_BITS)


class WorkerPool:
    """n_threads - 1 daemon threads and the caller. Not reentrant: one `run` at a time."""

    def __init__(self, n_threads: int) -> None:
        if n_threads < 1:
            raise ValueError(f"a pool needs at least one thread, not {n_threads}")
        self.n_threads = n_threads
        self._memory = np.zeros(_MAILBOX_BYTES // 8 + 8, np.int64)
        self._mailbox = (self._memory.ctypes.data + 63) // 64 * 64
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"hga-{i}", daemon=True)
            for i in range(1, n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, thread: int) -> None:
        # A method, so that workers that nobody stopped keep the mailbox alive.
        _serve(self._mailbox, thread)

    def run(self, kernel: int, params: int, n_active: int | None = None) -> None:
        """Run the kernel at an address on the first n_active threads (None: on every one) and wait
        for all of them."""
        if self._closed:
            raise RuntimeError("the worker pool is closed")
        n = self.n_threads if n_active is None else n_active
        assert 1 <= n <= self.n_threads
        _run(self._mailbox, n, kernel, params)

    def close(self) -> None:
        """Stop the workers; the pool cannot be used afterwards."""
        if not self._closed:
            self._closed = True
            _stop(self._mailbox)
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
