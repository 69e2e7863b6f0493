"""What a disk, a file system or the limits of a process may refuse: reported, and never a hang."""

import errno
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference.checksum import cell_sum
from hga.kvstore import reader_files
from hga.kvstore.errors import StoreError

# A thread ends the process: no signal interrupts a thread that waits for a read.
pytestmark = pytest.mark.timeout(120, method="thread")
CELL = 4096


@pytest.mark.parametrize("code", [errno.EIO, errno.ENXIO, errno.ESTALE, errno.ENOMEM])
def test_one_bad_sector(threads_reader, disk_file, faulty_disk, code: int, requests_of) -> None:
    """It fails its own request, not the neighbours that are read with it, nor later ones."""
    path, data = disk_file
    bad = 5 * CELL

    def fault(fd: int, offset: int, n_bytes: int) -> int | None:
        return -code if offset <= bad < offset + n_bytes else None

    disk = faulty_disk(threads_reader, fault)
    file = threads_reader.add_file(path)
    requests, out = requests_of(threads_reader, file, 16)
    tickets = threads_reader.submit(requests)
    with pytest.raises(StoreError, match=rf"disk\.bin: 4096 bytes at offset {bad} not read") as got:
        threads_reader.wait(requests, tickets)
    assert got.value.errno == code and os.strerror(code) in str(got.value)
    assert tickets.tolist() == [-code if i == 5 else 2 for i in range(16)]
    whole = np.delete(np.arange(16 * CELL), slice(bad, bad + CELL))
    assert (out[whole] == data[whole]).all()
    assert threads_reader.stats["errors"] == 1
    disk.fault = lambda fd, offset, n_bytes: None
    assert (threads_reader.read(file, bad, CELL) == data[bad : bad + CELL]).all()


@pytest.mark.parametrize("n_cells", [1, 7])
def test_interrupts_and_short_reads(
    threads_reader, disk_file, faulty_disk, n_cells: int, requests_of
) -> None:
    path, data = disk_file
    rng = np.random.default_rng(n_cells)

    def fault(fd: int, offset: int, n_bytes: int) -> int | None:
        kind = rng.integers(4)
        if kind < 2:
            return (-errno.EINTR, -errno.EAGAIN)[kind]
        return int(rng.integers(1, n_bytes + 1)) if kind == 2 else None

    faulty_disk(threads_reader, fault)
    file = threads_reader.add_file(path)
    for _ in range(50):
        requests, out = requests_of(threads_reader, file, n_cells)
        threads_reader.wait(requests, threads_reader.submit(requests))
        assert (out == data[: CELL * n_cells]).all()
    assert threads_reader.stats["errors"] == threads_reader.stats["direct_refused"] == 0


def test_a_disk_that_is_never_ready(threads_reader, disk_file, faulty_disk) -> None:
    faulty_disk(threads_reader, lambda fd, offset, n_bytes: -errno.EAGAIN)
    with pytest.raises(StoreError, match="temporarily unavailable"):
        threads_reader.read(threads_reader.add_file(disk_file[0]), 0, CELL)


def test_a_disk_that_gives_more_than_asked_for(threads_reader, disk_file, faulty_disk) -> None:
    faulty_disk(threads_reader, lambda fd, offset, n_bytes: None)
    disk = faulty_disk(threads_reader, lambda fd, offset, n_bytes: None)
    disk._preadv = lambda fd, vectors, n, offset: 1 << 20
    with pytest.raises(StoreError, match="Input/output error"):
        threads_reader.read(threads_reader.add_file(disk_file[0]), 0, CELL)


