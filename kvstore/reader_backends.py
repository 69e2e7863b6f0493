"""Ways to read what the queue asks for; each function is the life of one I/O thread.

`serve_preadv` never returns to the interpreter before the reader closes. The others take runs of
requests from the same queue (kernels/cpu/io_worker.py) and read them in Python.
"""

import ctypes
import errno
import mmap
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .reader_files import DiskFile

# Reads under way at a time: the drive's full rate needs some tens.
URING_READS = 64
# Runs whose pages are asked for before the first of them is copied.
_MAPPED_RUNS = 32


class Queue(Protocol):
    """What backends see of the reader."""

    address: int

    def file(self, index: int) -> DiskFile:
        """The open file of an index."""

    def fields(self, slot: int) -> NDArray[np.int64]:
        """The words of a slot, writable."""


def serve_preadv(queue: Queue) -> None:
    """Read with preadv, outside the interpreter."""
    from hga.kernels.cpu.io_entry import serve

    serve(queue.address)


def _run_words() -> NDArray[np.int64]:
    from hga.kernels.cpu.io_slots import MAX_RUN

    return np.zeros(MAX_RUN, np.int64)


def _window(address: int, n_bytes: int) -> memoryview:
    return memoryview((ctypes.c_char * n_bytes).from_address(address)).cast("B")


def serve_python(queue: Queue) -> None:
    """Read with os.pread, or by seeking where there is none, a request at a time."""
    _serve_one_by_one(queue, _read_positioned)


# Seeking moves the one position of a descriptor.
_seeking = threading.Lock()


def _read_positioned(file: DiskFile, offset: int, window: memoryview) -> int:
    from hga.kernels.cpu.io_read import SHORT_FILE

    position = 0
    while position < len(window):
        wanted = len(window) - position
        if hasattr(os, "pread"):
            data = os.pread(file.buffered, wanted, offset + position)
        else:
            with _seeking:
                os.lseek(file.buffered, offset + position, os.SEEK_SET)
                data = os.read(file.buffered, wanted)
        if not data:
            return SHORT_FILE
        window[position : position + len(data)] = data
        position += len(data)
    return 0


Read = Callable[[DiskFile, int, memoryview], int]


def _serve_one_by_one(queue: Queue, read: Read) -> None:
    from hga.kernels.cpu.io_entry import take

    run = _run_words()
    while True:
        n = take(queue.address, 1, run.ctypes.data)
        if n < 0:
            return
        if n > 0:
            _finish(queue, run[:n], read)


def _finish(queue: Queue, run: NDArray[np.int64], read: Read) -> None:
    """Read the requests of a run one by one and end it."""
    from hga.kernels.cpu import io_entry, io_slots

    start = time.monotonic_ns()
    for slot in run:
        words = queue.fields(int(slot))
        index, offset, n_bytes, dest = words[:4].tolist()
        try:
            status = read(queue.file(index), offset, _window(dest, n_bytes))
        except OSError as error:
            status = -(error.errno or errno.EIO)
        words[io_slots.STATUS // 8] = status
    busy_ns = time.monotonic_ns() - start
    io_entry.finish(queue.address, run.ctypes.data, len(run), io_entry.SAID, busy_ns)


def serve_mmap(queue: Queue) -> None:
    """Copy out of a mapping, after asking for the pages of all runs at hand.

    A page that cannot be read would end the process by a signal: that is the price of this way.
    """
    from hga.kernels.cpu.io_entry import take

    runs = [_run_words() for _ in range(_MAPPED_RUNS)]
    while True:
        taken: list[NDArray[np.int64]] = []
        while len(taken) < len(runs):
            run = runs[len(taken)]
            n = take(queue.address, int(not taken), run.ctypes.data)
            if n > 0:
                taken.append(run[:n])
                _want(queue, run[:n])
            elif taken:
                break
            elif n < 0:
                return
        for run in taken:
            _finish(queue, run, _copy_mapped)


def _want(queue: Queue, run: NDArray[np.int64]) -> None:
    """Ask the system for the pages of a run."""
    words = [queue.fields(int(slot))[:3].tolist() for slot in run]
    index, offset, _ = words[0]
    end = words[-1][1] + words[-1][2]
    mapped = _mapping(queue.file(index), end)
    if mapped is not None:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, start, end - start)


def _mapping(file: DiskFile, end: int) -> mmap.mmap | None:
    """The mapping, made anew if the file grew; None where the file does not reach `end`."""
    # A page beyond the end of the file would be a signal: its size is looked at every time.
    size = os.fstat(file.buffered).st_size
    if end > size:
        return None
    if file.mapped is None or len(file.mapped) < end:
        file.mapped = mmap.mmap(file.buffered, size, access=mmap.ACCESS_READ)
    return file.mapped


def _copy_mapped(file: DiskFile, offset: int, window: memoryview) -> int:
    from hga.kernels.cpu.io_read import SHORT_FILE

    mapped = _mapping(file, offset + len(window))
    if mapped is None:
        return SHORT_FILE
    source = np.frombuffer(mapped, np.uint8, len(window), offset)
    # ctypes lets other threads run while it copies.
    address = ctypes.addressof(ctypes.c_char.from_buffer(window))
    ctypes.memmove(address, source.ctypes.data, len(window))
    return 0


class Ring:
    """An io_uring of the package liburing. OSError or ImportError where there is none."""

    def __init__(self, n_reads: int = URING_READS) -> None:
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
    from hga.kernels.cpu import io_entry

    free = [(tag, _run_words()) for tag in range(1, URING_READS + 1)]
    flying: dict[int, tuple[NDArray[np.int64], int, int, int, Any]] = {}
    closed = False
    while flying or not closed:
        while free and not closed:
            run = free[-1][1]
            n = io_entry.take(queue.address, int(not flying), run.ctypes.data)
            closed = n < 0
            if n > 0:
                tag, run = free.pop()
                flying[tag] = _start(queue, ring, tag, run, n)
            elif flying:
                break
        if not flying:
            continue
        for tag, got in ring.ended():
            run, n, n_bytes, start, _ = flying.pop(tag)
            how = io_entry.WHOLE if got == n_bytes else io_entry.UNREAD
            busy_ns = time.monotonic_ns() - start
            io_entry.finish(queue.address, run.ctypes.data, n, how, busy_ns)
            free.append((tag, run))


def _start(
    queue: Queue, ring: Ring, tag: int, run: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], int, int, int, Any]:
    from hga.kernels.cpu import io_entry

    words = [queue.fields(int(slot))[:4].tolist() for slot in run[:n]]
    fd = io_entry.direct_of(queue.address, run.ctypes.data, n)
    if fd < 0:
        fd = queue.file(words[0][0]).buffered
    windows = [_window(dest, n_bytes) for _, _, n_bytes, dest in words]
    total = sum(n_bytes for _, _, n_bytes, _ in words)
    start = time.monotonic_ns()
    return run, n, total, start, (windows, ring.start(fd, windows, words[0][1], tag))
