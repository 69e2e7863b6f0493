"""The sums of a block's cells, by the kernels' checksum (kernels/cpu/checksum.py)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint32]
SumCells = Callable[[Bytes, int, int, Sums], None]
"""One of the functions below."""


def cell_sums(data: Bytes, cell_bytes: int, seed: int, sums: Sums) -> None:
    """Fill `sums` with the sums of data's cells; the seed counts up from cell to cell, modulo
    2^64. data: contiguous, sums.size * cell_bytes."""
    # Here, so that the instruction set may be chosen after this module is imported.
    from .cellsums_kernel import sum_cells

    assert data.nbytes == sums.size * cell_bytes and data.flags.c_contiguous
    sum_cells(data.ctypes.data, sums.size, cell_bytes, np.uint64(seed), sums)


def cell_sums_in_numpy(data: Bytes, cell_bytes: int, seed: int, sums: Sums) -> None:
    """The same without compiled kernels, a few times slower."""
    from hga.kernels.reference.checksum import cell_sums as of_cells

    assert data.nbytes == sums.size * cell_bytes and data.flags.c_contiguous
    seeds = np.uint64(seed) + np.arange(sums.size, dtype=np.uint64)
    sums[:] = of_cells(data.reshape(sums.size, cell_bytes), seeds)
