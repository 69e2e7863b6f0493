"""The reader without compiled kernels: what it reads, and what it says of a disk that fails."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference.checksum import cell_sum
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
