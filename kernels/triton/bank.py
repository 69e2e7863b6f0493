"""Bank: keys, values and key sketches of one sequence, on the card or in pinned host memory.

Kernels read pinned memory over the bus as they read the card's, so a decode step is the same
either way. A prompt would read it again and again: `stage` brings a layer to the card first.
Sketches are always on the card. Memory is taken for the whole context at once, so that addresses
never change and recorded graphs stay valid.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .heads import padded_width


@dataclass(frozen=True, slots=True)
class BankShape:
    """One layer: G KV heads of D stored dimensions; routed layers have sketches."""

    n_kv_heads: int
    head_dim: int
    routed: bool


def bank_capacity(ctx: int) -> int:
    """Positions of a bank for a context: whole tiles of attention."""
    return -(-ctx // 64) * 64


def kv_bytes(shapes: tuple[BankShape, ...], ctx: int) -> int:
    """Keys and values of a bank."""
    return sum(4 * s.n_kv_heads * s.head_dim for s in shapes) * bank_capacity(ctx)


def sketch_bytes(shapes: tuple[BankShape, ...], ctx: int) -> int:
    """Key sketches of a bank: two bits a dimension and a float16 scale."""
    per_token = (s.n_kv_heads * (padded_width(s.head_dim) // 4 + 2) for s in shapes if s.routed)
    return sum(per_token) * bank_capacity(ctx)


def stage_bytes(shapes: tuple[BankShape, ...], ctx: int) -> int:
    """What `Bank.stage` needs on the card where keys and values lie in host memory."""
    return max(4 * s.n_kv_heads * s.head_dim for s in shapes) * bank_capacity(ctx)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Host memory that kernels can read and write; `unpin` it before it is freed. Of the size asked
    for: torch's own allocator rounds up to powers of two."""
    tensor = torch.empty(shape, dtype=dtype)
    if torch.cuda.is_available() and tensor.numel():
        size = tensor.numel() * tensor.element_size()
        code = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0))
        if code:
            raise MemoryError(f"{size} bytes of host memory cannot be pinned (CUDA error {code})")
    return tensor


def unpin(tensor: torch.Tensor) -> None:
    """Undo `pinned`."""
    if torch.cuda.is_available() and tensor.numel():
        torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())


class Bank:
    """Owner of one sequence's keys, values and sketches; `close` frees them.

    keys, values: per layer float16 [G, capacity, D]; sketches: per layer None or (codes uint8
    [G, capacity, W / 4], scales float16 [G, capacity]). `graphs`: decode steps recorded on them.
    """

    def __init__(
        self, shapes: tuple[BankShape, ...], ctx: int, device: str, on_host: bool = False
    ) -> None:
        self.capacity, self.on_host = bank_capacity(ctx), on_host
        self.graphs: dict[int, Any] = {}
        self._staged: tuple[torch.Tensor, torch.Tensor] | None = None
        self._device = device
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.sketches: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        half = torch.float16
        for s in shapes:
            size = (s.n_kv_heads, self.capacity, s.head_dim)
            for tensors in (self.keys, self.values):
                made = (
                    pinned(size, half) if on_host else torch.empty(size, dtype=half, device=device)
                )
                tensors.append(made)
            if not s.routed:
                self.sketches.append(None)
                continue
            size = (s.n_kv_heads, self.capacity, padded_width(s.head_dim) // 4)
            codes = torch.empty(size, dtype=torch.uint8, device=device)
            self.sketches.append((codes, torch.empty(size[:2], dtype=half, device=device)))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(2 * t.numel() for t in (*self.keys, *self.values))

    def stage(self, layer: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer on the card, positions 0..position filled; overwritten by the
        next call."""
        keys, values = self.keys[layer], self.values[layer]
        if not self.on_host:
            return keys, values
        if self._staged is None:
            most = max(t.numel() for t in self.keys)
            room = torch.empty((2, most), dtype=torch.float16, device=self._device)
            self._staged = (room[0], room[1])
        staged = tuple(s[: keys.numel()].view(keys.shape) for s in self._staged)
        for target, source in zip(staged, (keys, values)):
            for head in range(len(source)):
                target[head, :position].copy_(source[head, :position], non_blocking=True)
        return staged[0], staged[1]

    def unstage(
        self, layer: int, staged: tuple[torch.Tensor, torch.Tensor], position: int, end: int
    ) -> None:
        """Take over positions position..end of what `stage` gave."""
        if not self.on_host:
            return
        for source, target in zip(staged, (self.keys[layer], self.values[layer])):
            for head in range(len(target)):
                target[head, position:end].copy_(source[head, position:end], non_blocking=True)

    def close(self) -> None:
        """Free everything; recorded graphs go with it."""
        self.graphs.clear()
        if self.on_host:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for tensor in (*self.keys, *self.values):
                unpin(tensor)
        self.keys, self.values, self.sketches, self._staged = [], [], [], None
