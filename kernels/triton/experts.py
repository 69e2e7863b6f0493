"""Gated MLPs: the experts that a router chooses, or the one of a dense layer.

Experts are blobs found by their address, so that those in pinned host memory and those in the
card's look alike: the kernel reads either. A dense MLP is a table of one expert. For prompts,
slices of the experts are widened and multiplied with the tokens that chose them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .products import BLOCKS, ROWS, inverse_rms, row_products, row_values

# Rows of a program that adds up the experts one after the other: few, so that programs are many.
DOWN_ROWS, DOWN_BLOCKS = 4, 32
# Tokens, rows and columns of a tile of a prompt.
_M, _N, _K = 64, 128, 64


@dataclass(frozen=True, slots=True)
class Blob:
    """Where the parts of an expert lie in its blob: offsets of codes and scales, and kinds, of
    gate, up and down."""

    offsets: tuple[int, int, int, int, int, int]
    kinds: tuple[int, int, int]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Mlp:
    """Experts of a layer: table int64 [E] of their addresses, all of one `blob` layout.

    gelu: GELU by tanh in place of SiLU. `keep` holds what the addresses point into.
    """

    table: torch.Tensor
    blob: Blob
    n_experts: int
    n_used: int
    hidden: int
    width: int
    gelu: bool
    norm_topk: bool
    keep: tuple[torch.Tensor, ...]


@triton.jit
def _choose(
    logits,
    chosen,
    weights,
    E: tl.constexpr,
    N_USED: tl.constexpr,
    RENORM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    t = tl.program_id(0)
    e = tl.arange(0, WIDTH)
    x = tl.load(logits + t * E + e, mask=e < E, other=float("-inf"))
    p = tl.exp(x - tl.max(x, 0))
    p = p / tl.sum(p, 0)
    p = tl.where(e < E, p, -1.0)
    left, total = p, 0.0
    for i in tl.static_range(N_USED):
        best = tl.argmax(left, 0, tie_break_left=True)
        weight = tl.max(left, 0)
        tl.store(chosen + t * N_USED + i, best.to(tl.int32))
        tl.store(weights + t * N_USED + i, weight)
        total += weight
        left = tl.where(e == best, -2.0, left)
    if RENORM:
        # A second way to the same numbers: what was stored may not be seen yet.
        left = p
        for i in tl.static_range(N_USED):
            best = tl.argmax(left, 0, tie_break_left=True)
            tl.store(weights + t * N_USED + i, tl.max(left, 0) / total)
            left = tl.where(e == best, -2.0, left)


def choose(
    logits: torch.Tensor, mlp: Mlp, chosen: torch.Tensor, weights: torch.Tensor, n_tokens: int
) -> None:
    """The experts [T, used] int32 of largest logits [T, E] float32 (equal: the earlier), and their
    weights [T, used] float32."""
    _choose[(n_tokens,)](
        logits,
        chosen,
        weights,
        E=mlp.n_experts,
        N_USED=mlp.n_used,
        RENORM=mlp.norm_topk,
        WIDTH=triton.next_power_of_2(mlp.n_experts),
    )


@triton.jit
def _gated(gate, up, GELU: tl.constexpr):
    if GELU:
        u = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        # tanh, by a power that does not overflow.
        small = tl.exp(-2.0 * tl.abs(u))
        tanh = (1.0 - small) / (1.0 + small)
        return 0.5 * gate * (1.0 + tl.where(u >= 0, tanh, -tanh)) * up
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _part(table, expert, offset):
    """Address of a part of an expert's blob."""
    base = tl.load(table + expert) + offset
    return tl.multiple_of(base.to(tl.pointer_type(tl.uint8)), 16)


