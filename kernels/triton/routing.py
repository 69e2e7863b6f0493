"""The choice of groups that a KV head reads, as on the CPU (kernels/cpu/routing.py): log masses of
all groups from the key sketches, shares, and the groups of largest share.

What is not known when the kernels are recorded into a graph, position and limits, is read from
`params` int32: token, position, sinks, window, fewest and most groups, bits of the least share.
Masses are sums of coarse powers of two, lines between powers, moved by whole octaves; shares undo
the coarse logarithm that they are kept as.

Two things differ from the CPU's rule, neither by as much as a sketch errs. Queries are rounded to
fifteen bits, in two int8 parts that are rows of one integer product with the codes. Shares are
ranked by their leading eight bits, 128 steps an octave down to 2^-64, and equal ones by position:
so they are counted by step while they are made, and the threshold is looked up instead of searched.
"""

import torch
import triton
import triton.language as tl

from .heads import padded_width

GROUP_TOKENS = 8
# Programs of a KV head that scan, each every SCANNERS-th run of groups, and that pool. Many, so
# that while one waits for its keys another computes.
SCANNERS, POOLERS = 256, 64
# Groups that a program takes at a time: scanning, pooling, listing.
SCAN_GROUPS, POOL_GROUPS, LIST_GROUPS = 16, 256, 2048
# Steps of shares, 2^-64 to 1: step 0 is bits 0x3F80 - STEPS + 1 of the upper half of a float.
STEPS = 8192
_FIRST_STEP, _LAST_STEP = tl.constexpr(0x3F80 - STEPS + 1), tl.constexpr(STEPS - 1)
# Two bits of each byte of a word of four, from bit 0, 2, 4 and 6.
_BITS_0 = tl.constexpr("and.b32 $0, $1, 0x03030303;")
_BITS_2 = tl.constexpr("{ .reg .b32 t; shr.b32 t, $1, 2; and.b32 $0, t, 0x03030303; }")
_BITS_4 = tl.constexpr("{ .reg .b32 t; shr.b32 t, $1, 4; and.b32 $0, t, 0x03030303; }")
_BITS_6 = tl.constexpr("{ .reg .b32 t; shr.b32 t, $1, 6; and.b32 $0, t, 0x03030303; }")


@triton.jit
def _coarse_power(x):
    """2^x by lines between powers of two, no less than 2^-100."""
    bits = (tl.maximum(x, -100.0) + 127.0) * 8388608.0
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _coarse_log(x):
    """The inverse of `_coarse_power`."""
    return x.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 8388608.0) - 127.0


@triton.jit
def _step(share):
    """The step of a share, rounded to the nearest; int32."""
    bits = (share.to(tl.int32, bitcast=True) + 0x8000) >> 16
    return tl.minimum(tl.maximum(bits - _FIRST_STEP, 0), _LAST_STEP)


@triton.jit
def _codes(packed, shift: tl.constexpr, words: tl.constexpr, WORDS: tl.constexpr):
    """int8 codes from two bits of every byte; WORDS: four bytes an instruction."""
    if WORDS:
        return tl.inline_asm_elementwise(
            words, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4
        )
    else:
        return (packed >> shift & 3).to(tl.int8)


@triton.jit
def _rounded(q, inverse):
    """int32 of 15 bits and a sign."""
    return tl.floor(q.to(tl.float32) * inverse + 0.5).to(tl.int32)


@triton.jit
def _part(q, inverse, part):
    """The upper half of a rounded query in the rows of part 0, the lower 7 bits in part 1's."""
    x = _rounded(q, inverse)
    return tl.where(part == 0, x >> 7, tl.where(part == 1, x & 127, 0)).to(tl.int8)


