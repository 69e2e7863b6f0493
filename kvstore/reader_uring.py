"""io_uring through the package liburing: one Python thread keeps many reads under way.

Few system calls and little processor time outside the interpreter, but some microseconds inside it
for every read.
"""

import errno
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reader_backends import Queue, run_words, window_of

# Reads under way at a time: the drive's full rate needs some tens.
URING_READS = 64


class Ring:
    """An io_uring of the package liburing. OSError or ImportError where there is none."""

    _ring: Any
    _result: Any
    _ready: Any

    def __init__(self, n_reads: int = URING_READS) -> None:
        if sys.platform != "linux":
            raise ImportError("it is Linux's")
        import liburing

        self._uring: Any = liburing
        self._ring = liburing.Ring()
        self._result = liburing.Cqe()
        liburing.io_uring_queue_init(n_reads, self._ring)
        self._ready = select.poll()
        self._ready.register(self._ring.ring_fd, select.POLLIN)

    def start(self, fd: int, windows: Sequence[memoryview], offset: int, tag: int) -> Any:
        """Prepare a read; what is returned must live until `ended` gives the tag."""
        vectors = self._uring.Iovec(list(windows))
        entry = self._uring.io_uring_get_sqe(self._ring)
        self._uring.io_uring_prep_readv(entry, fd, vectors, offset)
        entry.user_data = tag
        return vectors

    def ended(self) -> list[tuple[int, int]]:
        """Submit what was prepared, wait for one read at least: tags and bytes or -errno."""
        uring, submitted = self._uring, False
        results: list[tuple[int, int]] = []
        while not results:
            try:
                if not submitted:
                    uring.io_uring_submit(self._ring)
                    submitted = True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                    raise
            # The package holds the interpreter while it waits for a read; poll does not.
            self._ready.poll(None if submitted else 1)
            while uring.io_uring_cq_ready(self._ring):
                uring.io_uring_peek_cqe(self._ring, self._result)
                entry = self._result[0]
                tag = entry.user_data
                try:
                    n_bytes = entry.res
                except OSError as error:
                    n_bytes = -(error.errno or errno.EIO)
                results.append((tag, n_bytes))
                uring.io_uring_cqe_seen(self._ring, entry)
        return results

    def close(self) -> None:
        """Give the ring back."""
        self._uring.io_uring_queue_exit(self._ring)


def serve_uring(queue: Queue, ring: Ring) -> None:
    """Keep the ring full of runs; what does not come whole is read again with preadv."""
    free = [(tag, run_words()) for tag in range(1, URING_READS + 1)]
    flying: dict[int, _Flight] = {}
    try:
        _keep_full(queue, ring, free, flying)
    except BaseException:
        from hga.kernels.cpu import io_entry, io_slots

        # The system may still write there: an error, so that nobody takes it for what was read.
        for flight in flying.values():
            for slot in flight.run[: flight.n]:
                queue.fields(int(slot))[io_slots.STATUS // 8] = -errno.EIO
            where = (queue.address, flight.run.ctypes.data, flight.n)
            io_entry.finish(*where, io_entry.SAID, 0)
        raise


@dataclass(frozen=True, slots=True)
class _Flight:
    """A run that is being read; `memory` is what the ring's entry points to."""

    run: NDArray[np.int64]
    n: int
    n_bytes: int
    start_ns: int
    memory: Any


def _keep_full(
    queue: Queue,
    ring: Ring,
    free: list[tuple[int, NDArray[np.int64]]],
    flying: dict[int, _Flight],
) -> None:
    from hga.kernels.cpu import io_entry

    closed = False
    while flying or not closed:
        while free and not closed:
            run = free[-1][1]
            n = io_entry.take(queue.address, int(not flying), run.ctypes.data)
            closed = n < 0
            if n > 0:
                tag, run = free.pop()
                flying[tag] = _Flight(run, n, 0, 0, None)
                flying[tag] = _start(queue, ring, tag, run, n)
            elif flying:
                break
        if not flying:
            continue
        for tag, got in ring.ended():
            flight = flying.pop(tag)
            how = io_entry.WHOLE if got == flight.n_bytes else io_entry.UNREAD
            busy_ns = time.monotonic_ns() - flight.start_ns
            where = (queue.address, flight.run.ctypes.data, flight.n)
            io_entry.finish(*where, how, busy_ns)
            free.append((tag, flight.run))


def _start(queue: Queue, ring: Ring, tag: int, run: NDArray[np.int64], n: int) -> _Flight:
    from hga.kernels.cpu import io_entry

    words = [queue.fields(int(slot))[:4].tolist() for slot in run[:n]]
    fd = io_entry.direct_of(queue.address, run.ctypes.data, n)
    if fd < 0:
        fd = queue.file(words[0][0]).buffered
    windows = [window_of(dest, n_bytes) for _, _, n_bytes, dest in words]
    total = sum(n_bytes for _, _, n_bytes, _ in words)
    start = time.monotonic_ns()
    return _Flight(run, n, total, start, (windows, ring.start(fd, windows, words[0][1], tag)))