def test_only_regular_files(reader, tmp_path: Path) -> None:
    """A pipe would be waited for without end."""
    end, other = os.pipe()
    os.mkfifo(tmp_path / "pipe")
    for place in (end, tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(StoreError, match="not a regular file"):
            reader.add_file(place)
    for fd in (end, other):
        os.close(fd)


# --- O_DIRECT -----------------------------------------------------------------------------------


def test_direct_reads_where_they_are_aligned(threads_reader, disk_file, faulty_disk) -> None:
    disk = faulty_disk(threads_reader, lambda fd, offset, n_bytes: None)
    file = threads_reader.add_file(disk_file[0])
    entry = threads_reader.file(file)
    if entry.direct < 0:
        pytest.skip(f"no O_DIRECT here: {'; '.join(threads_reader.notices)}")
    for offset, n_bytes, direct in ((0, CELL, True), (8192, 65536, True), (1, CELL, False)):
        threads_reader.read(file, offset, n_bytes)
        assert disk.calls[-1][0] == (entry.direct if direct else entry.buffered)
    threads_reader.read(file, 0, 100)
    assert disk.calls[-1][0] == entry.buffered
    room = np.zeros(2 * CELL, np.uint8)
    odd = room[1 - room.ctypes.data % 2 :][:CELL]
    threads_reader.read(file, 0, CELL, odd)
    assert disk.calls[-1][0] == entry.buffered
    assert threads_reader.notices == []


def test_direct_refused_when_opened(reader, disk_file, monkeypatch) -> None:
    real = os.open

    def refuse(path, flags, *mode):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    path, data = disk_file
    file = reader.add_file(path)
    assert (reader.read(file, 0, CELL) == data[:CELL]).all()
    said = [] if reader.mode == "mmap" else ["disk.bin", "page cache", "opened", "Invalid argument"]
    assert all(word in "".join(reader.notices) for word in said)
    assert bool(reader.notices) or not said


def test_direct_refused_by_the_probe(threads_reader, disk_file, monkeypatch) -> None:
    def refuse(fd, buffers, offset):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "preadv", refuse)
    before = len(os.listdir("/proc/self/fd"))
    file = threads_reader.add_file(disk_file[0])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    monkeypatch.undo()
    assert (threads_reader.read(file, 0, CELL) == disk_file[1][:CELL]).all()
    assert "read" in threads_reader.notices[0] and "Invalid argument" in threads_reader.notices[0]


@pytest.mark.parametrize("known", [None, (512, 512), (4096, 4096), (4096, 512)])
def test_alignments(threads_reader, disk_file, monkeypatch, known) -> None:
    """As the kernel states them, or by trying."""
    monkeypatch.setattr(reader_files, "_alignments", lambda fd: known)
    file = threads_reader.add_file(disk_file[0])
    entry = threads_reader.file(file)
    if entry.direct >= 0:
        assert known is None or (entry.offset_align, entry.memory_align) == known
    for offset, n_bytes in ((512, 512), (4096, 4096), (512, 8192)):
        got = threads_reader.read(file, offset, n_bytes)
        assert (got == disk_file[1][offset : offset + n_bytes]).all()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_direct_refused_later(
    threads_reader, disk_file, faulty_disk, code: int, requests_of
) -> None:
    file = threads_reader.add_file(disk_file[0])
    entry = threads_reader.file(file)
    if entry.direct < 0:
        pytest.skip(f"no O_DIRECT here: {'; '.join(threads_reader.notices)}")
    disk = faulty_disk(threads_reader, lambda fd, *_: -code if fd == entry.direct else None)
    for _ in range(3):
        requests, out = requests_of(threads_reader, file, 4)
        threads_reader.wait(requests, threads_reader.submit(requests))
        assert (out == disk_file[1][: 4 * CELL]).all()
    assert {fd for fd, _, _ in disk.calls[-2:]} == {entry.buffered}
    assert threads_reader.notices == [
        f"{entry.name} is read through the page cache: a read refused O_DIRECT"
    ]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory at /dev/shm")
