"""The reader without compiled kernels: what it reads, and what it says of a disk that fails."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference.checksum import cell_sum
from hga.kvstore import batch_reads
from hga.kvstore.batch_reads import DEPTH, BatchReads
from hga.kvstore.errors import StoreError
from hga.kvstore.memory import aligned_zeros
from hga.kvstore.plain_reader import PlainReader
from hga.kvstore.reader_request import SHORT_FILE, WRONG_SUM

CELL, N_CELLS, N_BLOCKS = 4096, 8, 20


@pytest.fixture
def reader() -> Iterator[PlainReader]:
    made = PlainReader(4)
    yield made
    made.close()


@pytest.fixture
def data(tmp_path: Path) -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, N_BLOCKS * N_CELLS * CELL, np.uint8)
    (tmp_path / "cells").write_bytes(made.tobytes())
    return made.reshape(-1, CELL)


def test_codes_are_those_of_the_kernels() -> None:
    from hga.kernels.cpu import io_read, io_worker

    assert (WRONG_SUM, SHORT_FILE) == (io_read.WRONG_SUM, io_read.SHORT_FILE)
    assert io_worker.NOTHING == 0


@pytest.mark.parametrize("shift", [0, 1])
def test_cells_go_where_they_are_asked_to(
    reader: PlainReader, data: np.ndarray, tmp_path: Path, shift: int
) -> None:
    """Neighbours and others, past the page cache where memory suits that, in any order."""
    file = reader.add_file(tmp_path / "cells")
    cells = np.array([3, 4, 5, *range(30, 70), 9, 2, 150])
    room = aligned_zeros(len(cells) * CELL + 64)[shift:][: len(cells) * CELL].reshape(-1, CELL)
    places = np.random.default_rng(1).permutation(len(cells))
    dest = room.ctypes.data + places * CELL
    assert reader.read_cells(np.full(len(cells), file), cells * CELL, dest, CELL) is None
    assert np.array_equal(room[places], data[cells])
    assert reader.stats["bytes"] == len(cells) * CELL and reader.stats["stall_ns"] > 0


def test_a_read_that_fails_names_the_cell(
    reader: PlainReader, data: np.ndarray, tmp_path: Path
) -> None:
    file = reader.add_file(tmp_path / "cells")
    room = aligned_zeros(2 * CELL)
    dest = room.ctypes.data + np.array([0, CELL])
    offsets = np.array([0, data.nbytes])
    failed = reader.read_cells(np.full(2, file), offsets, dest, CELL)
    assert failed == (1, SHORT_FILE)
    assert "the file ends before that" in str(reader.error(SHORT_FILE, file, 0, CELL))
    reader.remove_file(file)
    failed = reader.read_cells(np.full(2, file), offsets, dest, CELL)
    assert failed is not None and failed[1] < 0
    with pytest.raises(StoreError, match="no-file"):
        reader.add_file(tmp_path / "no-file")


def scattered(reader: PlainReader, folder: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n cells, few of them neighbours, read; the cells and what is where they should be."""
    file = reader.add_file(folder / "cells")
    cells = np.random.default_rng(n).integers(0, N_BLOCKS * N_CELLS, n)
    room = aligned_zeros(n * CELL).reshape(-1, CELL)
    dest = room.ctypes.data + np.arange(n) * CELL
    assert reader.read_cells(np.full(n, file), cells * CELL, dest, CELL) is None
    return cells, room


@pytest.fixture
def batch(data: np.ndarray, tmp_path: Path) -> BatchReads:
    """Lists of reads, where the system and the disk take any."""
    try:
        made = BatchReads()
    except OSError as error:
        pytest.skip(f"no lists of reads: {error}")
    made.close()
    probe = PlainReader(1)
    direct = probe._files[probe.add_file(tmp_path / "cells")].direct
    probe.close()
    if direct < 0:
        pytest.skip("no O_DIRECT here")
    return made


