"""PlainReader: reads blocks and cells of keys and values without compiled kernels.

For a device whose kernels read no disk: the host asks for what a layer lacks and waits. Cells are
read by lists of reads (kvstore/batch_reads.py), or by threads with preadv, as blocks are; past the
page cache where that works; checksums are numpy's. Compiled kernels have a reader of their own
(kvstore/reader.py).
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hga.kernels.reference.checksum import cell_sums

from .batch_reads import BatchReads
from .errors import StoreError
from .reader_backends import read_positioned, window_of
from .reader_files import DiskFile, open_file
from .reader_request import WRONG_SUM, read_error
from .thread_slice import shorten_slice

I64 = NDArray[np.int64]

# Cells side by side on the disk that one call reads.
_MOST_CELLS = 16
# Places of one read that the system takes.
_MOST_VECTORS = 1024
# Blocks that a thread reads before they are verified.
_BLOCKS_AT_A_TIME = 8


class PlainReader:
    """Owner of the files and the threads; closed by `close`. Its reads are waited for: any thread
    may ask, a file is removed while none does."""

    def __init__(
        self, n_threads: int = 16, report: Callable[[str], None] = lambda text: None
    ) -> None:
        """n_threads: reads at a time; report: told what was asked for and not obtained."""
        self._pool = ThreadPoolExecutor(n_threads, "hga-io", initializer=shorten_slice)
        self._n_threads, self._report = n_threads, report
        self._files: list[DiskFile | None] = []
        # Files whose O_DIRECT was refused by a read.
        self._refused: set[int] = set()
        self._lock = threading.Lock()
        self._batch: BatchReads | None = None
        try:
            self._batch = BatchReads()
        except OSError as error:
            report(f"cells are read by threads, no lists of reads: {error}")
        self.stats = {"bytes": 0, "stall_ns": 0}

    @property
    def mode(self) -> str:
        """How cells are read: "aio" by lists, or "threads"."""
        return "threads" if self._batch is None else "aio"

    def add_file(self, place: Path) -> int:
        """Open a file; returns its number for reads. Raises StoreError."""
        file = open_file(place, True, self._report)
        with self._lock:
            self._files.append(file)
            return len(self._files) - 1

    def remove_file(self, index: int) -> None:
        """Close a file."""
        file = self._files[index]
        if file is not None:
            file.close()
        self._files[index] = None

    def error(self, ticket: int, file: int, offset: int, n_bytes: int) -> StoreError:
        """What a read that ended with a ticket below 0 failed by."""
        entry = self._files[file]
        return read_error(ticket, entry.name if entry else f"file {file}", offset, n_bytes)

    def _fill(self, index: int, offset: int, views: Sequence[memoryview], aligned: bool) -> int:
        """Read side by side what goes to several places; 0, SHORT_FILE or -errno."""
        file = self._files[index]
        if file is None:
            return -errno.EBADF
        try:
            if sys.platform != "win32" and hasattr(os, "preadv"):
                direct = aligned and index not in self._refused
                try:
                    n_read = os.preadv(file.direct if direct else file.buffered, views, offset)
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    self._refused.add(index)
                    self._report(f"{file.name} is read through the page cache: O_DIRECT is refused")
                    n_read = 0
                if n_read == sum(map(len, views)):
                    return 0
            # Cut short, or the system has no such call: one by one, which says why.
            for view in views:
                status = read_positioned(file, offset, view)
                if status < 0:
                    return status
                offset += len(view)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0

    def _is_aligned(self, index: int, numbers: I64) -> bool:
        """Whether offsets, lengths and addresses suit the file's O_DIRECT."""
        file = self._files[index]
        if file is None or file.direct < 0:
            return False
        return not (numbers & (max(file.offset_align, file.memory_align) - 1)).any()

    def _read_runs(
        self, runs: Sequence[tuple[int, int]], files: I64, offsets: I64, dest: I64, n_bytes: int
    ) -> tuple[int, int] | None:
        for first, end in runs:
            views = [window_of(address, n_bytes) for address in dest[first:end].tolist()]
            index, offset = int(files[first]), int(offsets[first])
            numbers = np.append(dest[first:end], (offset, n_bytes))
            status = self._fill(index, offset, views, self._is_aligned(index, numbers))
            if status < 0:
                return first, status
        return None

    def read_cells(
        self, files: I64, offsets: I64, dest: I64, n_bytes: int
    ) -> tuple[int, int] | None:
        """Read n_bytes at every offset [n] of a file [n] to an address [n], not verified; None, or
        one that failed and how: SHORT_FILE or -errno."""
        begin = time.monotonic_ns()
        breaks = (np.diff(offsets) != n_bytes) | (np.diff(files) != 0)
        ends = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(offsets)]
        if self._read_list(np.array(ends), files, offsets, dest, n_bytes):
            self._count(len(offsets) * n_bytes, begin)
            return None
        runs = [
            (a, min(a + _MOST_CELLS, end))
            for first, end in pairwise(ends)
            for a in range(first, end, _MOST_CELLS)
        ]
        n = min(self._n_threads, len(runs))
        parts = [runs[i::n] for i in range(n)]
        others: list[Future[tuple[int, int] | None]] = []
        try:
            for part in parts[1:]:
                others.append(
                    self._pool.submit(self._read_runs, part, files, offsets, dest, n_bytes)
                )
            problem = self._read_runs(parts[0], files, offsets, dest, n_bytes) if n else None
        finally:
            # Whatever happens: until a read has ended its memory belongs to the disk.
            wait(others)
        for other in others:
            problem = problem or other.result()
        self._count(len(offsets) * n_bytes, begin)
        return problem

    def _read_list(self, ends: I64, files: I64, offsets: I64, dest: I64, n_bytes: int) -> bool:
        """Read runs of cells by one list; False where they have to be read one by one, which also
        says what is wrong with them."""
        batch = self._batch
        if batch is None or len(ends) < 3 or np.diff(ends).max() > _MOST_VECTORS:
            return False
        fds = np.full(len(self._files), -1)
        for index in np.unique(files).tolist():
            file = self._files[index]
            if file is None or file.direct < 0 or index in self._refused:
                return False
            align = max(file.offset_align, file.memory_align) - 1
            if (((offsets | dest)[files == index] | n_bytes) & align).any():
                return False
            fds[index] = file.direct
        vectors = np.stack([dest, np.full(len(dest), n_bytes)], 1).astype(np.uint64)
        counts = np.diff(ends)
        if not batch.busy.acquire(blocking=False):
            return False
        try:
            found = batch.read(fds[files[ends[:-1]]], offsets[ends[:-1]], vectors, counts)
        except OSError as error:
            self._batch = None
            self._report(f"cells are read by threads: a list of reads is refused ({error})")
            return False
        finally:
            batch.busy.release()
        return bool((found == counts * n_bytes).all())

    def read_blocks(
        self,
        places: I64,
        sums: NDArray[np.uint32],
        cell_bytes: int,
        first: int,
        end: int,
        out: NDArray[np.uint8],
    ) -> tuple[int, int, int] | None:
        """Read one layer's pages of blocks first..end, verified; None, or block, cell in the order
        of bytes and WRONG_SUM, SHORT_FILE or -errno of the first that failed.

        places int64 [blocks, 3]: file, offset, seed of the first cell; sums [blocks, cells]; out:
        uint8 [end - first, bytes of the pages], contiguous.
        """
        begin, step = time.monotonic_ns(), _BLOCKS_AT_A_TIME
        parts = [(a, min(a + step, end)) for a in range(first, end, step)]
        reads = [self._pool.submit(self._read_pages, places, a, b, first, out) for a, b in parts]
        numbers = np.arange(sums.shape[1], dtype=np.uint64)
        try:
            for (a, b), read in zip(parts, reads):
                failed = read.result()
                if failed is not None:
                    return failed[0], 0, failed[1]
                seeds = places[a:b, 2].astype(np.uint64)[:, None] + numbers
                data = out[a - first : b - first].reshape(-1, cell_bytes)
                wrong = np.argwhere(cell_sums(data, seeds.ravel()).reshape(b - a, -1) != sums[a:b])
                if len(wrong):
                    return a + int(wrong[0, 0]), int(wrong[0, 1]), WRONG_SUM
        finally:
            for read in reads:
                read.cancel()
            wait(reads)
        self._count((end - first) * out.shape[1], begin)
        return None

    def _read_pages(
        self, places: I64, a: int, b: int, first: int, out: NDArray[np.uint8]
    ) -> tuple[int, int] | None:
        for block in range(a, b):
            index, offset = int(places[block, 0]), int(places[block, 1])
            row = out[block - first]
            numbers = np.array((offset, row.nbytes, row.ctypes.data))
            status = self._fill(index, offset, [row.data], self._is_aligned(index, numbers))
            if status < 0:
                return block, status
        return None

    def _count(self, n_bytes: int, begin: int) -> None:
        with self._lock:
            self.stats["bytes"] += n_bytes
            self.stats["stall_ns"] += time.monotonic_ns() - begin

    def close(self) -> None:
        """Wait for reads under way, stop the threads, close the files."""
        self._pool.shutdown()
        if self._batch is not None:
            self._batch.close()
            self._batch = None
        for file in self._files:
            if file is not None:
                file.close()
        self._files = []
