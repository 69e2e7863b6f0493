"""Exact attention: of one token over a list of groups or a range, split and merged; of a prompt.

The query heads of a KV head are the rows of one tile, so that a key is read once for all of them.
A token's keys are cut into SPLITS parts, whatever the context, so that one recorded graph serves
every position; the parts are merged as softmax sums are. Queries, keys, values and probabilities
are float16, sums float32.
"""

import torch
import triton
import triton.language as tl

from .heads import padded_width
from .places import Cells, Place, group_at

SPLITS = 64
# Keys of a tile: eight groups.
TILE = 64


@triton.jit
def _attend(
    q,
    keys,
    values,
    groups,
    counts,
    state,
    partial,
    tops,
    sums,
    capacity,
    row,
    R: tl.constexpr,
    RP: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    PAGED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOW: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
):
    h, split = tl.program_id(0), tl.program_id(1)
    position = tl.load(state + 1)
    r, d, i = tl.arange(0, RP), tl.arange(0, W), tl.arange(0, T)
    low, n, count = 0, position // T + 1, 0
    if LISTED:
        count = tl.load(counts + h)
        n = (count * 8 + T - 1) // T
    elif WINDOW > 0:
        low = tl.maximum(0, position + 1 - WINDOW)
        n = n - low // T
    each = (n + S - 1) // S
    at = q + (h * R + r[:, None]) * D + d[None, :]
    query = tl.load(at, mask=(r < R)[:, None] & (d < D)[None, :], other=0.0)
    top = tl.full([RP], -1e30, tl.float32)
    total = tl.zeros([RP], tl.float32)
    mixed = tl.zeros([RP, W], tl.float32)
    base = h.to(tl.int64) * capacity
    for tile in range(split * each, tl.minimum(n, (split + 1) * each)):
        if LISTED:
            place = tile * (T // 8) + i // 8
            group = tl.load(groups + h * row + place, mask=place < count, other=0)
            t = group * 8 + i % 8
            seen = (place < count) & (t <= position)
        else:
            t = (low // T + tile) * T + i
            seen = (t <= position) & (t >= low)
        if PAGED:
            # `keys` is the table of cells. Groups are read as they lie, so that a warp's loads are
            # neighbours; of keys whole ones, of values what is seen.
            e, g = tl.arange(0, 8), tl.arange(0, T // 8)
            if LISTED:
                place = tile * (T // 8) + g
                some = place < count
                group = tl.load(groups + h * row + place, mask=some, other=0)
            else:
                group = (low // T + tile) * (T // 8) + g
                some = group * 8 <= position
            address = tl.where(some, group_at(keys + base, group, D), 0)
            record = tl.multiple_of(address.to(tl.pointer_type(tl.float16)), [16])[:, None, None]
            mask = some[:, None, None] & (d < D)[None, :, None] & (e >= 0)[None, None, :]
            k = tl.load(record + d[None, :, None] * 8 + e[None, None, :], mask=mask, other=0.0)
            k = tl.reshape(tl.permute(k, (1, 0, 2)), [W, T])
            mask = tl.reshape(seen, [T // 8, 8])[:, :, None] & (d < D)[None, None, :]
            at_value = record + (8 + e)[None, :, None] * D + d[None, None, :]
            v = tl.reshape(tl.load(at_value, mask=mask, other=0.0), [T, W])
        else:
            mask = seen[:, None] & (d < D)[None, :]
            rows = (base + t)[:, None] * D + d[None, :]
            k = tl.trans(tl.load(keys + rows, mask=mask, other=0.0))
            v = tl.load(values + rows, mask=mask, other=0.0)
        x = tl.dot(query, k) * 1.4426950408889634
        x = tl.where(seen[None, :], x, -1e30)
        new = tl.maximum(top, tl.max(x, 1))
        p = tl.where(seen[None, :], tl.exp2(x - new[:, None]), 0.0)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        mixed = mixed * shrink[:, None] + tl.dot(p.to(tl.float16), v)
        top = new
    place = (h * S + split) * RP + r
    tl.store(tops + place, top)
    tl.store(sums + place, total)
    if split * each < n:
        tl.store(partial + place[:, None] * W + d[None, :], mixed)


@triton.jit
def _merge(
    partial,
    tops,
    sums,
    out,
    R: tl.constexpr,
    RP: tl.constexpr,
    TRUE: tl.constexpr,
    W: tl.constexpr,
    S: tl.constexpr,
):
    head = tl.program_id(0)
    s, d = tl.arange(0, S), tl.arange(0, W)
    place = (head // R * S + s) * RP + head % R
    part_tops, part_sums = tl.load(tops + place), tl.load(sums + place)
    weight = part_sums * 0.0 + tl.exp2(part_tops - tl.max(part_tops, 0))
    # A part without keys has no row: what lies there is not read.
    used = part_sums > 0
    rows = tl.load(partial + place[:, None] * W + d[None, :], mask=used[:, None], other=0.0)
    total = tl.sum(tl.where(used, part_sums * weight, 0.0), 0)
    y = tl.sum(rows * tl.where(used, weight, 0.0)[:, None], 0) / total
    tl.store(out + head * TRUE + d, y, mask=d < TRUE)


class SplitBuffers:
    """Device scratch of the parts of one token's attention."""

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, device: str) -> None:
        rows = max(16, triton.next_power_of_2(n_heads // n_kv_heads))
        shape = (n_kv_heads, SPLITS, rows)
        self.partial = torch.zeros((*shape, padded_width(head_dim)), device=device)
        self.tops, self.sums = torch.zeros(shape, device=device), torch.zeros(shape, device=device)


def attend(
    q: torch.Tensor,
    at: Place,
    params: torch.Tensor,
    buffers: SplitBuffers,
    out: torch.Tensor,
    true_dim: int,
    window: int = 0,
    groups: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
) -> None:
    """out [H, true_dim] float32: attention of a token at position params[1].

    q: float16 [H, D], scaled; at: in pinned memory too. Over the last `window` tokens (0: all), or
    the groups int32 [G, row] of which counts [G] count.
    """
    n_kv, d = at.n_kv_heads, at.head_dim
    paged = isinstance(at, Cells)
    keys, values = (at.table, q) if isinstance(at, Cells) else (at.keys, at.values)
    n_heads = q.shape[-2]
    rows, padded = n_heads // n_kv, buffers.tops.shape[2]
    listed = groups is not None and counts is not None
    b, width = buffers, padded_width(d)
    _attend[(n_kv, SPLITS)](
        q, keys, values, groups if listed else q, counts if listed else q, params,
        b.partial, b.tops, b.sums, keys.shape[1], groups.stride(0) if groups is not None else 0,
        R=rows, RP=padded, D=d, W=width, PAGED=paged, LISTED=listed, WINDOW=window, S=SPLITS,
        T=TILE,
    )  # fmt: skip
    _merge[(n_heads,)](
        b.partial, b.tops, b.sums, out, R=rows, RP=padded, TRUE=true_dim, W=width, S=SPLITS
    )


@triton.jit(do_not_specialize=["n_tokens", "position"])
def _attend_prompt(
    q,
    keys,
    values,
    out,
    n_tokens,
    position,
    capacity,
    H: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    TRUE: tl.constexpr,
    W: tl.constexpr,
    WINDOW: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    # Late queries see most keys: they go first.
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    m = block * M + tl.arange(0, M)
    d, i = tl.arange(0, W), tl.arange(0, N)
    at = (m.to(tl.int64)[:, None] * H + head) * D + d[None, :]
    query = tl.load(q + at, mask=(m < n_tokens)[:, None] & (d < D)[None, :], other=0.0)
    here = position + m
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, position + block * M + 1 - WINDOW) // N * N
    end = position + tl.minimum(block * M + M, n_tokens)
    top = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, W], tl.float32)
    base = (head // R).to(tl.int64) * capacity
    for start in range(first, end, N):
        t = start + i
        rows = (base + t)[:, None] * D + d[None, :]
        mask = (t < end)[:, None] & (d < D)[None, :]
        k = tl.load(keys + rows, mask=mask, other=0.0)
        x = tl.dot(query, tl.trans(k)) * 1.4426950408889634
        seen = t[None, :] <= here[:, None]
        if WINDOW > 0:
            seen = seen & (t[None, :] > here[:, None] - WINDOW)
        x = tl.where(seen, x, -1e30)
        new = tl.maximum(top, tl.max(x, 1))
        p = tl.where(seen, tl.exp2(x - new[:, None]), 0.0)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(values + rows, mask=mask, other=0.0)
        mixed = tl.dot(p.to(tl.float16), v, mixed * shrink[:, None])
        top = new
    y = mixed / tl.where(total > 0, total, 1.0)[:, None]
    at = (m.to(tl.int64)[:, None] * H + head) * TRUE + d[None, :]
    mask = (m < n_tokens)[:, None] & (d < TRUE)[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def attend_prompt(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    position: int,
    window: int = 0,
) -> None:
    """out [T, H, true_dim]: causal attention of T tokens at positions position….

    q: float16 [T, H, D], scaled; keys, values: float16 [G, capacity, D], those of the tokens
    included.
    """
    n_tokens, n_heads, d = q.shape
    n_kv, capacity, _ = keys.shape
    rows, cols = (128, 64) if d <= 128 else (64, 32)
    _attend_prompt[(triton.cdiv(n_tokens, rows), n_heads)](
        q, keys, values, out, n_tokens, position, capacity,
        H=n_heads, R=n_heads // n_kv, D=d, TRUE=out.shape[-1], W=padded_width(d), WINDOW=window,
        M=rows, N=cols, num_warps=8 if d <= 128 else 4, num_stages=3 if d <= 128 else 2,
    )  # fmt: skip
