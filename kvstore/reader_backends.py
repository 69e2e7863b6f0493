"""Ways to read what the queue asks for; each function is the life of one I/O thread.

`serve_preadv` never returns to the interpreter before the reader closes. The others, io_uring in
reader_uring.py among them, take runs of requests from the same queue (kernels/cpu/io_worker.py) and
read them in Python.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hga.kernels import system

from .reader_files import DiskFile
from .reader_request import SHORT_FILE

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


def run_words() -> NDArray[np.int64]:
    """Room for the slots of a run."""
    from hga.kernels.cpu.io_slots import MAX_RUN

    return np.zeros(MAX_RUN, np.int64)


def window_of(address: int, n_bytes: int) -> memoryview:
    """Memory at an address, writable."""
    return memoryview((ctypes.c_char * n_bytes).from_address(address)).cast("B")


def serve_python(queue: Queue) -> None:
    """Read in Python, a request at a time."""
    _serve_one_by_one(queue, read_positioned)


def read_positioned(file: DiskFile, offset: int, window: memoryview) -> int:
    """Fill a window through the page cache; 0, or SHORT_FILE. Raises OSError."""
    position = 0
    while position < len(window):
        n_bytes = system.read_at(file.buffered, window[position:], offset + position)
        if n_bytes == 0:
            return SHORT_FILE
        position += n_bytes
    return 0


Read = Callable[[DiskFile, int, memoryview], int]


def _serve_one_by_one(queue: Queue, read: Read) -> None:
    from hga.kernels.cpu.io_entry import take

    run = run_words()
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
            status = read(queue.file(index), offset, window_of(dest, n_bytes))
        except OSError as error:
            status = -(error.errno or errno.EIO)
        except ValueError:
            # A file that was cut between a look at its size and its mapping.
            status = SHORT_FILE
        words[io_slots.STATUS // 8] = status
    busy_ns = time.monotonic_ns() - start
    io_entry.finish(queue.address, run.ctypes.data, len(run), io_entry.SAID, busy_ns)


def serve_mmap(queue: Queue) -> None:
    """Copy out of a mapping, after asking for the pages of all runs at hand.

    A page that is cut off between the look at its file's size and the copy is read as zeros
    (kernels/cpu/bus_guard.py), which the checksums of experts and cells refuse.
    """
    from hga.kernels.cpu import bus_guard
    from hga.kernels.cpu.io_entry import take

    bus_guard.install()
    runs = [run_words() for _ in range(_MAPPED_RUNS)]
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
    """Ask the system for the pages of a run; what cannot be had shows when it is copied."""
    words = [queue.fields(int(slot))[:3].tolist() for slot in run]
    index, offset, _ = words[0]
    end = words[-1][1] + words[-1][2]
    with contextlib.suppress(OSError, ValueError):
        mapped = _mapping(queue.file(index), end)
        if mapped is not None:
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            system.will_need(mapped, start, end - start)


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
    mapped = _mapping(file, offset + len(window))
    if mapped is None:
        return SHORT_FILE
    source = np.frombuffer(mapped, np.uint8, len(window), offset)
    # ctypes lets other threads run while it copies.
    address = ctypes.addressof(ctypes.c_char.from_buffer(window))
    ctypes.memmove(address, source.ctypes.data, len(window))
    return 0
