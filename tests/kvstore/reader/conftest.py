"""Readers of every mode over a file of random bytes, and a disk that fails on request."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hga.kernels import ops

N_BYTES = 4 << 20
MODES = ("threads", "uring", "mmap", "python")


@pytest.fixture(scope="session")
def kernels(kernel_cache: Path, kernel_isa: str | None) -> None:
    """The instruction set and the cache of kernels are chosen."""
    ops.choose_cpu(kernel_cache / "kernels", kernel_isa)


@pytest.fixture(scope="session")
def disk_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file of random bytes and what stands in it."""
    data = np.random.default_rng(0).integers(0, 256, N_BYTES, np.uint8)
    path = tmp_path_factory.mktemp("reader") / "disk.bin"
    data.tofile(path)
    return path, data


@pytest.fixture
def open_reader(kernels: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """open_reader(mode, **options) -> Reader, closed when the test ends. "python" is "threads" of
    a system without preadv, futex and clock."""
    from hga.kernels.cpu import io_slots
    from hga.kvstore.reader import Reader

    made = []

    def make(mode: str = "threads", **options: Any) -> Any:
        with monkeypatch.context() as patch:
            if mode == "python":
                patch.setattr(io_slots, "functions", lambda: (0, 0, 0, 0, 0, 0))
                mode = "threads"
            reader = Reader.open(mode, **options)
        made.append(reader)
        if reader.mode != mode:
            pytest.skip(f"reads by {mode} cannot be had here: {'; '.join(reader.notices)}")
        return reader

    yield make
    for reader in made:
        reader.close()


@pytest.fixture(params=MODES)
def reader(request: pytest.FixtureRequest, open_reader: Callable[..., Any]) -> Any:
    """A reader of each mode."""
    return open_reader(request.param)


class FaultyDisk:
    """Takes the place of preadv in a reader: records calls and lets `fault` answer first.

    fault(fd, offset, n_bytes) -> bytes to read at most, -errno, or None for a read as asked for.
    """

    def __init__(self, reader: Any, fault: Callable[[int, int, int], int | None]) -> None:
        from hga.kernels.cpu import io_slots

        self.calls: list[tuple[int, int, int]] = []
        self.fault = fault
        libc = ctypes.CDLL(None, use_errno=True)
        libc.preadv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
        libc.preadv.restype = ctypes.c_ssize_t
        self._preadv = libc.preadv
        kind = ctypes.CFUNCTYPE(
            ctypes.c_ssize_t,
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long),
            use_errno=True,
        )
        self._callback = kind(self._read)
        address = ctypes.cast(self._callback, ctypes.c_void_p).value
        reader._words[io_slots.PREADV // 8] = address
        # The reader calls it as long as it lives.
        vars(reader).setdefault("disks", []).append(self)

    def _read(self, fd: int, vectors: int, n_vectors: int, offset: int) -> int:
        table = (ctypes.c_int64 * (2 * n_vectors)).from_address(vectors)
        n_bytes = sum(table[1::2])
        self.calls.append((fd, offset, n_bytes))
        answer = self.fault(fd, offset, n_bytes)
        if answer is None:
            got = self._preadv(fd, vectors, n_vectors, offset)
            return int(got)
        if answer < 0:
            ctypes.set_errno(-answer)
            return -1
        # A short read fills the first bytes; through the page cache, for any length.
        left, fd = answer, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        for i in range(n_vectors):
            part = min(left, table[2 * i + 1])
            if part:
                data = os.pread(fd, part, offset + answer - left)
                ctypes.memmove(table[2 * i], data, part)
            left -= part
        os.close(fd)
        return answer


@pytest.fixture
def faulty_disk(kernels: None) -> Callable[..., FaultyDisk]:
    """faulty_disk(reader, fault) -> FaultyDisk."""
    return FaultyDisk


@pytest.fixture
def fake_liburing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """fake_liburing(error): io_uring_queue_init raises it; None: the package is not installed."""

    def fake(error: Exception | None) -> None:
        def refuse(*args: object) -> None:
            assert error is not None
            raise error

        module = SimpleNamespace(Ring=object, Cqe=object, io_uring_queue_init=refuse)
        monkeypatch.setitem(sys.modules, "liburing", None if error is None else module)

    return fake


@pytest.fixture(params=[0, 3])
def threads_reader(request: pytest.FixtureRequest, open_reader: Callable[..., Any]) -> Any:
    """Read by the waiting thread alone, and by three others."""
    return open_reader("threads", n_threads=request.param)


@pytest.fixture
def requests_of(kernels: None) -> Callable[..., Any]:
    """requests_of(reader, file, n) -> requests of the file's first n cells of 4096 bytes, and the
    memory they go to, which must be kept until they have ended."""

    def make(reader: Any, file: int, n: int) -> tuple[list[Any], np.ndarray]:
        from hga.kvstore.memory import aligned_zeros
        from hga.kvstore.reader import Request

        out = aligned_zeros(4096 * n)
        out[:] = 0
        return [Request(file, 4096 * i, 4096, out.ctypes.data + 4096 * i) for i in range(n)], out

    return make
