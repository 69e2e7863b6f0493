"""CudaArena: a sequence's keys and values in memory as a Session sees them: a Bank of the whole
context, and its blocks as they are saved."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hga.kernels.triton.bank import Bank
from hga.kernels.triton.places import pages_of, rows_of
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import Geometry
from hga.kvstore.route import EVERYTHING, Limits

U8 = NDArray[np.uint8]


class CudaArena:
    """What RamArena is (kvstore/arena.py), on a card or in pinned memory."""

    def __init__(self, bank: Bank, geometry: Geometry, ctx: int) -> None:
        self.bank, self.geometry, self.ctx = bank, geometry, ctx

    @property
    def allocated_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.bank.nbytes

    def reserve(self, n_tokens: int, limits: Limits = EVERYTHING) -> None:
        """Room is there for the whole context; StoreError beyond it."""
        if n_tokens > self.ctx:
            raise StoreError(f"{n_tokens} tokens do not fit in a context of {self.ctx}")

    def shrink(self, n_tokens: int) -> None:
        """Nothing: what lies beyond the tokens of a sequence is never read."""

    def block_kv(self, block: int) -> U8:
        """A copy of the keys and values of a block, uint8 [block_kv_bytes]."""
        out = np.empty(self.geometry.block_kv_bytes, np.uint8)
        for layer, rows in enumerate(self.bank.rows):
            pages = pages_of(rows, block, block + 1).view(-1).view(torch.uint8)
            self._part(out, layer)[...] = pages.cpu().numpy()
        return out

    def load_kv(self, block: int, read: Callable[[int, U8], None]) -> None:
        """Take over keys and values of a block that `read` puts into uint8 [block_kv_bytes]."""
        data = np.empty(self.geometry.block_kv_bytes, np.uint8)
        read(block, data)
        for layer, rows in enumerate(self.bank.rows):
            pages = torch.from_numpy(self._part(data, layer)).view(torch.float16)
            shape = (1, 2, rows.n_kv_heads, 8, 2, 8 * rows.head_dim)
            rows_of(pages.view(shape).to(rows.keys.device), block, rows)

    def _part(self, data: U8, layer: int) -> U8:
        at = self.geometry.layer_offset(layer)
        return data[at : at + self.geometry.layer_bytes(layer)]

    def block_index(self, block: int) -> U8:
        """The key sketches of a block as they are saved."""
        return self.bank.kept.block_index(block)

    def load_index(self, block: int, data: U8) -> None:
        """Put back what `block_index` gave."""
        self.bank.kept.load_index(block, data)

    def close(self) -> None:
        """Free everything."""
        self.bank.close()
