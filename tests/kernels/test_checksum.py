"""The sum of a cell: as its reference says, and different for every kind of wrong cell."""

from types import ModuleType

import numpy as np
import pytest
from numba import njit

from hga.kernels.reference import checksum as reference


@pytest.fixture(scope="module")
def cell_sum(cpu: ModuleType):
    """cell_sum(uint8 array, seed) -> int, compiled."""
    from hga.kernels.cpu import checksum

    kernel = njit(nogil=True)(checksum.cell_sum.py_func)

    def call(data: np.ndarray, seed: int) -> int:
        return int(kernel(data.ctypes.data, data.nbytes, int(np.uint64(seed).astype(np.int64))))

    return call


@pytest.fixture
def cell() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, 8192, np.uint8)


@pytest.mark.parametrize("n_bytes", [256, 512, 2048, 4096, 8192, 32768])
@pytest.mark.parametrize("seed", [0, 1, 1 << 31, 1 << 32, (1 << 64) - 1, 0x0123456789ABCDEF])
def test_the_reference(cell_sum, n_bytes: int, seed: int) -> None:
    data = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    assert cell_sum(data, seed) == reference.cell_sum(data, seed)


def test_any_address(cell_sum, cell: np.ndarray) -> None:
    for start in (1, 3, 64, 4000):
        assert cell_sum(cell[start : start + 2048], 5) == reference.cell_sum(
            cell[start : start + 2048].copy(), 5
        )


def test_every_flipped_bit(cell_sum, cell: np.ndarray) -> None:
    data = cell[:2048].copy()
    right = cell_sum(data, 3)
    for bit in range(8 * data.nbytes):
        data[bit >> 3] ^= 1 << (bit & 7)
        assert cell_sum(data, 3) != right, bit
        data[bit >> 3] ^= 1 << (bit & 7)
    assert cell_sum(data, 3) == right


def test_the_same_bit_of_two_words(cell_sum, cell: np.ndarray) -> None:
    """Words of one lane too, and the highest bit, which products do not move."""
    words = cell.view(np.uint32)
    right = cell_sum(cell, 3)
    for bit in range(32):
        for first, second in ((0, 64), (0, 1), (5, 5 + 64 * 7), (64, 128)):
            words[[first, second]] ^= np.uint32(1 << bit)
            assert cell_sum(cell, 3) != right, (bit, first, second)
            words[[first, second]] ^= np.uint32(1 << bit)


def test_flipped_bits_of_successive_words_of_a_lane(cell_sum, cell: np.ndarray) -> None:
    data = cell[:2048].copy()
    words = data.view(np.uint32)
    right = cell_sum(data, 3)
    for first in range(32):
        for second in range(32):
            words[7] ^= np.uint32(1 << first)
            words[71] ^= np.uint32(1 << second)
            assert cell_sum(data, 3) != right, (first, second)
            words[7] ^= np.uint32(1 << first)
            words[71] ^= np.uint32(1 << second)


def test_swapped_words(cell_sum, cell: np.ndarray) -> None:
    words, rng = cell.view(np.uint32), np.random.default_rng(1)
    right = cell_sum(cell, 3)
    pairs = [*rng.integers(0, len(words), (200, 2)).tolist(), *([i, i + 64] for i in range(64))]
    for i, j in pairs:
        if words[i] != words[j]:
            words[[i, j]] = words[[j, i]]
            assert cell_sum(cell, 3) != right
            words[[i, j]] = words[[j, i]]


def test_torn_and_empty_cells(cell_sum, cell: np.ndarray) -> None:
    other = np.random.default_rng(8).integers(0, 256, 8192, np.uint8)
    right = cell_sum(cell, 3)
    for end in range(512, 8192, 512):
        assert cell_sum(np.concatenate([cell[:end], other[end:]]), 3) != right
        assert cell_sum(np.concatenate([cell[:end], np.zeros(8192 - end, np.uint8)]), 3) != right
    sums = [cell_sum(np.zeros(n, np.uint8), 0) for n in (256, 512, 8192)]
    assert len(set(sums)) == 3 and 0 not in sums


def test_the_seed_tells_cells_apart(cell_sum, cell: np.ndarray) -> None:
    seeds = [*range(1000), *(1 << i for i in range(10, 64))]
    assert len({cell_sum(cell, seed) for seed in seeds}) == len(seeds)


def test_sums_spread(cell_sum) -> None:
    """Each bit of the sum is set for half of similar cells."""
    sums = []
    for i in range(2000):
        data = np.zeros(256, np.uint8)
        data.view(np.uint32)[3] = i
        sums.append(cell_sum(data, 0))
    ones = np.unpackbits(np.array(sums, "<u4").view(np.uint8).reshape(-1, 4), axis=1).mean(0)
    assert (np.abs(ones - 0.5) < 0.06).all()
    assert len(set(sums)) == len(sums)
