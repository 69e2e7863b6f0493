"""Files of the reader: a descriptor through the page cache, and one past it where that works.

O_DIRECT keeps a promise about memory: what is read is charged to nobody else's page cache. File
systems may refuse it when a file is opened or when it is read, so a live transfer decides.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hga.kernels import system

from .errors import StoreError
from .memory import PAGE_BYTES

_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
# Offsets in struct statx: the mask of what was filled, and two alignments (Linux 6.1).
_STX_MASK, _STX_DIO_MEM_ALIGN, _STX_DIO_OFFSET_ALIGN = 0, 152, 156


@dataclass(slots=True)
class DiskFile:
    """An open file; direct is -1 where there is no O_DIRECT, alignments are powers of two."""

    name: str
    buffered: int
    direct: int
    offset_align: int
    memory_align: int
    mapped: mmap.mmap | None = None

    def close(self) -> None:
        """Close the descriptors."""
        if self.mapped is not None:
            # Views may still be out; the mapping goes with them.
            with contextlib.suppress(BufferError):
                self.mapped.close()
        for fd in (self.direct, self.buffered):
            if fd >= 0:
                os.close(fd)
        self.direct = self.buffered = -1


def open_file(place: Path | str | int, direct: bool, note: Callable[[str], None]) -> DiskFile:
    """Open a file for reading, by its path or as a copy of a descriptor; StoreError if it cannot
    be. `note` is told why there is no O_DIRECT where it was asked for."""
    name = f"descriptor {place}" if isinstance(place, int) else str(place)
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        # Looked at first: to open a pipe may wait for ever, and so may io_uring that reads one.
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise StoreError(f"{name} is not a regular file")
        buffered = os.dup(place) if isinstance(place, int) else os.open(place, flags)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(_reason(error, f"{name} cannot be opened")) from error
    file = DiskFile(name, buffered, -1, 1, 1)
    if direct and not system.passes_page_cache():
        note("files are read through the page cache: this system has no O_DIRECT")
    elif direct:
        problem = _open_direct(file, place, flags)
        if problem:
            note(f"{name} is read through the page cache: {problem}")
    return file


def _open_direct(file: DiskFile, place: Path | str | int, flags: int) -> str:
    """Add a descriptor with O_DIRECT, if a read by it works; returns why not."""
    o_direct: int = getattr(os, "O_DIRECT", 0)
    # A second description of the same file, even if its name is gone.
    again = f"/proc/self/fd/{file.buffered}"
    try:
        direct = os.open(again, flags | o_direct)
    except OSError as error:
        return _reason(error, "O_DIRECT is refused when it is opened")
    alignments = _alignments(direct)
    problem = ""
    for offset_align, memory_align in [alignments] if alignments else [(512, 512), (4096, 4096)]:
        try:
            _probe(direct, offset_align)
        except OSError as error:
            problem = _reason(error, "O_DIRECT is refused when it is read")
        else:
            file.direct = direct
            file.offset_align, file.memory_align = offset_align, memory_align
            return ""
    os.close(direct)
    return problem


def _probe(fd: int, n_bytes: int) -> None:
    """Read the first bytes into a page of memory."""
    with mmap.mmap(-1, max(n_bytes, PAGE_BYTES)) as page, memoryview(page) as view:
        part = view[:n_bytes]
        try:
            system.read_at(fd, part, 0)
        finally:
            part.release()


def _alignments(fd: int) -> tuple[int, int] | None:
    """Alignment of offsets and of memory as the kernel states it, or None."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None:
        return None
    result = (ctypes.c_uint32 * 64)()
    if statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, result) != 0:
        return None
    if not result[_STX_MASK] & _STATX_DIOALIGN:
        return None
    memory, offset = result[_STX_DIO_MEM_ALIGN // 4], result[_STX_DIO_OFFSET_ALIGN // 4]
    # 0: the file system states that it has none; the probe then gives the reason.
    return (offset, memory) if memory and offset else None


def _reason(error: OSError, what: str) -> str:
    text = f"{what} ({error.strerror or error})"
    if error.errno == errno.EMFILE:
        return text + "; a larger limit of open files helps (ulimit -n)"
    return text
