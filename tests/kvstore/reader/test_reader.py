"""Reads of every mode give the bytes of the file; errors name what could not be read."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference.checksum import cell_sum
from hga.kvstore.errors import StoreError

# A thread ends the process: no signal interrupts a thread that waits for a read.
pytestmark = pytest.mark.timeout(120, method="thread")
CELL = 8192


@pytest.mark.parametrize(
    ("offset", "n_bytes", "shift"),
    [
        (0, 4096, 0),
        (8192, 8192, 0),
        (0, 4 << 20, 0),
        (512, 1536, 0),
        (4096, 8192, 8),
        (1, 1, 0),
        (4095, 2, 3),
        (777, 100_001, 1),
        ((4 << 20) - 1, 1, 0),
        ((4 << 20) - 4096, 4096, 0),
    ],
)
def test_bytes(reader, disk_file, offset: int, n_bytes: int, shift: int) -> None:
    from hga.kvstore.memory import aligned_zeros

    path, data = disk_file
    file = reader.add_file(path)
    room = aligned_zeros(n_bytes + 64)
    room[:] = 0xA5
    reader.read(file, offset, n_bytes, room[shift : shift + n_bytes])
    assert (room[shift : shift + n_bytes] == data[offset : offset + n_bytes]).all()
    assert (room[:shift] == 0xA5).all() and (room[shift + n_bytes :] == 0xA5).all()


@pytest.mark.parametrize("by", ["path", "name", "descriptor"])
@pytest.mark.parametrize("direct", [True, False])
def test_files(reader, disk_file, by: str, direct: bool) -> None:
    path, data = disk_file
    fd = os.open(path, os.O_RDONLY)
    place = {"path": path, "name": str(path), "descriptor": fd}[by]
    files = [reader.add_file(place, direct) for _ in range(3)]
    os.close(fd)
    assert len(set(files)) == 3
    for file in files:
        assert (reader.read(file, 4096, 4096) == data[4096:8192]).all()
    reader.remove_file(files[1])
    with pytest.raises(StoreError, match="not open"):
        reader.read(files[1], 0, 1)
    assert reader.add_file(path) == files[1]
    assert (reader.read(files[1], 4096, 4096) == data[4096:8192]).all()


def cells(reader, file: int, data: np.ndarray, offsets: list[int], verified: bool = True):
    """Requests of cells and the memory they go to."""
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Request

    out = aligned_zeros(CELL * len(offsets)).reshape(-1, CELL)
    out[:] = 0
    requests = []
    for i, offset in enumerate(offsets):
        right = cell_sum(data[offset : offset + CELL], offset) if verified else None
        requests.append(Request(file, offset, CELL, out[i].ctypes.data, right, offset))
    return requests, out


def in_threads(n: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1), … in n threads and raise what one of them raises."""
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(work, range(n)))


def test_many_threads(reader, disk_file) -> None:
    """Thousands of small reads, verified, while others do the same."""
    path, data = disk_file
    file = reader.add_file(path)
    table = data.reshape(-1, CELL)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(8):
            numbers = rng.integers(0, len(table), 100)
            requests, out = cells(reader, file, data, (numbers * CELL).tolist())
            reader.wait(requests, reader.submit(requests, hint=bool(rng.integers(2))))
            assert (out == table[numbers]).all()

    in_threads(4, work)
    stats = reader.stats
    assert stats["requests"] == 3200 and stats["bytes"] == 3200 * CELL
    assert stats["errors"] == stats["wrong_sums"] == 0
    assert stats["reads"] <= 3200 - stats["merged"]


def test_hints_dropped_and_promoted_under_way(reader, disk_file) -> None:
    """Threads hint, drop one another's hints and demand what they hinted: nothing is lost, nobody
    waits for a dropped request, and what is READ is right."""
    from hga.kernels.cpu import io_entry

    path, data = disk_file
    file = reader.add_file(path)
    table = data.reshape(-1, CELL)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for generation in range(40):
            numbers = rng.integers(0, len(table), 60)
            requests, out = cells(reader, file, data, (numbers * CELL).tolist(), False)
            tickets = reader.submit(requests, hint=True, generation=generation)
            reader.cancel_hints(int(rng.integers(generation + 2)))
            for i in rng.permutation(60)[:20]:
                ticket = tickets.ctypes.data + 8 * int(i)
                if rng.integers(2):
                    io_entry.promote(reader.address, ticket)
                if io_entry.wait_all(reader.address, ticket, 1):
                    assert (out[i] == table[numbers[i]]).all()
                else:
                    assert tickets[i] == 0
                    reader.wait([requests[i]], reader.submit([requests[i]]))
                    assert (out[i] == table[numbers[i]]).all()
            reader.cancel_hints(generation + 1)
            io_entry.wait_all(reader.address, tickets.ctypes.data, 60)
            assert set(tickets.tolist()) <= {0, 2}
            read = tickets == 2
            assert (out[read] == table[numbers[read]]).all()

    in_threads(3, work)
    stats = reader.stats
    assert stats["requests"] + stats["cancelled"] >= 3 * 40 * 60 and stats["errors"] == 0


