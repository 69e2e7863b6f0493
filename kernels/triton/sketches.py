"""Key sketches of a sequence on the card, and how a block of 128 tokens of them lies on disk.

On the card a KV head has codes uint8 [capacity, W / 4], byte j of a key the dimensions j + s W / 4
at bits 2 s, and float16 scales [capacity] (heads.py). On disk they are as the CPU's kernels read
them (docs/format.md); `to_disk` and `from_disk` alone know both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .heads import padded_width

BLOCK_TOKENS = 128
# Of a float16's bits the upper ten are a scale's code, moved by this (docs/format.md).
_EXPONENT = 112
# What a dimension has that the model lacks: queries are 0 there.
_BEYOND = 2


@dataclass(frozen=True, slots=True)
class BankShape:
    """One layer: G KV heads of D stored dimensions; routed layers have sketches."""

    n_kv_heads: int
    head_dim: int
    routed: bool


def to_disk(codes: torch.Tensor, scales: torch.Tensor, head_dim: int) -> torch.Tensor:
    """uint8 [H, bytes] of a block: codes uint8 [H, 128, W / 4] and scales float16 [H, 128]."""
    n = len(codes)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)
    dims = (codes[:, :, None, :] >> shifts[:, None] & 3).flatten(2)[..., :head_dim]
    # Groups, their tokens; words of 16 dimensions, in words pairs of bits, bytes.
    parts = dims.reshape(n, 16, 8, head_dim // 16, 4, 4).permute(0, 2, 3, 1, 5, 4)
    words = (parts << shifts).sum(-1, dtype=torch.uint8)
    bits = scales.view(torch.int16).to(torch.int32) >> 6
    sizes = torch.where(bits > 0, bits - _EXPONENT, 0).to(torch.uint8)
    return torch.cat((words.reshape(n, -1), sizes.view(n, 16, 8).mT.reshape(n, -1)), 1)


def from_disk(data: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of uint8 [H, bytes], what `to_disk` was given."""
    n, width = len(data), padded_width(head_dim)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=data.device)
    words = data[:, : 32 * head_dim].reshape(n, 8, head_dim // 16, 16, 4, 1)
    dims = (words >> shifts & 3).permute(0, 3, 1, 2, 5, 4).reshape(n, BLOCK_TOKENS, head_dim)
    whole = dims.new_full((n, BLOCK_TOKENS, width), _BEYOND)
    whole[..., :head_dim] = dims
    codes = (whole.view(n, BLOCK_TOKENS, 4, width // 4) << shifts[:, None]).sum(2)
    sizes = data[:, 32 * head_dim :].reshape(n, 8, 16).mT.reshape(n, -1).to(torch.int16)
    bits = torch.where(sizes > 0, (sizes + _EXPONENT) << 6, 0).to(torch.int16)
    return codes.to(torch.uint8), bits.view(torch.float16)


def disk_bytes(head_dim: int) -> int:
    """What a block of a KV head takes on disk."""
    return BLOCK_TOKENS * (head_dim // 4 + 1)


class Sketches:
    """Owner of the sketches of all routed layers; what lies beyond a sequence's tokens is never
    read. `layers`: per layer None or codes uint8 [G, capacity, W / 4] and scales float16 [G,
    capacity], views."""

    def __init__(self, shapes: Sequence[BankShape], capacity: int, device: str) -> None:
        self._device = device
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(shapes)
        # Neighbours of one head_dim together: (head_dim, codes, scales).
        self._runs: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        routed = [i for i, shape in enumerate(shapes) if shape.routed]
        at = 0
        while at < len(routed):
            dim, end = shapes[routed[at]].head_dim, at
            while end < len(routed) and shapes[routed[end]].head_dim == dim:
                end += 1
            run = routed[at:end]
            size = (sum(shapes[i].n_kv_heads for i in run), capacity)
            codes = torch.zeros((*size, padded_width(dim) // 4), dtype=torch.uint8, device=device)
            scales = torch.zeros(size, dtype=torch.float16, device=device)
            self._runs.append((dim, codes, scales))
            first = 0
            for i in run:
                last = first + shapes[i].n_kv_heads
                self.layers[i] = codes[first:last], scales[first:last]
                first = last
            at = end

    def block_index(self, block: int) -> NDArray[np.uint8]:
        """The sketches of a block as they lie on disk, layer after layer."""
        rows = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        parts = [to_disk(codes[:, rows], scales[:, rows], d) for d, codes, scales in self._runs]
        if not parts:
            return np.zeros(0, np.uint8)
        return np.asarray(torch.cat([part.ravel() for part in parts]).cpu().numpy())

    def load_index(self, block: int, data: NDArray[np.uint8]) -> None:
        """Put back what `block_index` gave."""
        rows = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        here, at = torch.from_numpy(data.copy()).to(self._device), 0
        for dim, codes, scales in self._runs:
            size = len(codes) * disk_bytes(dim)
            part = here[at : at + size].view(len(codes), -1)
            codes[:, rows], scales[:, rows] = from_disk(part, dim)
            at += size