@triton.jit
def _activate(
    table,
    chosen,
    x,
    norm,
    out,
    hidden,
    width,
    eps,
    gate_at,
    gate_scales,
    up_at,
    up_scales,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    GELU: tl.constexpr,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    slot = tl.program_id(1)
    r = tl.program_id(0) * R + tl.arange(0, R)
    e = tl.load(chosen + slot)
    codes, scales = _part(table, e, gate_at), _part(table, e, gate_scales)
    gate = row_products(codes, scales, x, norm, r, width, hidden, GATE, True, R, N)
    codes, scales = _part(table, e, up_at), _part(table, e, up_scales)
    up = row_products(codes, scales, x, norm, r, width, hidden, UP, True, R, N)
    factor = inverse_rms(x, hidden, eps, WIDTH)
    tl.store(out + slot * width + r, _gated(gate * factor, up * factor, GELU), mask=r < width)


@triton.jit
def _bring_down(
    table,
    chosen,
    weights,
    x,
    out,
    hidden,
    width,
    down_at,
    down_scales,
    N_USED: tl.constexpr,
    DOWN: tl.constexpr,
    ADD: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    r = tl.program_id(0) * R + tl.arange(0, R)
    y = tl.zeros([R], tl.float32)
    if ADD:
        y += tl.load(out + r, mask=r < hidden, other=0.0)
    for slot in range(N_USED):
        e, weight = tl.load(chosen + slot), tl.load(weights + slot)
        codes, scales = _part(table, e, down_at), _part(table, e, down_scales)
        at = x + slot * width
        y += weight * row_products(codes, scales, at, at, r, hidden, width, DOWN, False, R, N)
    tl.store(out + r, y, mask=r < hidden)


def run(
    mlp: Mlp,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    act: torch.Tensor,
    out: torch.Tensor,
    add: bool,
) -> None:
    """One token: out [hidden] (+)= the weighted experts of the RMS norm of x [hidden].

    chosen int32, weights float32 [used]; act: float32 scratch [used, width].
    """
    o, kinds = mlp.blob.offsets, mlp.blob.kinds
    _activate[(triton.cdiv(mlp.width, ROWS), mlp.n_used)](
        mlp.table, chosen, x, norm, act, mlp.hidden, mlp.width, eps, o[0], o[1], o[2], o[3],
        GATE=kinds[0], UP=kinds[1], GELU=mlp.gelu, WIDTH=triton.next_power_of_2(mlp.hidden),
        R=ROWS, N=BLOCKS,
    )  # fmt: skip
    _bring_down[(triton.cdiv(mlp.hidden, DOWN_ROWS),)](
        mlp.table, chosen, weights, act, out, mlp.hidden, mlp.width, o[4], o[5],
        N_USED=mlp.n_used, DOWN=kinds[2], ADD=add, R=DOWN_ROWS, N=DOWN_BLOCKS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first"])
def _widen_experts(
    table,
    first,
    codes_at,
    scales_at,
    rows,
    cols,
    out,
    out_rows,
    KIND: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    e = tl.program_id(2)
    r = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.program_id(1) * K + tl.arange(0, K)
    codes, scales = _part(table, first + e, codes_at), _part(table, first + e, scales_at)
    mask = (r[:, None] < rows) & (k[None, :] < cols)
    values = row_values(codes, scales, r[:, None], k[None, :], mask, cols, KIND)
    at = out + e.to(tl.int64) * out_rows * cols + r[:, None] * cols + k[None, :]
    tl.store(at, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first"])
def _multiply_sorted(
    x,
    w,
    order,
    starts,
    tiles,
    out,
    first,
    rows,
    cols,
    weights,
    N_USED: tl.constexpr,
    N_EXPERTS: tl.constexpr,
    DOWN: tl.constexpr,
    GELU: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Tiles of the tokens of a slice of experts. tiles: int32 [n + 1], the first tile of each.

    DOWN 0: out[place] = gated rows of gate and up, both in w; 1: out[pair] = weight * rows.
    """
    tile = tl.program_id(0)
    if tile >= tl.load(tiles + N_EXPERTS):
        return
    # The expert of a tile: how many of the slice begin at or before it.
    e = tile * 0
    for i in range(1, N_EXPERTS):
        e += (tl.load(tiles + i) <= tile).to(tl.int32)
    start, end = tl.load(starts + first + e), tl.load(starts + first + e + 1)
    place = start + (tile - tl.load(tiles + e)) * M + tl.arange(0, M)
    pair = tl.load(order + place, mask=place < end, other=0)
    r = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    row = place if DOWN else pair // N_USED
    row = row.to(tl.int64)
    base = w + e.to(tl.int64) * (rows * cols * (1 if DOWN else 2))
    one = tl.zeros([M, N], tl.float32)
    two = tl.zeros([M, N], tl.float32)
    for k0 in range(0, cols, K):
        inside = k0 + k < cols
        a = tl.load(
            x + row[:, None] * cols + k0 + k[None, :],
            mask=(place < end)[:, None] & inside[None, :],
            other=0.0,
        )
        at = r[None, :] * cols + k0 + k[:, None]
        mask = (r < rows)[None, :] & inside[:, None]
        one = tl.dot(a, tl.load(base + at, mask=mask, other=0.0), one)
        if not DOWN:
            two = tl.dot(a, tl.load(base + rows * cols + at, mask=mask, other=0.0), two)
    mask = (place < end)[:, None] & (r < rows)[None, :]
    if DOWN:
        weight = tl.load(weights + pair, mask=place < end, other=0.0)
        to_pair = pair.to(tl.int64)[:, None] * rows + r[None, :]
        tl.store(out + to_pair, one * weight[:, None], mask=mask)
    else:
        to_place = place.to(tl.int64)[:, None] * rows + r[None, :]
        tl.store(out + to_place, _gated(one, two, GELU).to(out.dtype.element_ty), mask=mask)


def run_tokens(
    mlp: Mlp, chosen: torch.Tensor, weights: torch.Tensor, x: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    """float32 [T, hidden]: the weighted experts of normed tokens x [T, hidden], of any type.

    chosen int32, weights float32 [T, used]; scratch: of x's type, holds a slice of the experts.
    """
    n, used, hidden, width = len(x), mlp.n_used, mlp.hidden, mlp.width
    pairs = n * used
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True).to(torch.int32)
    counts = torch.bincount(flat, minlength=mlp.n_experts)
    starts = torch.zeros(mlp.n_experts + 1, dtype=torch.int32, device=x.device)
    starts[1:] = counts.cumsum(0)
    act = torch.empty((pairs, width), dtype=x.dtype, device=x.device)
    out = torch.empty((pairs, hidden), dtype=torch.float32, device=x.device)
    o, kinds = mlp.blob.offsets, mlp.blob.kinds
    step = max(1, min(mlp.n_experts, scratch.numel() // (3 * hidden * width)))
    for first in range(0, mlp.n_experts, step):
        size = min(step, mlp.n_experts - first)
        tiles = torch.zeros(size + 1, dtype=torch.int32, device=x.device)
        tiles[1:] = ((counts[first : first + size] + _M - 1) // _M).cumsum(0)
        # An upper bound, so that the host need not wait for the counts.
        n_tiles = triton.cdiv(pairs, _M) + size
        both, down = scratch[: 2 * size * width * hidden], scratch[2 * size * width * hidden :]
        grid = (triton.cdiv(width, 16), triton.cdiv(hidden, 128), size)
        for part, at in ((0, both), (1, both[width * hidden :])):
            _widen_experts[grid](
                mlp.table, first, o[2 * part], o[2 * part + 1], width, hidden, at, 2 * width,
                KIND=kinds[part], R=16, K=128,
            )  # fmt: skip
        grid = (triton.cdiv(hidden, 16), triton.cdiv(width, 128), size)
        _widen_experts[grid](
            mlp.table, first, o[4], o[5], hidden, width, down, hidden, KIND=kinds[2], R=16, K=128
        )
        shared = {"N_USED": used, "N_EXPERTS": size, "GELU": mlp.gelu, "M": _M, "N": _N, "K": _K}
        _multiply_sorted[(n_tiles, triton.cdiv(width, _N))](
            x, both, order, starts, tiles, act, first, width, hidden, weights, DOWN=0, **shared
        )
        _multiply_sorted[(n_tiles, triton.cdiv(hidden, _N))](
            act, down, order, starts, tiles, out, first, hidden, width, weights, DOWN=1, **shared
        )
    return out.view(n, used, hidden).sum(1)
