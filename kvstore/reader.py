"""Reader: the one asynchronous reader of a disk, for cells of keys and values and expert blobs.

It owns the queue's memory, the I/O threads and the files. Kernels push requests to `address`
(kernels/cpu/io_queue.py); Python submits, waits and reads here. An error of a read is a StoreError
that names file, offset and reason. Close the reader after the last kernel that uses it.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError
from .memory import aligned_zeros
from .reader_files import DiskFile, open_file
from .reader_modes import MODES, Way, choose
from .reader_request import Request, read_error
from .thread_slice import shorten_slice

__all__ = ["MODES", "Reader", "Request"]

Report = Callable[[str], None]


class Reader:
    """Opened by `Reader.open`, closed by `close` or a `with` statement. Thread-safe, except that
    a file is removed by one thread while no other pushes requests for it."""

    def __init__(
        self, n_entries: int, n_files: int, merge_bytes: int, flight_bytes: int, report: Report
    ) -> None:
        # Here, so that the instruction set may be chosen after this module is imported.
        from hga.kernels.cpu import io_entry, io_slots

        io_entry.prepare()
        self._memory, self.address = io_slots.allocate(
            n_entries, n_files, merge_bytes, flight_bytes
        )
        self._words = self._memory[(self.address - self._memory.ctypes.data) // 8 :]
        self._files: list[DiskFile | None] = [None] * n_files
        self._lock = threading.Lock()
        self._report = report
        self._notices: list[str] = []
        self._refused: set[int] = set()
        # Tickets that may still be written to.
        self._tickets: list[NDArray[np.int64]] = []
        self._threads: list[threading.Thread] = []
        self._way: Way | None = None
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
        reader._start(choose(mode, n_threads, bool(reader._word("PREADV")), reader._note))
        return reader

    def _note(self, text: str) -> None:
        if text not in self._notices:
            self._notices.append(text)
            self._report(text)

    def _start(self, way: Way) -> None:
        self.mode, self._way = way.mode, way
        for i in range(way.n_threads):
            thread = threading.Thread(target=self._serve, name=f"hga-io-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        assert self._way is not None
        shorten_slice()
        try:
            self._way.serve(self)
        except Exception as error:
            # Whoever waits must not wait for a thread that is gone.
            self._note(f"an I/O thread failed and is replaced: {type(error).__name__}: {error}")
            choose("threads", 1, bool(self._word("PREADV")), self._note).serve(self)

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
        """Queue requests; returns their tickets [n]. The memory that they go to belongs to the disk
        until no ticket is PENDING."""
        from hga.kernels.cpu import io_entry, io_queue, io_slots

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
        with self._lock:
            if len(self._tickets) >= 64:
                self._tickets = [t for t in self._tickets if (t == io_queue.PENDING).any()]
            self._tickets.append(tickets)
        flags = io_slots.HINT if hint else 0
        io_entry.push_all(self.address, table.ctypes.data, len(requests), flags, generation)
        return tickets

    def wait(self, requests: Sequence[Request], tickets: NDArray[np.int64]) -> None:
        """Wait for submitted requests; StoreError for the first that failed or was dropped.

        No signal interrupts it: until a read has ended its memory belongs to the disk.
        """
        from hga.kernels.cpu import io_entry, io_queue

        self._check_process()
        n = len(requests)
        if io_entry.wait_all(self.address, tickets.ctypes.data, n) < n:
            for request, ticket in zip(requests, tickets.tolist()):
                if ticket != io_queue.READ:
                    raise self.error(ticket, request.file, request.offset, request.n_bytes)

    def settle(self, tickets: NDArray[np.int64]) -> None:
        """Wait until no ticket is PENDING, however its read ended."""
        from hga.kernels.cpu import io_entry

        self._check_process()
        io_entry.wait_all(self.address, tickets.ctypes.data, len(tickets))

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
        out = aligned_zeros(n_bytes) if dest is None else dest
        if out.nbytes < n_bytes or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"{n_bytes} bytes need writable, contiguous memory of that size")
        request = Request(file, offset, n_bytes, out.ctypes.data, sum, seed)
        self.wait([request], self.submit([request]))
        return out

    def read_blocks(
        self,
        places: NDArray[np.int64],
        sums: NDArray[np.uint32],
        cell_bytes: int,
        first: int,
        end: int,
        out: NDArray[np.uint8],
    ) -> tuple[int, int, int] | None:
        """As of PlainReader (kvstore/plain_reader.py)."""
        from hga.kernels.cpu.residency import read_blocks

        n_cells = sums.shape[1]
        tickets = np.zeros((end - first, n_cells), np.int64)
        addresses = places.ctypes.data, sums.ctypes.data, n_cells, cell_bytes, out.ctypes.data
        if read_blocks(self.address, *addresses, tickets.ctypes.data, first, end) == 0:
            return None
        row, inside = (int(x[0]) for x in np.nonzero(tickets < 0))
        return first + row, inside, int(tickets[row, inside])

    def cancel_hints(self, generation: int) -> int:
        """Drop queued hints of earlier generations; returns how many."""
        from hga.kernels.cpu import io_entry

        self._check_open()
        return int(io_entry.cancel_hints(self.address, generation))

    def error(self, ticket: int, file: int, offset: int, n_bytes: int) -> StoreError:
        """What a ticket that is not READ stands for."""
        entry = self._files[file] if 0 <= file < len(self._files) else None
        return read_error(ticket, entry.name if entry else f"file {file}", offset, n_bytes)

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
            if self._way is not None:
                self._way.close()
        for file in self._files:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
