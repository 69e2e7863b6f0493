"""Worker threads that run a kernel together.

`run` hands a kernel (by address) and its parameter block to all threads and takes part itself.
Idle workers spin for about a millisecond, outside the interpreter lock, then sleep on a condition
variable: back-to-back kernels of a token start within a microsecond, an idle prompt burns nothing.
"""

import threading
from types import TracebackType

import numpy as np
from numba import njit

from .sync import atomic_add, atomic_load, atomic_store, call_kernel, pause, wait_at_least

# One word per cache line of the mailbox.
_TICKET, _DONE, _KERNEL, _PARAMS, _STOP = (64 * i for i in range(5))
_MAILBOX_BYTES = 5 * 64

# Pauses before a worker goes to sleep: about a millisecond.
_IDLE_SPINS = 50_000


@njit(nogil=True, cache=True)
def _serve(mailbox: int, thread: int, n_threads: int, seen: int, spins: int) -> int:
    """Run kernels as they are posted; returns the last ticket seen when idle or told to stop."""
    idle = 0
    while idle < spins:
        if atomic_load(mailbox + _TICKET) == seen:
            pause()
            idle += 1
            continue
        seen += 1
        if atomic_load(mailbox + _STOP) != 0:
            return seen
        kernel, params = atomic_load(mailbox + _KERNEL), atomic_load(mailbox + _PARAMS)
        call_kernel(kernel, thread, n_threads, params)
        atomic_add(mailbox + _DONE, 1)
        idle = 0
    return seen


@njit(nogil=True, cache=True)
def _take_part(mailbox: int, n_threads: int, kernel: int, params: int) -> None:
    call_kernel(kernel, 0, n_threads, params)
    wait_at_least(mailbox + _DONE, n_threads - 1)


@njit(nogil=True, cache=True)
def _post(mailbox: int, kernel: int, params: int, stop: int) -> None:
    atomic_store(mailbox + _KERNEL, kernel)
    atomic_store(mailbox + _PARAMS, params)
    atomic_store(mailbox + _STOP, stop)
    atomic_store(mailbox + _DONE, 0)
    atomic_add(mailbox + _TICKET, 1)


@njit(nogil=True, cache=True)
def _ticket(mailbox: int) -> int:
    return atomic_load(mailbox + _TICKET)


class WorkerPool:
    """n_threads - 1 daemon threads and the caller. Not reentrant: one `run` at a time."""

    def __init__(self, n_threads: int) -> None:
        if n_threads < 1:
            raise ValueError(f"a pool needs at least one thread, not {n_threads}")
        self.n_threads = n_threads
        self._memory = np.zeros(_MAILBOX_BYTES // 8 + 8, np.int64)
        self._mailbox = (self._memory.ctypes.data + 63) // 64 * 64
        self._wake = threading.Condition()
        self._sleeping = 0
        self._closed = False
        _serve(self._mailbox, 0, 1, 0, 0)
        _ticket(self._mailbox)
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"hga-{i}", daemon=True)
            for i in range(1, n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, thread: int) -> None:
        seen = 0
        while True:
            seen = _serve(self._mailbox, thread, self.n_threads, seen, _IDLE_SPINS)
            if self._closed and seen == _ticket(self._mailbox):
                return
            with self._wake:
                self._sleeping += 1
                try:
                    # The poster looks at _sleeping after it has changed the ticket.
                    while _ticket(self._mailbox) == seen:
                        self._wake.wait()
                finally:
                    self._sleeping -= 1

    def _wake_sleepers(self) -> None:
        if self._sleeping:
            with self._wake:
                self._wake.notify_all()

    def run(self, kernel: int, params: int) -> None:
        """Run the kernel at an address on every thread and wait for all of them."""
        if self.n_threads == 1:
            _take_part(self._mailbox, 1, kernel, params)
            return
        before = _ticket(self._mailbox)
        try:
            _post(self._mailbox, kernel, params, 0)
            self._wake_sleepers()
        finally:
            # A signal handler may raise between any two statements: what was posted is joined
            # all the same, or the other threads would wait at the kernel's barriers for ever.
            if _ticket(self._mailbox) != before:
                self._wake_sleepers()
                _take_part(self._mailbox, self.n_threads, kernel, params)

    def close(self) -> None:
        """Stop the workers; the pool cannot be used afterwards."""
        if not self._closed and self._threads:
            self._closed = True
            _post(self._mailbox, 0, 0, 1)
            self._wake_sleepers()
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
