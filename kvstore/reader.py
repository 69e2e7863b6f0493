"""Reader: the one asynchronous reader of a disk, for cells of keys and values and expert blobs.

It owns the queue's memory, the I/O threads and the files. Kernels push requests to `address`
(kernels/cpu/io_queue.py); Python submits, waits and reads here. An error of a read is a StoreError
that names file, offset and reason. Close the reader after the last kernel that uses it.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from . import reader_backends as backends
from .errors import StoreError
from .reader_files import PAGE_BYTES, DiskFile, open_file

MODES = ("auto", "threads", "uring", "mmap")
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """n_bytes at an offset of a file (index), to go to the address dest.

    With a sum (uint32) they are one cell, a multiple of 256 bytes, verified with seed (uint64).
    """

    file: int
    offset: int
    n_bytes: int
    dest: int
    sum: int | None = None
    seed: int = 0


def aligned_bytes(n_bytes: int) -> NDArray[np.uint8]:
    """uint8 [n_bytes] that begins at a page, as O_DIRECT wants it."""
    memory = np.empty(n_bytes + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + n_bytes]


class Reader:
    """Opened by `Reader.open`, closed by `close` or a `with` statement. Thread-safe, except that
    a file is removed by one thread while no other pushes requests for it."""

    def __init__(
        self, n_entries: int, n_files: int, merge_bytes: int, flight_bytes: int, report: Report
    ) -> None:
        # Here, so that the instruction set may be chosen after this module is imported.
        from hga.kernels.cpu import io_slots

        self._memory, self.address = io_slots.allocate(
            n_entries, n_files, merge_bytes, flight_bytes
        )
        self._words = self._memory[(self.address - self._memory.ctypes.data) // 8 :]
        self._files: list[DiskFile | None] = [None] * n_files
        self._lock = threading.Lock()
        self._report = report
        self._notices: list[str] = []
        self._refused: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._ring: backends.Ring | None = None
        self._closed = False
        self._process = os.getpid()
        self.mode = "threads"

    @classmethod
    def open(
        cls,
        mode: str = "auto",
        n_threads: int = 16,
        n_entries: int = 4096,
        n_files: int = 1024,
        merge_bytes: int = 128 << 10,
        flight_bytes: int = 64 << 20,
        report: Report | None = None,
    ) -> Self:
        """Start the I/O threads of a mode; one that cannot be had is replaced by "threads".

        n_threads: reads at a time in mode "threads" (0: only threads that wait read, for tests).
        n_entries: requests queued or being read; merge_bytes: the most that one read fetches for
        several; flight_bytes: a bound on what is being read at a time. report: told every notice.
        """
        if mode not in MODES:
            raise ValueError(f"reader mode {mode!r} is none of {', '.join(MODES)}")
        reader = cls(n_entries, n_files, merge_bytes, flight_bytes, report or (lambda text: None))
        # "auto" is "threads": as fast as io_uring, and less of the interpreter (decision 0007).
        if mode == "uring":
            reader._open_ring()
        elif mode == "mmap":
            reader._choose_mmap()
        reader._start(n_threads)
        return reader

    def _note(self, text: str) -> None:
        if text not in self._notices:
            self._notices.append(text)
            self._report(text)

    def _open_ring(self) -> None:
        try:
            self._ring = backends.Ring()
        except (ImportError, AttributeError) as error:
            reason = f"the package liburing is not installed or not usable ({error})"
        except OSError as error:
            reason = f"the system refuses it ({error.strerror or error})"
            if error.errno == errno.ENOMEM:
                reason += "; more lockable memory helps (ulimit -l)"
        else:
            self.mode = "uring"
            return
        self._note(f"io_uring is not used, threads read instead: {reason}")

    def _choose_mmap(self) -> None:
        import mmap

        if hasattr(mmap, "MADV_WILLNEED"):
            self.mode = "mmap"
        else:
            self._note("files are not mapped, threads read instead: there is no MADV_WILLNEED")

    def _start(self, n_threads: int) -> None:
        life: Callable[[], None] = lambda: backends.serve_preadv(self)  # noqa: E731
        if self.mode == "uring":
            assert self._ring is not None
            ring, n_threads = self._ring, 1
            life = lambda: backends.serve_uring(self, ring)  # noqa: E731
        elif self.mode == "mmap":
            life, n_threads = lambda: backends.serve_mmap(self), max(1, min(n_threads, 4))
        elif not self._word("PREADV"):
            life, n_threads = lambda: backends.serve_python(self), max(1, n_threads)
            self._note("reads go through the interpreter: this system has no preadv")
        for i in range(n_threads):
            thread = threading.Thread(target=life, name=f"hga-io-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _word(self, name: str) -> int:
        from hga.kernels.cpu import io_slots

        return int(self._words[getattr(io_slots, name) // 8])

    # --- files ----------------------------------------------------------------------------------

    def add_file(self, place: Path | str | int, direct: bool = True) -> int:
        """Open a file (a descriptor is copied); returns its index for requests.

        direct: past the page cache, for requests whose offset, length and memory are aligned.
        """
        from hga.kernels.cpu import io_entry

        self._check_open()
        # A mapping is the page cache: O_DIRECT would only read around it.
        file = open_file(place, direct and self.mode != "mmap", self._note)
        with self._lock:
            if None not in self._files:
                file.close()
                raise StoreError(f"{file.name}: {len(self._files)} files are open already")
            index = self._files.index(None)
            self._files[index] = file
        aligns = (file.offset_align, file.memory_align)
        io_entry.set_file(self.address, index, file.buffered, file.direct, *aligns)
        return index

    def remove_file(self, index: int) -> None:
        """Close a file; its queued requests end with ECANCELED, reads under way are waited for."""
        from hga.kernels.cpu import io_entry, io_slots

        file = self.file(index)
        self._check_open()
        io_entry.refuse_file(self.address, index)
        entry = (self._word("FILES") - self.address + index * io_slots.FILE_BYTES) // 8
        while self._words[entry + io_slots.N_PENDING // 8]:
            time.sleep(0.001)
        self._watch_direct()
        with self._lock:
            self._words[entry + io_slots.STATE // 8] = io_slots.FILE_FREE
            self._files[index] = None
            self._refused.discard(index)
        file.close()

    def file(self, index: int) -> DiskFile:
        """The open file of an index."""
        file = self._files[index]
        if file is None:
            raise StoreError(f"file {index} is not open")
        return file

    def fields(self, slot: int) -> NDArray[np.int64]:
        """The words of a slot at an address, writable (for backends)."""
        from hga.kernels.cpu import io_slots

        start = (slot - self.address) // 8
        return self._words[start : start + io_slots.SLOT_BYTES // 8]

    # --- requests -------------------------------------------------------------------------------

    def submit(
        self, requests: Sequence[Request], hint: bool = False, generation: int = 0
    ) -> NDArray[np.int64]:
        """Queue requests; returns their tickets [n], which must live until `wait` or `close`."""
        from hga.kernels.cpu import io_entry, io_slots

        self._check_open()
        tickets = np.zeros(len(requests), np.int64)
        table = np.zeros((len(requests), io_entry.REQUEST_WORDS), np.int64)
        for i, r in enumerate(requests):
            if not 0 <= r.file < len(self._files) or self._files[r.file] is None:
                raise StoreError(f"file {r.file} is not open")
            verify = 0 if r.sum is None else io_slots.VERIFY
            seed = np.array(r.seed, np.uint64).astype(np.int64)
            ticket = tickets.ctypes.data + 8 * i
            table[i] = r.file, r.offset, r.n_bytes, r.dest, ticket, verify, r.sum or 0, seed
        flags = io_slots.HINT if hint else 0
        io_entry.push_all(self.address, table.ctypes.data, len(requests), flags, generation)
        return tickets

    def wait(self, requests: Sequence[Request], tickets: NDArray[np.int64]) -> None:
        """Wait for submitted requests; StoreError for the first that failed or was dropped.

        No signal interrupts it: until a read has ended its memory belongs to the disk.
        """
        from hga.kernels.cpu import io_entry

        self._check_process()
        n = len(requests)
        if io_entry.wait_all(self.address, tickets.ctypes.data, n) < n:
            for request, ticket in zip(requests, tickets.tolist()):
                self.check(ticket, request.file, request.offset, request.n_bytes)

    def read(
        self,
        file: int,
        offset: int,
        n_bytes: int,
        dest: NDArray[np.uint8] | None = None,
        sum: int | None = None,
        seed: int = 0,
    ) -> NDArray[np.uint8]:
        """Read n_bytes into dest (uint8, contiguous; None: new memory) and return it."""
        out = aligned_bytes(n_bytes) if dest is None else dest
        if out.nbytes < n_bytes or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"{n_bytes} bytes need writable, contiguous memory of that size")
        request = Request(file, offset, n_bytes, out.ctypes.data, sum, seed)
        self.wait([request], self.submit([request]))
        return out

    def cancel_hints(self, generation: int) -> int:
        """Drop queued hints of earlier generations; returns how many."""
        from hga.kernels.cpu import io_entry

        self._check_open()
        return int(io_entry.cancel_hints(self.address, generation))

    def check(self, ticket: int, file: int, offset: int, n_bytes: int) -> None:
        """Raise the StoreError that a ticket stands for, if it is not READ."""
        from hga.kernels.cpu import io_read, io_worker

        if ticket == io_worker.READ:
            return
        entry = self._files[file] if 0 <= file < len(self._files) else None
        name = entry.name if entry else f"file {file}"
        if ticket == io_read.WRONG_SUM:
            reason = "the checksum is wrong"
        elif ticket == io_read.SHORT_FILE:
            reason = "the file ends before that"
        elif ticket == io_worker.NOTHING:
            reason = "the request was dropped"
        else:
            reason = os.strerror(-ticket)
        error = StoreError(f"{name}: {n_bytes} bytes at offset {offset} not read: {reason}")
        error.errno = -ticket if -10000 < ticket < 0 else errno.EIO
        raise error

    # --- what happened --------------------------------------------------------------------------

    @property
    def stats(self) -> dict[str, int]:
        """Counts since the reader was opened, by name (kernels/cpu/io_slots.py, COUNTS)."""
        from hga.kernels.cpu import io_slots

        return {name: int(self._words[word // 8]) for name, word in io_slots.COUNTS.items()}

    @property
    def notices(self) -> list[str]:
        """What was asked for and not obtained, and why."""
        self._watch_direct()
        return list(self._notices)

    def _watch_direct(self) -> None:
        """Note files whose O_DIRECT was refused by a read."""
        from hga.kernels.cpu import io_slots

        if not self._word("DIRECT_REFUSED"):
            return
        first = (self._word("FILES") - self.address) // 8
        for index, file in enumerate(self._files):
            word = first + (index * io_slots.FILE_BYTES + io_slots.DIRECT) // 8
            if file and file.direct >= 0 > self._words[word] and index not in self._refused:
                self._refused.add(index)
                self._note(f"{file.name} is read through the page cache: a read refused O_DIRECT")

    # --- the end --------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError("the reader belongs to the process that opened it, not to its fork")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise StoreError("the reader is closed")

    def close(self) -> None:
        """Drop what is queued (ECANCELED), wait for reads under way, stop the threads."""
        from hga.kernels.cpu import io_entry

        with self._lock:
            if self._closed:
                return
            self._closed = True
        # After a fork the threads are in the other process: they are its to stop.
        if os.getpid() == self._process:
            io_entry.close_queue(self.address, len(self._threads))
            for thread in self._threads:
                thread.join()
            while self._word("N_FLIGHT"):
                time.sleep(0.001)
            if self._ring is not None:
                self._ring.close()
        for file in self._files:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
