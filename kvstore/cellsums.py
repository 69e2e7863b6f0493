"""The sums of a block's cells, by the kernels' checksum (kernels/cpu/checksum.py)."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint32]


def cell_sums(data: Bytes, cell_bytes: int, seed: int, sums: Sums) -> None:
    """Fill `sums` with the sums of data's cells; the seed counts up from cell to cell, modulo
    2^64. data: contiguous, sums.size * cell_bytes."""
    # Here, so that the instruction set may be chosen after this module is imported.
    from .cellsums_kernel import sum_cells

    assert data.nbytes == sums.size * cell_bytes and data.flags.c_contiguous
    sum_cells(data.ctypes.data, sums.size, cell_bytes, np.uint64(seed), sums)