@triton.jit
def _scan(
    turned,
    codes,
    scales,
    state,
    masses,
    tops,
    sums,
    steps,
    capacity,
    row,
    R: tl.constexpr,
    RP: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
    WORDS: tl.constexpr,
):
    h, p = tl.program_id(0), tl.program_id(1)
    tl.store(steps + (h * P + p) * (B // P) + tl.arange(0, B // P), 0)
    n_tokens = tl.load(state + 1) + 1
    n_groups = (n_tokens + 7) // 8
    # A product is of 32 bytes at least: a narrow sketch is read twice, its upper codes beside the
    # lower ones.
    S: tl.constexpr = W // 4
    K: tl.constexpr = max(32, S)
    M: tl.constexpr = max(16, 2 * RP)
    i, j, d = tl.arange(0, M), tl.arange(0, K), tl.arange(0, W)
    part, r = i // RP, i % RP
    here = (r < R)[:, None]
    rows = turned + (h * R + r[:, None]) * W
    whole_q = tl.load(rows + d[None, :], mask=here & (d >= 0)[None, :], other=0.0)
    unit = tl.maximum(tl.max(tl.abs(whole_q), 1).to(tl.float32), 1e-20) / 16256.0
    inverse = (1.0 / unit)[:, None]
    at = rows + j[None, :]
    mask = here & (j >= 0)[None, :]
    half = part[:, None]
    q0 = _part(tl.load(at, mask=mask, other=0.0), inverse, half)
    q1 = _part(tl.load(at + K, mask=mask, other=0.0), inverse, half)
    if K == S:
        q2 = _part(tl.load(at + 2 * K, mask=mask, other=0.0), inverse, half)
        q3 = _part(tl.load(at + 3 * K, mask=mask, other=0.0), inverse, half)
    # A code stands for itself less 1.5.
    bias = tl.where(part == 0, tl.sum(_rounded(whole_q, inverse), 1), 0)
    bias = tl.sum(tl.reshape(bias, [M // RP, RP]), 0).to(tl.float32) * -1.5
    unit = tl.max(tl.reshape(unit, [M // RP, RP]), 0) * 1.4426950408889634
    weight = tl.where(part == 0, 128, tl.where(part == 1, 1, 0))
    head = tl.arange(0, RP)
    top = tl.full([RP, N], -1e30, tl.float32)
    total = tl.zeros([RP, N], tl.float32)
    base = h.to(tl.int64) * capacity
    for first in tl.range(p * N, n_groups, P * N, num_stages=3):
        t = first * 8 + tl.arange(0, 8 * N)
        seen = t < n_tokens
        place = base + t
        w = tl.load(codes + place[:, None] * S + j[None, :] % S, mask=seen[:, None], other=0)
        size = tl.load(scales + place, mask=seen, other=0.0).to(tl.float32)
        if K == S:
            e = tl.dot(q0, tl.trans(_codes(w, 0, _BITS_0, WORDS)), out_dtype=tl.int32)
            e = tl.dot(q1, tl.trans(_codes(w, 2, _BITS_2, WORDS)), e, out_dtype=tl.int32)
            e = tl.dot(q2, tl.trans(_codes(w, 4, _BITS_4, WORDS)), e, out_dtype=tl.int32)
            e = tl.dot(q3, tl.trans(_codes(w, 6, _BITS_6, WORDS)), e, out_dtype=tl.int32)
        else:
            w = w >> (2 * (j // S))[None, :].to(tl.uint8)
            e = tl.dot(q0, tl.trans(_codes(w, 0, _BITS_0, WORDS)), out_dtype=tl.int32)
            e = tl.dot(q1, tl.trans(_codes(w, 4, _BITS_4, WORDS)), e, out_dtype=tl.int32)
        e = tl.sum(tl.reshape(e * weight[:, None], [M // RP, RP, 8 * N]), 0)
        octaves = (e.to(tl.float32) + bias[:, None]) * (unit[:, None] * size[None, :])
        octaves = tl.reshape(tl.where(seen[None, :], octaves, -1e30), [RP, N, 8])
        whole = tl.floor(tl.max(octaves, 2) + 0.5)
        mass = tl.sum(_coarse_power(octaves - whole[:, :, None]), 2)
        g = first + tl.arange(0, N)
        inside = (g < n_groups)[None, :] & (head < R)[:, None]
        out = masses + (h * R + head[:, None]) * row + g[None, :]
        tl.store(out, whole + _coarse_log(mass), mask=inside)
        # A group that no token has lies so low that it adds nothing.
        new = tl.maximum(top, whole)
        total = total * tl.exp2(top - new) + mass * tl.exp2(whole - new)
        top = new
    best = tl.max(top, 1)
    total = tl.sum(total * tl.exp2(top - best[:, None]), 1)
    at = (h * P + p) * RP + head
    tl.store(tops + at, best)
    tl.store(sums + at, total)


@triton.jit
def _pool(
    masses,
    tops,
    sums,
    state,
    pooled,
    steps,
    row,
    R: tl.constexpr,
    RP: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    N: tl.constexpr,
    B: tl.constexpr,
):
    """pooled [G, row]: the step of the largest share that a query head gives a group. steps [G, B]:
    how many groups between sinks and window are at each."""
    h, p = tl.program_id(0), tl.program_id(1)
    n_groups = (tl.load(state + 1) + 8) // 8
    sinks, window = tl.load(state + 2), tl.load(state + 3)
    r, i = tl.arange(0, RP), tl.arange(0, P)
    at = (h * P + i[:, None]) * RP + r[None, :]
    part_tops = tl.load(tops + at)
    top = tl.max(part_tops, 0)
    total = tl.sum(tl.load(sums + at) * tl.exp2(part_tops - top[None, :]), 0)
    inverse = tl.where(total > 0, 1.0 / total, 0.0)
    for first in range(p * N, n_groups, Q * N):
        g = first + tl.arange(0, N)
        mask = (r < R)[:, None] & (g < n_groups)[None, :]
        m = tl.load(masses + (h * R + r[:, None]) * row + g[None, :], mask=mask, other=-1e30)
        share = tl.where(mask, _coarse_power(m - top[:, None]) * inverse[:, None], 0.0)
        step = _step(tl.max(share, 0))
        tl.store(pooled + h * row + g, step.to(tl.int16), mask=g < n_groups)
        free = (g >= sinks) & (g < n_groups - window)
        tl.atomic_add(steps + h * B + step, 1, mask=free, sem="relaxed")


@triton.jit
def _kinds(pooled, g, n_groups, first, last, low):
    """Two counts a group, in one int32: read in any case, and at the lowest step that is read."""
    inside = g < n_groups
    step = tl.load(pooled + g, mask=inside, other=-1).to(tl.int32)
    free = (g >= first) & (g < last)
    sure = inside & ((step > low) | (free == 0))
    tied = inside & free & (step == low)
    return sure.to(tl.int32) + (tied.to(tl.int32) << 16)


@triton.jit
def _choose(
    pooled,
    steps,
    state,
    groups,
    counts,
    row,
    N: tl.constexpr,
    B: tl.constexpr,
):
    """The groups of a KV head, ascending: sinks, window, and the `take` best between them. A
    program lists N of all groups, behind those that it counts before them."""
    h, c = tl.program_id(0), tl.program_id(1)
    n_groups = (tl.load(state + 1) + 8) // 8
    first, window = tl.load(state + 2), tl.load(state + 3)
    least, most = tl.load(state + 4), tl.load(state + 5)
    limit = _step(tl.load(state + 6).to(tl.float32, bitcast=True))
    last = n_groups - window
    low, ties = -1, 0
    if n_groups > first + window + least:
        b = tl.arange(0, B)
        n = tl.load(steps + h * B + b)
        # Groups at a step or above it.
        reaching = last - first - tl.cumsum(n, 0) + n
        reached = tl.sum(tl.where(b >= limit, n, 0), 0)
        take = tl.minimum(tl.maximum(reached, least), tl.minimum(most, last - first))
        low = tl.max(tl.where(reaching >= take, b, 0), 0)
        ties = take - tl.sum(tl.where(b > low, n, 0), 0)
    start = c * N
    if start < n_groups:
        shares = pooled + h * row
        # Each of N sums is of no more groups than fit into half of an int32.
        seen = tl.zeros([N], tl.int32)
        for at in range(0, start, N):
            g = at + tl.arange(0, N)
            seen += _kinds(shares, g, start, first, last, low)
        n_sure, n_tied = tl.sum(seen & 0xFFFF, 0), tl.sum(seen >> 16, 0)
        g = start + tl.arange(0, N)
        kinds = _kinds(shares, g, n_groups, first, last, low)
        before = tl.cumsum(kinds, 0)
        sures, tieds = n_sure + (before & 0xFFFF), n_tied + (before >> 16)
        place = sures + tl.minimum(tieds, ties) - 1
        kept = ((kinds & 0xFFFF) > 0) | ((kinds > 0xFFFF) & (tieds <= ties))
        tl.store(groups + h * row + place, g, mask=kept)
        if start + N >= n_groups:
            here = tl.sum(kinds, 0)
            n_tied += here >> 16
            tl.store(counts + h, n_sure + (here & 0xFFFF) + tl.minimum(n_tied, ties))


class RouteBuffers:
    """Device scratch of a routed token: masses float32 [H, row], pooled int16 [G, row] (steps of
    shares), groups int32 [G, row] ascending, row: groups of the context."""

    def __init__(self, n_heads: int, n_kv_heads: int, ctx: int, device: str) -> None:
        self.row = -(-ctx // GROUP_TOKENS)
        # Words of four codes are taken apart by an instruction that the interpreter lacks.
        self.words = device != "cpu"
        make, rows = torch.zeros, triton.next_power_of_2(n_heads // n_kv_heads)
        self.masses = make((n_heads, self.row), dtype=torch.float32, device=device)
        self.pooled = make((n_kv_heads, self.row), dtype=torch.int16, device=device)
        self.groups = make((n_kv_heads, self.row), dtype=torch.int32, device=device)
        self.steps = make((n_kv_heads, STEPS), dtype=torch.int32, device=device)
        parts = (n_kv_heads, SCANNERS, rows)
        self.tops = make(parts, dtype=torch.float32, device=device)
        self.sums = make(parts, dtype=torch.float32, device=device)


def route(
    turned: torch.Tensor,
    sketches: tuple[torch.Tensor, torch.Tensor],
    params: torch.Tensor,
    buffers: RouteBuffers,
    counts: torch.Tensor,
    n_heads: int,
    n_groups: int,
) -> None:
    """Fill buffers.groups and counts, int32 [G], for a token at position params[1].

    n_groups: no fewer than the token has, for the shape of the programs.
    turned: float16 [H, W] (kernels/triton/heads.py); sketches: codes uint8 [G, capacity, W / 4] and
    scales float16 [G, capacity].
    """
    codes, scales = sketches
    n_kv, capacity, quarter = codes.shape
    rows, width = n_heads // n_kv, padded_width(4 * quarter)
    b = buffers
    padded = b.tops.shape[2]
    _scan[(n_kv, SCANNERS)](
        turned, codes, scales, params, b.masses, b.tops, b.sums, b.steps, capacity, b.row,
        R=rows, RP=padded, W=width, N=SCAN_GROUPS, P=SCANNERS, B=STEPS, WORDS=b.words, num_warps=2,
    )  # fmt: skip
    _pool[(n_kv, POOLERS)](
        b.masses, b.tops, b.sums, params, b.pooled, b.steps, b.row,
        R=rows, RP=padded, P=SCANNERS, Q=POOLERS, N=POOL_GROUPS, B=STEPS,
    )  # fmt: skip
    size = max(512, min(LIST_GROUPS, triton.next_power_of_2(n_groups)))
    _choose[(n_kv, triton.cdiv(n_groups, size))](
        b.pooled, b.steps, params, b.groups, counts, b.row,
        N=size, B=STEPS, num_warps=16,
    )  # fmt: skip
