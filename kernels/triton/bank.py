"""Bank: keys, values and key sketches of one sequence, on the card or in pinned host memory.

Kernels read pinned memory over the bus as they read the card's, so a decode step is the same
either way. A prompt would read it again and again: `stage` brings a layer to the card first.
Sketches are always on the card. Memory is taken for the whole context at once, so that addresses
never change and recorded graphs stay valid.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .places import Rows
from .sketches import BLOCK_TOKENS, BankShape, Sketches


def bank_capacity(ctx: int) -> int:
    """Positions of a bank for a context: whole blocks."""
    return -(-ctx // BLOCK_TOKENS) * BLOCK_TOKENS


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Host memory that kernels can read and write; `unpin` it before it is freed. Of the size asked
    for: torch's own allocator rounds up to powers of two."""
    tensor = torch.empty(shape, dtype=dtype)
    pin(tensor)
    return tensor


def pin(tensor: torch.Tensor) -> None:
    """Make host memory something that kernels can read and write, until `unpin`. Raises
    MemoryError."""
    if torch.cuda.is_available() and tensor.numel():
        size = tensor.numel() * tensor.element_size()
        code = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0))
        if code:
            raise MemoryError(f"{size} bytes of host memory cannot be pinned (CUDA error {code})")


def unpin(tensor: torch.Tensor) -> None:
    """Undo `pin` or `pinned`."""
    if torch.cuda.is_available() and tensor.numel():
        torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())


class StagingRoom:
    """Room on the card for the keys and values of one layer at a time."""

    def __init__(self, shapes: Sequence[BankShape], capacity: int, device: str) -> None:
        self._shapes, self._capacity = shapes, capacity
        most = max(s.n_kv_heads * s.head_dim for s in shapes) * capacity
        self._room = torch.zeros((2, most), dtype=torch.float16, device=device)

    def rows(self, layer: int) -> Rows:
        """The room as a layer's."""
        shape = self._shapes[layer]
        size = (shape.n_kv_heads, self._capacity, shape.head_dim)
        n = shape.n_kv_heads * shape.head_dim * self._capacity
        return Rows(self._room[0, :n].view(size), self._room[1, :n].view(size))


class Bank:
    """Owner of one sequence's keys, values and sketches; `close` frees them.

    rows: per layer; kept: the sketches, and per layer `sketches`: None or codes and scales;
    `graphs`: decode steps recorded on them, by shape.
    """

    # Layers before whose attention the host has work to do: none.
    cuts: tuple[int, ...] = ()

    def __init__(
        self, shapes: tuple[BankShape, ...], ctx: int, device: str, on_host: bool = False
    ) -> None:
        self.capacity, self.on_host = bank_capacity(ctx), on_host
        self.shapes = shapes
        self.graphs: dict[int, list[Any]] = {}
        self._staged: StagingRoom | None = None
        self._device = device
        self.rows: list[Rows] = []
        self.kept = Sketches(shapes, self.capacity, device)
        self.sketches = self.kept.layers
        for s in shapes:
            size = (s.n_kv_heads, self.capacity, s.head_dim)
            self.rows.append(Rows(self._new(size), self._new(size)))

    def _new(self, size: tuple[int, ...]) -> torch.Tensor:
        if self.on_host:
            return pinned(size, torch.float16)
        # Zeros: of a block that is saved, what lies behind the last token goes along.
        return torch.zeros(size, dtype=torch.float16, device=self._device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(4 * rows.keys.numel() for rows in self.rows)

    def written(self, layer: int) -> Rows:
        """Where a token's keys and values go."""
        return self.rows[layer]

    def read(self, layer: int, n_groups: int) -> Rows:
        """Where a token reads them; n_groups: as of `decode`."""
        return self.rows[layer]

    def find(
        self, layer: int, groups: torch.Tensor, counts: torch.Tensor, params: torch.Tensor
    ) -> None:
        """Nothing: there are no cuts."""

    def stage(self, layer: int, position: int) -> Rows:
        """Keys and values of a layer on the card, positions 0..position filled; overwritten by the
        next call."""
        rows = self.rows[layer]
        if not self.on_host:
            return rows
        if self._staged is None:
            self._staged = StagingRoom(self.shapes, self.capacity, self._device)
        staged = self._staged.rows(layer)
        _copy(rows, staged, 0, position)
        return staged

    def unstage(self, layer: int, staged: Rows, position: int, end: int) -> None:
        """Take over positions position..end of what `stage` gave."""
        if self.on_host:
            _copy(staged, self.rows[layer], position, end)

    def close(self) -> None:
        """Free everything; recorded graphs go with it."""
        self.graphs.clear()
        if self.on_host:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for rows in self.rows:
                unpin(rows.keys)
                unpin(rows.values)
        self.rows, self.sketches, self._staged = [], [], None


def _copy(source: Rows, target: Rows, first: int, end: int) -> None:
    for a, b in ((source.keys, target.keys), (source.values, target.values)):
        for head in range(len(a)):
            b[head, first:end].copy_(a[head, first:end], non_blocking=True)