@pytest.mark.parametrize("n", [2, 40, DEPTH + 1, 3 * DEPTH])
def test_lists_of_any_length(
    batch: BatchReads, data: np.ndarray, tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads have nothing to do.
    monkeypatch.setattr(PlainReader, "_read_runs", None)
    reader = PlainReader(4)
    cells, room = scattered(reader, tmp_path, n)
    assert np.array_equal(room, data[cells]) and reader.mode == "aio"
    reader.close()


def test_few_places_at_a_time(
    batch: BatchReads, data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system takes a part of a list, or none of it for the moment, or is interrupted."""
    monkeypatch.setattr(PlainReader, "_read_runs", None)
    invoke, calls, under_way = BatchReads._invoke, [], 0

    def sparing(self: BatchReads, number: int, *arguments: object) -> int:
        nonlocal under_way
        calls.append(number)
        if number == self._submit:
            if under_way and len(calls) % 3 == 0:
                raise BlockingIOError(errno.EAGAIN, "later")
            arguments = (arguments[0], type(arguments[1])(min(7, arguments[1].value)), arguments[2])
            done = invoke(self, number, *arguments)
            under_way += done
            return done
        if number == self._events and len(calls) % 4 == 0:
            raise InterruptedError(errno.EINTR, "again")
        done = invoke(self, number, *arguments)
        under_way -= done if number == self._events else 0
        return done

    reader = PlainReader(4)
    monkeypatch.setattr(BatchReads, "_invoke", sparing)
    cells, room = scattered(reader, tmp_path, 100)
    assert np.array_equal(room, data[cells]) and len(calls) > 30
    reader.close()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_nothing_is_under_way_after_an_exception(
    batch: BatchReads, data: np.ndarray, tmp_path: Path, problem: type, monkeypatch
) -> None:
    reader, take, ended = PlainReader(4), BatchReads._take, []

    def broken(self: BatchReads, *arguments: object) -> int:
        raise problem(errno.EIO, "while reads are under way")

    def closed(self: BatchReads) -> None:
        ended.append(self._context.value)
        close(self)

    close = BatchReads.close
    monkeypatch.setattr(BatchReads, "_take", broken)
    monkeypatch.setattr(BatchReads, "close", closed)
    if problem is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            scattered(reader, tmp_path, 50)
        monkeypatch.setattr(BatchReads, "_take", take)
        monkeypatch.setattr(PlainReader, "_read_runs", None)
    # A list that is refused is read by threads.
    cells, room = scattered(reader, tmp_path, 50)
    assert np.array_equal(room, data[cells]) and ended and ended[0]
    assert (reader._batch is None) == (problem is OSError)
    reader.close()


def test_without_lists_of_reads(data: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batch_reads, "batch_read_numbers", lambda: None)
    said: list[str] = []
    reader = PlainReader(4, said.append)
    cells, room = scattered(reader, tmp_path, 50)
    assert np.array_equal(room, data[cells]) and reader.mode == "threads"
    assert "takes no lists of reads" in said[0]
    reader.close()


def test_blocks_are_verified(reader: PlainReader, data: np.ndarray, tmp_path: Path) -> None:
    file = reader.add_file(tmp_path / "cells")
    seeds = np.arange(N_BLOCKS, dtype=np.int64) * 1000 - 5
    size = N_CELLS * CELL
    places = np.stack([np.full(N_BLOCKS, file), np.arange(N_BLOCKS) * size, seeds], 1)
    sums = np.zeros((N_BLOCKS, N_CELLS), np.uint32)
    for block, cell in np.ndindex(sums.shape):
        seed = (int(seeds[block]) + cell) % (1 << 64)
        sums[block, cell] = cell_sum(data[block * N_CELLS + cell], seed)
    out = np.zeros((18, size), np.uint8)
    assert reader.read_blocks(places, sums, CELL, 2, 20, out) is None
    assert np.array_equal(out.reshape(-1, CELL), data[2 * N_CELLS :])
    with (tmp_path / "cells").open("r+b") as handle:
        handle.seek((11 * N_CELLS + 6) * CELL + 100)
        handle.write(bytes([data[11 * N_CELLS + 6, 100] ^ 1]))
        os.fsync(handle.fileno())
    assert reader.read_blocks(places, sums, CELL, 2, 20, out) == (11, 6, WRONG_SUM)
    assert reader.read_blocks(places, sums, CELL, 12, 20, out[:8]) is None
    os.truncate(tmp_path / "cells", 15 * size)
    assert reader.read_blocks(places, sums, CELL, 12, 20, out[:8]) == (15, 0, SHORT_FILE)