def test_a_file_system_in_memory(reader) -> None:
    """Refuses O_DIRECT or not, by version."""
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.pwrite(fd, bytes(range(256)) * 64, 0)
    file = reader.add_file(fd)
    os.close(fd)
    assert (reader.read(file, 4096, 8192) == np.tile(np.arange(256, dtype=np.uint8), 32)).all()
    assert len(reader.notices) <= 1


# --- io_uring and limits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EPERM, "Operation not permitted"), "not permitted"),
        (OSError(errno.ENOSYS, "Function not implemented"), "not implemented"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ulimit -l"),
        (None, "not installed"),
    ],
)
def test_uring_refused(kernels, disk_file, fake_liburing, error, said: str) -> None:
    from hga.kvstore.reader import Reader

    fake_liburing(error)
    reports: list[str] = []
    with Reader.open("uring", report=reports.append) as reader:
        assert reader.mode == "threads"
        assert reader.notices == reports and said in reports[0] and "threads read" in reports[0]
        assert (reader.read(reader.add_file(disk_file[0]), 0, CELL) == disk_file[1][:CELL]).all()


def test_a_ring_that_breaks(open_reader, disk_file, monkeypatch, requests_of) -> None:
    """Its reads end with an error, later ones are read by other means, and it is reported."""
    from hga.kvstore import reader_uring

    def fail(ring):
        raise OSError(errno.EBADFD, "File descriptor in bad state")

    reader = open_reader("uring")
    file = reader.add_file(disk_file[0])
    monkeypatch.setattr(reader_uring.Ring, "ended", fail)
    requests, out = requests_of(reader, file, 32)
    tickets = reader.submit(requests)
    deadline = time.monotonic() + 60
    while (tickets == 1).any() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert tickets[0] == -errno.EIO and set(tickets.tolist()) <= {2, -errno.EIO}
    assert "an I/O thread failed and is replaced" in reader.notices[0]
    tickets = reader.submit(requests)
    while (tickets == 1).any() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (tickets == 2).all() and (out == disk_file[1][: 32 * CELL]).all()


def test_auto_says_nothing(kernels, disk_file, fake_liburing) -> None:
    from hga.kvstore.reader import Reader

    fake_liburing(None)
    with Reader.open() as reader:
        assert reader.mode == "threads" and reader.notices == []


def test_too_few_open_files(threads_reader, disk_file) -> None:
    path, data = disk_file
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler: list[int] = []
    with open("/proc/self/fd/0") if os.path.exists("/proc/self/fd/0") else open(path) as any_file:
        try:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
            with pytest.raises(OSError):
                while True:
                    filler.append(os.dup(any_file.fileno()))
            with pytest.raises(StoreError, match=r"cannot be opened .*ulimit -n"):
                threads_reader.add_file(path)
            os.close(filler.pop())
            file = threads_reader.add_file(path)
            assert (threads_reader.read(file, 0, CELL) == data[:CELL]).all()
            assert "ulimit -n" in threads_reader.notices[0]
        finally:
            for fd in filler:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_files(open_reader, disk_file) -> None:
    reader = open_reader("threads", n_files=2)
    before = len(os.listdir("/proc/self/fd"))
    files = [reader.add_file(disk_file[0]) for _ in range(2)]
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="2 files are open already"):
        reader.add_file(disk_file[0])
    assert len(os.listdir("/proc/self/fd")) == opened
    for file in files:
        reader.remove_file(file)
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_bytes_from_the_disk(threads_reader, disk_file, faulty_disk) -> None:
    """A sum finds what the disk does not report."""
    data = disk_file[1]
    disk = faulty_disk(threads_reader, lambda fd, offset, n_bytes: None)
    real = disk._preadv
    disk._preadv = lambda fd, vectors, n, offset: real(fd, vectors, n, offset + CELL)
    file = threads_reader.add_file(disk_file[0], direct=False)
    with pytest.raises(StoreError, match="checksum"):
        threads_reader.read(file, 0, CELL, sum=cell_sum(data[:CELL], 1), seed=1)
