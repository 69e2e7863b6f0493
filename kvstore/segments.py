"""Segments: the open segment files of one session, and blocks written to and read from slots.

Invariant: what is read is what was written for that block at that place, or a PagesError says
which part of it is not. Descriptors stay open until `close`.
"""

import contextlib
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hga.kernels import system

from . import slots
from .cellsums import Bytes, SumCells, Sums, cell_sums
from .errors import PagesError, SessionError
from .filelayer import CREATE, READ_WRITE, Files, allocate, read_all, write_all
from .guard import must
from .head import BlockEntry
from .slots import Place
from .store_layout import (
    SEAL_BYTES,
    SEGMENT_HEADER,
    BlockShape,
    Seal,
    SegmentEntry,
    block_name,
    check_segment_header,
    open_seal,
    seal_digest,
    segment_header,
    slot_offset,
    slot_seed,
)

FILE_NAME = re.compile(r"seg-(\d{6,10})\.kv")
NEW = ".new"
# What was written and may still be in the system's memory, not on the disk.
MOST_CACHED = 32 << 20


@dataclass(frozen=True, slots=True)
class Location:
    """Where a block's cells are read: path and fd of its segment, the offset of its first byte (a
    multiple of 4096), the seed of its first cell (that of cell n is n more, modulo 2^64), and the
    sums of its cells in the order of bytes. Valid while one of the last two commits, or a write
    since, puts the block there."""

    path: Path
    fd: int
    offset: int
    seed: int
    sums: Sums