def test_wrong_sums(reader, disk_file) -> None:
    path, data = disk_file
    file = reader.add_file(path)
    right = cell_sum(data[:CELL], 9)
    reader.read(file, 0, CELL, sum=right, seed=9)
    for wrong in ({"sum": right ^ 1, "seed": 9}, {"sum": right, "seed": 8}):
        with pytest.raises(StoreError, match=r"disk\.bin: 8192 bytes at offset 0 .* checksum"):
            reader.read(file, 0, CELL, **wrong)
    with pytest.raises(StoreError, match="offset 8192"):
        reader.read(file, CELL, CELL, sum=right, seed=9)
    assert reader.stats["wrong_sums"] == 3
    # One wrong cell among neighbours that are read together.
    requests, out = cells(reader, file, data, [i * CELL for i in range(8)])
    requests[5] = type(requests[5])(file, 5 * CELL, CELL, out[5].ctypes.data, 1, 5)
    tickets = reader.submit(requests)
    with pytest.raises(StoreError, match=f"offset {5 * CELL}"):
        reader.wait(requests, tickets)
    assert (tickets == 2).sum() == 7


def test_short_files(reader, disk_file, tmp_path: Path) -> None:
    path, data = disk_file
    file = reader.add_file(path)
    for offset, n_bytes in (((4 << 20) - 4096, 8192), (4 << 20, 1), (1 << 40, 4096)):
        with pytest.raises(StoreError, match=rf"{n_bytes} bytes at offset {offset} .* ends before"):
            reader.read(file, offset, n_bytes)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(StoreError, match="ends before"):
        reader.read(reader.add_file(empty), 0, 1)
    # A file that grows, and one that is cut while it is open.
    moving = tmp_path / "moving"
    moving.write_bytes(data[:CELL].tobytes())
    file = reader.add_file(moving)
    assert (reader.read(file, 0, CELL) == data[:CELL]).all()
    with moving.open("ab") as more:
        more.write(data[CELL : 3 * CELL].tobytes())
    assert (reader.read(file, CELL, 2 * CELL) == data[CELL : 3 * CELL]).all()
    os.truncate(moving, CELL)
    with pytest.raises(StoreError, match="ends before"):
        reader.read(file, CELL, CELL)
    assert (reader.read(file, 0, CELL) == data[:CELL]).all()


def test_what_was_written_is_read(reader, tmp_path: Path) -> None:
    """By pwrite through another descriptor, as the store does it."""
    path = tmp_path / "slots"
    path.write_bytes(bytes(64 * CELL))
    file, rng = reader.add_file(path), np.random.default_rng(0)
    fd = os.open(path, os.O_WRONLY)
    for _ in range(50):
        cell = rng.integers(0, 256, CELL, np.uint8)
        offset = int(rng.integers(64)) * CELL
        os.pwrite(fd, cell.tobytes(), offset)
        assert (reader.read(file, offset, CELL) == cell).all()
    os.close(fd)


@pytest.mark.parametrize("n_bytes", [0, -1])
def test_no_bytes(reader, disk_file, n_bytes: int) -> None:
    from hga.kvstore.reader import Request

    request = Request(reader.add_file(disk_file[0]), 0, n_bytes, 0)
    with pytest.raises(StoreError, match="Invalid argument"):
        reader.wait([request], reader.submit([request]))


def test_requests_that_make_no_sense(reader, disk_file, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        reader.add_file(tmp_path / "missing")
    file = reader.add_file(disk_file[0])
    for wrong in (-1, 7, 1024, 1 << 40):
        with pytest.raises(StoreError, match="not open"):
            reader.read(wrong, 0, 1)
    with pytest.raises(ValueError, match="writable, contiguous"):
        reader.read(file, 0, 100, np.zeros(99, np.uint8))
    with pytest.raises(StoreError, match="Invalid argument"):
        reader.read(file, -4096, 4096)


def test_idle_threads_burn_nothing(open_reader, disk_file) -> None:
    reader = open_reader("threads")
    reader.read(reader.add_file(disk_file[0]), 0, CELL)
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1


def test_an_unknown_mode(open_reader) -> None:
    with pytest.raises(ValueError, match="none of auto, threads, uring, mmap"):
        open_reader("aio")


def test_a_small_queue(open_reader, disk_file) -> None:
    """A demand always finds room, whoever reads."""
    path, data = disk_file
    for n_threads in (0, 1, 4):
        reader = open_reader("threads", n_threads=n_threads, n_entries=4, flight_bytes=CELL)
        numbers = np.random.default_rng(0).integers(0, 512, 500)
        requests, out = cells(reader, reader.add_file(path), data, (numbers * CELL).tolist())
        reader.wait(requests, reader.submit(requests))
        assert (out == data.reshape(-1, CELL)[numbers]).all()
