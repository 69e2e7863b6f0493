"""Writing a packed file: by segments, resumable after any interruption, complete or absent.

The bytes go to OUT.partial, whose header stays zero until the end; OUT.partial.journal says which
segments are whole. A resumed writer believes the journal only where the segment's bytes still
have the checksum it states. The file gets its name by fsync and an atomic rename.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from hga.kernels import system

from .container_index import (
    MAX_INDEX_BYTES,
    PAGE_BYTES,
    Header,
    Index,
    ReportRow,
    Segment,
    digest_of,
    encode_index,
    tensor_nbytes,
)
from .container_layout import Layout, SegmentPlan
from .container_plan import ContainerError, encode_plan
from .durable import open_locked

_BLOCK_BYTES = 4 << 20
# Room for the index and the file system's own blocks, beyond the bytes of the segments.
_SPARE_BYTES = 8 << 20

Progress = Callable[[int, int], None]


class _Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A journal line: a whole segment, its checksum, and a note of the caller's."""

    segment: str
    xxh3: str
    note: dict[str, Any]


class _Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first journal line: which layout of which source these segments belong to."""

    layout: str
    source: dict[str, Any]


class ContainerWriter:
    """Writes the segments of a layout, in any order; owns OUT.partial and its journal.

    `done` maps the segments that are already there to their notes. `close` without `finish` leaves
    both files for the next try. Raises OSError with the bytes needed where the disk is too small,
    and BlockingIOError where another process is writing the same file.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        source: Mapping[str, Any],
        resume: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """`source` identifies what is packed: a journal about another source is discarded.
        `progress` hears (bytes, total bytes) while the segments of an earlier try are checked."""
        self.path = path
        self.layout = layout
        self.partial = path.with_name(path.name + ".partial")
        self.journal = path.with_name(path.name + ".partial.journal")
        self.done: dict[str, dict[str, Any]] = {}
        self._checksums: dict[str, str] = {}
        self._places = {segment.name: segment for segment in layout.segments}
        self._start = _Start(layout.fingerprint(), dict(source))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_locked(self.partial)
        try:
            entries = self._read_journal() if resume else []
            if not entries:
                self._file.truncate(0)
            self._check_space()
            self._recover(entries, progress)
        except BaseException:
            self._file.close()
            raise

    def _read_journal(self) -> list[_Done]:
        """Segments that the journal calls whole; none if it is about something else. A line cut
        by a crash ends the list."""
        try:
            lines = self.journal.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        entries: list[_Done] = []
        try:
            if not lines or msgspec.json.decode(lines[0], type=_Start) != self._start:
                return []
            for line in lines[1:]:
                entries.append(msgspec.json.decode(line, type=_Done))
        except (ValueError, RecursionError):
            pass
        return entries

    def _check_space(self) -> None:
        total = self.layout.index_offset + _SPARE_BYTES
        held = os.fstat(self._file.fileno())
        needed = total - system.backed_bytes(held)
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            if held.st_size == 0:
                # Nothing to go on from: leave nothing behind.
                self.partial.unlink()
            raise OSError(
                errno.ENOSPC,
                f"not enough disk space: {total} bytes needed, {needed} of them still to be "
                f"written, {free} free; choose another place with -o",
                str(self.path.parent),
            )

    def _recover(self, entries: list[_Done], progress: Progress | None) -> None:
        """Keep the journaled segments whose bytes are intact, and start the journal afresh."""
        known = [entry for entry in entries if entry.segment in self._places]
        total = sum(self._places[entry.segment].nbytes for entry in known)
        checked = 0
        for entry in known:
            place = self._places[entry.segment]
            if self._checksum(place) == entry.xxh3:
                self.done[entry.segment] = entry.note
                self._checksums[entry.segment] = entry.xxh3
            checked += place.nbytes
            if progress is not None:
                progress(checked, total)
        fresh = self.journal.with_name(self.journal.name + ".new")
        lines = [msgspec.json.encode(self._start)]
        lines += [
            msgspec.json.encode(_Done(name, self._checksums[name], note))
            for name, note in self.done.items()
        ]
        fresh.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(fresh, self.journal)
        # The whole length at once; a header of zeros is no packed file to any reader.
        self._file.truncate(self.layout.index_offset)
        self._write(0, bytes(PAGE_BYTES))

    def _checksum(self, place: SegmentPlan) -> str:
        hasher = xxhash.xxh3_64()
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, place.nbytes)))
        self._file.seek(place.offset)
        left = place.nbytes
        while left:
            got = self._file.readinto(buffer[:left])  # type: ignore[attr-defined]
            if not got:
                return ""
            hasher.update(buffer[:got])
            left -= got
        return hasher.hexdigest()

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._file.seek(offset)
        while view:
            try:
                written = self._file.write(view)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                total = self.layout.index_offset + _SPARE_BYTES
                raise OSError(
                    errno.ENOSPC,
                    f"the disk is full at byte {offset} of {total}; free some space and run the "
                    "same command again: it goes on from there",
                    str(self.partial),
                ) from None
            view = view[written:]
            offset += written

    def write_text_segments(self) -> None:
        """Write the texts of the layout that are not there yet."""
        for place in self.layout.segments:
            if place.payload is not None and place.name not in self.done:
                self._write(place.offset, place.payload)
                self._commit(place, xxhash.xxh3_64_hexdigest(place.payload), {})

    def write_segment(
        self,
        name: str,
        parts: Iterable[tuple[str, npt.NDArray[np.uint8]]],
        note: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Write the tensors of a segment from (role, bytes) parts, in the segment's order.

        `parts` may give a tensor in several pieces. `note` is asked once the parts are written and
        comes back in `done` after a resume. ContainerError unless every tensor gets its size.
        """
        place = self._places[name]
        hasher = xxhash.xxh3_64()
        at = 0
        waiting = list(place.tensors)
        role, end = "", 0
        for part_role, data in parts:
            if part_role != role:
                if at != end or not waiting or waiting[0].role != part_role:
                    raise ContainerError(
                        f"segment {name}: {part_role} comes after {at} bytes of {role or name}, "
                        "out of order or before that is complete"
                    )
                tensor = waiting.pop(0)
                role, end = tensor.role, tensor.offset + tensor_nbytes(tensor)
                gap = bytes(tensor.offset - at)
                hasher.update(gap)
                self._write(place.offset + at, gap)
                at = tensor.offset
            if at + data.size > end:
                raise ContainerError(f"tensor {role}: more bytes than its size")
            flat = np.ascontiguousarray(data).reshape(-1).data
            hasher.update(flat)
            self._write(place.offset + at, flat)
            at += len(flat)
        if at != place.nbytes:
            raise ContainerError(f"segment {name}: {at} bytes written of {place.nbytes}")
        self._commit(place, hasher.hexdigest(), note())

    def _commit(self, place: SegmentPlan, xxh3: str, note: dict[str, Any]) -> None:
        line = msgspec.json.encode(_Done(place.name, xxh3, note))
        with open(self.journal, "ab") as journal:
            journal.write(line + b"\n")
        self.done[place.name] = note
        self._checksums[place.name] = xxh3

    def finish(
        self,
        tokenizer: Mapping[str, Any],
        generation: Mapping[str, Any],
        source: Mapping[str, Any],
        report: Iterable[ReportRow],
    ) -> int:
        """Write index and header, make the file durable, give it its name; returns its bytes."""
        missing = [name for name in self._places if name not in self.done]
        if missing:
            raise ContainerError(f"segment {missing[0]} was never written")
        segments = tuple(
            Segment(s.name, s.offset, s.nbytes, self._checksums[s.name])
            for s in self.layout.segments
        )
        raw = encode_index(
            Index(
                plan=encode_plan(self.layout.plan),
                segments=segments,
                tensors=tuple(t for s in self.layout.segments for t in s.tensors),
                texts=self.layout.texts,
                tokenizer=dict(tokenizer),
                generation=dict(generation),
                source=dict(source),
                report=tuple(report),
            )
        )
        if len(raw) > MAX_INDEX_BYTES:
            raise ContainerError(f"index of {len(raw)} bytes, the limit is {MAX_INDEX_BYTES}")
        start = self.layout.index_offset
        total = start + len(raw)
        digest = digest_of(self.layout.plan, segments)
        header = Header(total, start, len(raw), xxhash.xxh3_64_intdigest(raw), digest)
        self._write(start, raw)
        self._file.truncate(total)
        system.sync(self._file.fileno())
        self._write(0, header.encode())
        system.sync(self._file.fileno())
        # Where an open file can be renamed the lock is held until it has its name.
        if not system.renames_open_files():
            self._file.close()
        os.replace(self.partial, self.path)
        self._file.close()
        system.sync_folder(self.path.parent)
        self.journal.unlink(missing_ok=True)
        return total

    def close(self) -> None:
        """Stop writing; what is there stays for the next try."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
