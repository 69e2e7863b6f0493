"""The compiled loop over a block's cells; imported when the first block is summed."""

from typing import Any

import numpy as np
from numba import config, njit

from hga.kernels.cpu.checksum import cell_sum


# Kept on disk only in the folder that is named after the kernels' sources: elsewhere it could
# outlive a change of theirs.
@njit(nogil=True, error_model="numpy", cache=bool(config.CACHE_DIR))
def sum_cells(address: Any, n_cells: Any, cell_bytes: Any, seed: Any, sums: Any) -> None:
    """uint32 sums [n_cells] of cells side by side; the seed (uint64) counts up."""
    for i in range(n_cells):
        sums[i] = cell_sum(address + i * cell_bytes, cell_bytes, seed + np.uint64(i))