class Segments:
    """The segments of a session folder. `notices` hears what a user should know."""

    def __init__(
        self,
        folder: Path,
        shape: BlockShape,
        files: Files,
        notices: list[str],
        sum_cells: SumCells = cell_sums,
    ) -> None:
        self.folder = folder
        self._sum_cells = sum_cells
        self._shape = shape
        self._files = files
        self._notices = notices
        self._spans = shape.layer_spans()
        self._fds: dict[int, int] = {}
        self._unsynced: set[int] = set()
        # Bytes written since the last sync.
        self._cached = 0
        self._next_number = 0
        self.entries: dict[int, SegmentEntry] = {}

    def open(self, expected: SegmentEntry | None, number: int) -> SegmentEntry:
        """Open a segment that a head names, or one that none does; PagesError where it is not
        what it has to be."""
        path = self.path(number)
        try:
            fd = self._files.open(path, READ_WRITE)
        except FileNotFoundError:
            raise PagesError(f"segment {path} is missing: its keys and values are lost") from None
        except SessionError as error:
            raise PagesError(str(error)) from None
        try:
            header = bytearray(SEGMENT_HEADER)
            n_read = read_all(self._files, fd, memoryview(header), 0)
            entry = check_segment_header(bytes(header[:n_read]), str(path), self._shape, number)
            if expected is not None and entry != expected:
                raise PagesError(
                    f"{path} is a foreign segment: it has id {entry.id:016x} and {entry.n_slots}"
                    f" slots, the session's has {expected.id:016x} and {expected.n_slots}"
                )
            size, needed = self._files.size(fd), entry.file_bytes(self._shape)
            if size != needed:
                raise PagesError(f"{path} has {size} bytes, expected {needed}: it was cut")
        except BaseException as error:
            self._files.close(fd)
            if isinstance(error, SessionError):
                raise PagesError(str(error)) from None
            raise
        self._fds[number], self.entries[number] = fd, entry
        return entry

    def adopt_unused(self) -> None:
        """Open the segments of the folder that no head names: free slots, left by a commit that
        did not come to its end. What is not a segment of this session is left alone."""
        for name in self._files.names(self.folder):
            found = FILE_NAME.fullmatch(name)
            if name.endswith(NEW) and FILE_NAME.fullmatch(name.removesuffix(NEW)):
                self._files.unlink(self.folder / name)
            elif found and int(found[1]) not in self.entries:
                with contextlib.suppress(SessionError):
                    self.open(None, int(found[1]))

    def skip(self, number: int) -> None:
        """Give no new segment this number: a head names it, whether it is there or not."""
        self._next_number = max(self._next_number, number + 1)

    def path(self, number: int) -> Path:
        """Where a segment lies."""
        return self.folder / SegmentEntry(number, 0, 0).name

    def locate(self, at: BlockEntry, sums: Sums) -> Location:
        """Where the cells of a block are read."""
        seed = slot_seed(self.entries[at.segment].id, at.slot, self._shape)
        offset = slot_offset(at.slot, self._shape)
        return Location(self.path(at.segment), self._fds[at.segment], offset, seed, sums)

    def find_free(self, taken: Mapping[int, Collection[int]]) -> Place | None:
        """A slot outside `taken` in a segment that no other session shares; None: `add` one."""
        sizes = {number: entry.n_slots for number, entry in self.entries.items()}
        return slots.find_free(sizes, taken, self._is_own)

    def _is_own(self, number: int) -> bool:
        return self._files.links(self._fds[number]) == 1

    def _next_size(self) -> int:
        return slots.next_size(e.n_slots for e in self.entries.values())

    def next_file_bytes(self) -> int:
        """What `add` would take on the disk."""
        return SEGMENT_HEADER + self._next_size() * self._shape.block_bytes

    def add(self) -> Place:
        """A new segment, whole and durable before it has its name; its first slot."""
        numbers = [
            int(found[1])
            for name in self._files.names(self.folder)
            if (found := FILE_NAME.fullmatch(name))
        ]
        # A number is not used twice: readers may still know the file that was dropped by it.
        number = self._next_number = max(self._next_number, *(n + 1 for n in numbers), 0)
        self._next_number += 1
        entry = SegmentEntry(number, secrets.randbits(64), self._next_size())
        path = self.path(number)
        new = path.with_name(path.name + NEW)
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(new)
        fd = self._files.open(new, CREATE)
        try:
            if not allocate(self._files, fd, entry.file_bytes(self._shape)):
                self._notices.append(
                    f"the file system of {self.folder} does not allocate space ahead: zeros were"
                    " written instead"
                )
            write_all(self._files, fd, [memoryview(segment_header(entry, self._shape))], 0)
            self._files.sync(fd)
            if system.renames_open_files():
                self._files.rename(new, path)
            else:
                closed, fd = fd, -1
                self._files.close(closed)
                self._files.rename(new, path)
                fd = self._files.open(path, READ_WRITE)
            self._files.sync_folder(self.folder)
        except BaseException as error:
            if fd >= 0:
                self._files.close(fd)
            if isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    self._files.unlink(new)
            raise
        self._fds[number], self.entries[number] = fd, entry
        return number, 0

    def drop(self, number: int) -> None:
        """Remove a segment that no commit names any more."""
        self._files.close(self._fds.pop(number))
        del self.entries[number]
        self._unsynced.discard(number)
        self._files.unlink(self.path(number))

    def write(
        self, place: Place, block: int, generation: int, kv: Sequence[Bytes], index: Bytes
    ) -> tuple[BlockEntry, Sums]:
        """Write a block to a slot, not yet durable. kv: one array, or one per layer."""
        seed = slot_seed(self.entries[place[0]].id, place[1], self._shape)
        return self._write(place, block, generation, kv, self._sums(kv, seed), index)

    def write_layer(self, place: Place, layer: int, pages: Bytes, sums: Sums) -> None:
        """Write one layer's keys and values to a slot, and their sums among those of the block;
        `write_tail` makes it a block."""
        (at, first, size), (end, last, _) = self._spans[layer : layer + 2]
        if pages.nbytes != end - at:
            raise ValueError(f"layer {layer} has {pages.nbytes} bytes, not {end - at}")
        seed = slot_seed(self.entries[place[0]].id, place[1], self._shape)
        self._sum_cells(pages, size, (seed + first) % (1 << 64), sums[first:last])
        self._write_to(place, at, [pages.data])

    def write_tail(
        self, place: Place, block: int, generation: int, sums: Sums, index: Bytes
    ) -> BlockEntry:
        """Write index, sums and seal of a block whose layers are written."""
        return self._write(place, block, generation, [], sums, index)[0]

    def _write(
        self,
        place: Place,
        block: int,
        generation: int,
        kv: Sequence[Bytes],
        sums: Sums,
        index: Bytes,
    ) -> tuple[BlockEntry, Sums]:
        entry = self.entries[place[0]]
        if index.nbytes != self._shape.index_bytes:
            raise ValueError(f"an index of {index.nbytes} bytes, not {self._shape.index_bytes}")
        tail = index.tobytes() + sums.tobytes()
        seal = Seal(block, entry.id, place[1], generation).pack(tail)
        fill = bytes(self._shape.block_bytes - self._shape.kv_bytes - len(tail) - len(seal))
        views = [*(part.data for part in kv), memoryview(tail + seal + fill)]
        self._write_to(place, 0 if kv else self._shape.kv_bytes, views)
        return BlockEntry(*place, seal_digest(seal)), sums

    def _write_to(self, place: Place, at: int, views: Sequence[memoryview]) -> None:
        """Write to a slot; now and then, sync and give back the memory that writing took."""
        self._unsynced.add(place[0])
        offset = slot_offset(place[1], self._shape) + at
        write_all(self._files, self._fds[place[0]], views, offset)
        self._cached += sum(map(len, views))
        if self._cached > MOST_CACHED:
            self.sync()

    def _sums(self, kv: Sequence[Bytes], seed: int) -> Sums:
        n_bytes = sum(part.nbytes for part in kv)
        if n_bytes != self._shape.kv_bytes:
            raise ValueError(f"a block of {n_bytes} bytes, not {self._shape.kv_bytes}")
        sums = np.zeros(self._shape.n_cells, np.uint32)
        for layer, (at, first, size) in enumerate(self._spans[:-1]):
            end, last, _ = self._spans[layer + 1]
            data = kv[layer] if len(kv) > 1 else kv[0][at:end]
            if data.nbytes != end - at:
                raise ValueError(f"layer {layer} has {data.nbytes} bytes, not {end - at}")
            self._sum_cells(data, size, (seed + first) % (1 << 64), sums[first:last])
        return sums

    def sync(self) -> None:
        """Make all that was written durable."""
        for number in sorted(self._unsynced):
            must(self._files.datasync, self._fds[number])
            with contextlib.suppress(OSError):
                self._files.forget(self._fds[number])
        self._unsynced.clear()
        self._cached = 0

    def is_whole(self, block: int, at: BlockEntry, out: Bytes) -> bool:
        """Whether a block can be read and is what was written; out: uint8 [kv_bytes], its room."""
        try:
            if at.segment in self.entries:
                self.read_kv(block, at, self.read_tail(block, at)[1], out)
                return True
        except OSError:
            # Damaged, or on a place of the disk that cannot be read any more.
            pass
        return False

    def read_tail(self, block: int, at: BlockEntry) -> tuple[Bytes, Sums]:
        """Index and sums of a block, as they were written."""
        shape = self._shape
        tail = np.empty(shape.tail_bytes, np.uint8)
        offset = slot_offset(at.slot, shape) + shape.kv_bytes
        n_read = read_all(self._files, self._fds[at.segment], tail.data, offset)
        seal = open_seal(tail.data) if n_read == tail.nbytes else None
        if seal is None or seal_digest(tail.data[-SEAL_BYTES:]) != at.digest:
            raise PagesError(self._what_is_wrong(block, at, seal))
        index = tail[: shape.index_bytes]
        return index, tail[shape.index_bytes :][: 4 * shape.n_cells].copy().view(np.uint32)

    def _what_is_wrong(self, block: int, at: BlockEntry, seal: Seal | None) -> str:
        entry = self.entries[at.segment]
        where = f"{block_name(block)} in slot {at.slot} of {self.path(at.segment)}"
        if seal is None:
            return f"{where}: index, sums and seal do not match: they are torn or changed"
        if seal.segment_id != entry.id:
            return f"{where}: foreign: it was written for segment {seal.segment_id:016x}"
        if seal.block != block or seal.slot != at.slot:
            return f"{where}: swapped: the slot holds block {seal.block} of slot {seal.slot}"
        return f"{where}: stale: the slot holds what save {seal.generation} wrote, not the last one"

    def read_kv(self, block: int, at: BlockEntry, sums: Sums, out: Bytes) -> None:
        """Keys and values of a block into `out`, every cell verified."""
        shape = self._shape
        if out.nbytes != shape.kv_bytes:
            raise ValueError(f"room for {out.nbytes} bytes, not {shape.kv_bytes}")
        offset = slot_offset(at.slot, shape)
        n_read = read_all(self._files, self._fds[at.segment], out.data, offset)
        where = f"{block_name(block)} in {self.path(at.segment)}"
        if n_read != out.nbytes:
            raise PagesError(f"{where}: {n_read} of {out.nbytes} bytes are there: it was cut")
        found = self._sums([out], slot_seed(self.entries[at.segment].id, at.slot, shape))
        if (bad := np.flatnonzero(found != sums)).size:
            place, inside = shape.place(int(bad[0]))
            others = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
            raise PagesError(
                f"{where}: {place}{others} at offset {offset + inside}: checksum"
                f" {found[bad[0]]:08x}, expected {sums[bad[0]]:08x}: torn, changed or swapped"
            )

    def close(self) -> None:
        """Close all files."""
        for fd in self._fds.values():
            with contextlib.suppress(OSError):
                self._files.close(fd)
        self._fds.clear()
