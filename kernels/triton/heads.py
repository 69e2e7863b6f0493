"""Query and key heads: norm, rotation by position, and where they go.

Queries are scaled and rounded to float16, keys and values appended to the bank as float16. Heads
are stored with their halves spread to D, the model's head_dim rounded up to 32, as on the CPU. Of a
key its sketch is written too (docs/method.md), of a routed query its turned values. A byte j of a
sketch holds dimensions j + s S of the turned key at bits 2 s, S = W / 4, where W is D rounded up to
a power of two of at least 64.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from ..reference.sketch import rotate
from .places import Cells, Place, group_at

# Step of the sketches' grid in units of the mean magnitude (kernels/cpu/sketch.py).
_STEP = 1.25


def padded_width(head_dim: int) -> int:
    """W of a stored head of head_dim dimensions."""
    return max(64, triton.next_power_of_2(head_dim))


def turn_matrix(head_dim: int, device: str) -> torch.Tensor:
    """float32 [W, W]: row i is the turned i-th unit vector; 0 beyond head_dim."""
    width = padded_width(head_dim)
    matrix = np.zeros((width, width), np.float32)
    matrix[:head_dim, :head_dim] = rotate(np.eye(head_dim, dtype=np.float32))
    return torch.from_numpy(matrix).to(device)


@triton.jit
def _round_scale(scale):
    """The nearest float of four exponent bits (2^-7 to 2^7) and four fraction bits; 0 stays 0."""
    bits = scale.to(tl.int32, bitcast=True)
    code = tl.minimum(tl.maximum(((bits + (1 << 18)) >> 19) - 16 * 119, 16), 255)
    rounded = ((code << 19) + (119 << 23)).to(tl.float32, bitcast=True)
    return tl.where(scale > 0, rounded, 0.0)


@triton.jit
def _turned(a, b, turn, D: tl.constexpr, W: tl.constexpr):
    """float32 [W]: the turned head of halves a, b [W / 2]."""
    i, j = tl.arange(0, W // 2), tl.arange(0, W)
    at = turn + i[:, None] * W + j[None, :]
    mask = (i < D // 2)[:, None] & (j >= 0)[None, :]
    y = tl.sum(a[:, None] * tl.load(at, mask=mask, other=0.0), 0)
    return y + tl.sum(b[:, None] * tl.load(at + D // 2 * W, mask=mask, other=0.0), 0)


@triton.jit
def _prepare(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    state,
    turn,
    q_out,
    turned_out,
    keys,
    values,
    codes,
    scales,
    capacity,
    cells,
    scale,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    TRUE: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    HALF_ROW: tl.constexpr,
    NORMED: tl.constexpr,
    PAGED: tl.constexpr,
    SKETCHED: tl.constexpr,
    ROUTED: tl.constexpr,
    STEP: tl.constexpr,
):
    t, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(state + 1) + t
    i = tl.arange(0, W // 2)
    half = i < TRUE // 2
    row = qkv + t.to(tl.int64) * (H + 2 * G) * TRUE
    a = tl.load(row + head * TRUE + i, mask=half, other=0.0)
    b = tl.load(row + head * TRUE + TRUE // 2 + i, mask=half, other=0.0)
    if NORMED:
        # One of the two is read, by its mask.
        query = head < H
        factor = 1.0 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / TRUE + eps)
        q_low = tl.load(q_norm + i, mask=half & query, other=0.0)
        k_low = tl.load(k_norm + i, mask=half & (head >= H), other=0.0)
        q_high = tl.load(q_norm + TRUE // 2 + i, mask=half & query, other=0.0)
        k_high = tl.load(k_norm + TRUE // 2 + i, mask=half & (head >= H), other=0.0)
        a = a * factor * (q_low + k_low)
        b = b * factor * (q_high + k_high)
    c = tl.load(cos + t * HALF_ROW + i, mask=half, other=0.0)
    s = tl.load(sin + t * HALF_ROW + i, mask=half, other=0.0)
    first_half, second_half = a * c - b * s, b * c + a * s
    stored = i < D // 2
    if head < H:
        first_half, second_half = first_half * scale, second_half * scale
        to_query = q_out + (t.to(tl.int64) * H + head) * D + i
        tl.store(to_query, first_half.to(tl.float16), mask=stored)
        tl.store(to_query + D // 2, second_half.to(tl.float16), mask=stored)
        if ROUTED:
            y = _turned(first_half, second_half, turn, D, W)
            tl.store(turned_out + head * W + tl.arange(0, W), y.to(tl.float16))
    else:
        g = head - H
        place = (g * capacity + position).to(tl.int64)
        j = tl.arange(0, W)
        v = tl.load(row + (H + G + g) * TRUE + j, mask=j < TRUE, other=0.0)
        if PAGED:
            # `keys` is the table of cells.
            address = group_at(keys + g * cells, position // 8, D)
            record = address.to(tl.pointer_type(tl.float16))
            to_key = record + i * 8 + position % 8
            tl.store(to_key, first_half.to(tl.float16), mask=stored)
            tl.store(to_key + D // 2 * 8, second_half.to(tl.float16), mask=stored)
            tl.store(record + (8 + position % 8) * D + j, v.to(tl.float16), mask=j < D)
        else:
            to_key = keys + place * D + i
            tl.store(to_key, first_half.to(tl.float16), mask=stored)
            tl.store(to_key + D // 2, second_half.to(tl.float16), mask=stored)
            tl.store(values + place * D + j, v.to(tl.float16), mask=j < D)
        if SKETCHED:
            z = _turned(first_half, second_half, turn, D, W)
            size = _round_scale(STEP * tl.sum(tl.abs(z), 0) / D)
            steps = tl.where(size > 0, z / tl.where(size > 0, size, 1.0), 0.0)
            code = tl.clamp(tl.floor(steps) + 2.0, 0.0, 3.0).to(tl.int32)
            shift = 2 * tl.arange(0, 4)
            byte = tl.sum(tl.reshape(code, [4, W // 4]) << shift[:, None], 0)
            tl.store(codes + place * (W // 4) + tl.arange(0, W // 4), byte.to(tl.uint8))
            tl.store(scales + place, size.to(tl.float16))


def prepare(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    params: torch.Tensor,
    turn: torch.Tensor,
    q_out: torch.Tensor,
    turned_out: torch.Tensor | None,
    to: Place,
    sketches: tuple[torch.Tensor, torch.Tensor] | None,
    true_dim: int,
    scale: float,
    eps: float,
    n_tokens: int,
) -> None:
    """Split rows of qkv, float32 [T, (H + 2 G) true_dim], at positions params[1]….

    norms: weights of q and k [true_dim]. cos, sin: float32 [T, ≥ true_dim / 2]. q_out: float16
    [T, H, D], scaled. turned_out: float16 [H, W] of a single token's routed queries. to: where
    keys and values go; sketches: uint8 [G, capacity, W / 4] and float16 [G, capacity].
    """
    n_kv, d = to.n_kv_heads, to.head_dim
    paged = isinstance(to, Cells)
    keys, values = (to.table, q_out) if isinstance(to, Cells) else (to.keys, to.values)
    # Rows and sketches have room for the same positions.
    capacity = keys.shape[1] if sketches is None else sketches[1].shape[1]
    n_heads = q_out.shape[-2]
    none = q_out
    _prepare[(n_tokens, n_heads + n_kv)](
        qkv,
        norms[0] if norms else none,
        norms[1] if norms else none,
        cos,
        sin,
        params,
        turn,
        q_out,
        none if turned_out is None else turned_out,
        keys,
        values,
        sketches[0] if sketches else none,
        sketches[1] if sketches else none,
        capacity,
        keys.shape[1],
        scale,
        eps,
        H=n_heads,
        G=n_kv,
        TRUE=true_dim,
        D=d,
        W=padded_width(d),
        HALF_ROW=cos.stride(-2),
        NORMED=norms is not None,
        PAGED=paged,
        SKETCHED=sketches is not None,
        ROUTED=turned_out is not None,
        STEP=_STEP,
        num_warps=4 if d <= 128 else 8,
    )
