"""The sums of a block's cells, by the kernels' checksum (kernels/cpu/checksum.py).

Compiled at first use: 3 s, or read from the folder of compiled kernels where one was chosen.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint32]


@cache
def _kernel() -> Any:
    from numba import config, njit

    from hga.kernels.cpu.checksum import cell_sum
    from hga.kernels.cpu.system_calls import JIT

    def sum_cells(address: Any, n_cells: Any, cell_bytes: Any, seed: Any, sums: Any) -> None:
        for i in range(n_cells):
            sums[i] = cell_sum(address + i * cell_bytes, cell_bytes, seed + np.uint64(i))

    # Without a folder that is named after the kernels' sources, code could be kept that they
    # have outgrown.
    return njit(**JIT, cache=bool(config.CACHE_DIR))(sum_cells)


def cell_sums(data: Bytes, cell_bytes: int, seed: int, sums: Sums) -> None:
    """Fill `sums` with the sums of data's cells; the seed counts up from cell to cell, modulo
    2^64. data: contiguous, sums.size * cell_bytes."""
    assert data.nbytes == sums.size * cell_bytes and data.flags.c_contiguous
    _kernel()(data.ctypes.data, sums.size, cell_bytes, np.uint64(seed), sums)
