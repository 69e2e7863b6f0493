"""The choice of groups that a KV head reads, as on the CPU (kernels/cpu/routing.py): log masses of
all groups from the key sketches, shares, and the groups of largest share.

What is not known when the kernels are recorded into a graph, position and limits, is read from
`params` int32: token, position, sinks, window, fewest and most groups, bits of the least share.
Masses are sums of coarse powers of two, lines between powers, moved by whole octaves; shares undo
the coarse logarithm that they are kept as.
"""

import torch
import triton
import triton.language as tl

from .heads import padded_width

GROUP_TOKENS = 8
# Programs of a KV head that scan, each every SCANNERS-th run of groups, and that pool. Many, so
# that while one waits for its keys another computes.
SCANNERS, POOLERS = 256, 32
# Groups that a scanner takes at a time, and the most that the choice holds in registers.
SCAN_GROUPS, CHOICE_GROUPS = 16, 32768
# No more than this below the largest of a row's octaves counts.
_LEAST = -100.0


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
def _grid(twice):
    """float16 code - 1.5 of uint8 2 code: the code is put into the fraction of 512, whose steps are
    halves. A conversion would take four times as long, and the scan with it."""
    return (twice.to(tl.int16) | 0x6000).to(tl.float16, bitcast=True) - 513.5


@triton.jit
def _scan(
    turned,
    codes,
    scales,
    state,
    masses,
    tops,
    sums,
    capacity,
    row,
    R: tl.constexpr,
    RP: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
):
    h, p = tl.program_id(0), tl.program_id(1)
    n_tokens = tl.load(state + 1) + 1
    n_groups = (n_tokens + 7) // 8
    S: tl.constexpr = W // 4
    r, j = tl.arange(0, RP), tl.arange(0, S)
    at = turned + (h * R + r[:, None]) * W + j[None, :]
    mask = (r < R)[:, None] & (j >= 0)[None, :]
    q0 = tl.load(at, mask=mask, other=0.0)
    q1 = tl.load(at + S, mask=mask, other=0.0)
    q2 = tl.load(at + 2 * S, mask=mask, other=0.0)
    q3 = tl.load(at + 3 * S, mask=mask, other=0.0)
    top = tl.full([RP], -1e30, tl.float32)
    total = tl.zeros([RP], tl.float32)
    base = h.to(tl.int64) * capacity
    for first in range(p * N, n_groups, P * N):
        t = first * 8 + tl.arange(0, 8 * N)
        seen = t < n_tokens
        place = base + t
        w = tl.load(codes + place[:, None] * S + j[None, :], mask=seen[:, None], other=0)
        size = tl.load(scales + place, mask=seen, other=0.0).to(tl.float32)
        e = tl.dot(q0, tl.trans(_grid(w << 1 & 6)))
        e = tl.dot(q1, tl.trans(_grid(w >> 1 & 6)), e)
        e = tl.dot(q2, tl.trans(_grid(w >> 3 & 6)), e)
        e = tl.dot(q3, tl.trans(_grid(w >> 5 & 6)), e)
        octaves = tl.where(seen[None, :], e * (size * 1.4426950408889634)[None, :], -1e30)
        octaves = tl.reshape(octaves, [RP, N, 8])
        whole = tl.floor(tl.max(octaves, 2) + 0.5)
        mass = tl.sum(_coarse_power(octaves - whole[:, :, None]), 2)
        g = first + tl.arange(0, N)
        inside = (g < n_groups)[None, :] & (r < R)[:, None]
        out = masses + (h * R + r[:, None]) * row + g[None, :]
        tl.store(out, whole + _coarse_log(mass), mask=inside)
        new = tl.maximum(top, tl.max(tl.where((g < n_groups)[None, :], whole, -1e30), 1))
        part = tl.where((g < n_groups)[None, :], mass * tl.exp2(whole - new[:, None]), 0.0)
        total = total * tl.exp2(top - new) + tl.sum(part, 1)
        top = new
    at = (h * P + p) * RP + r
    tl.store(tops + at, top)
    tl.store(sums + at, total)


@triton.jit
def _pool(
    masses,
    tops,
    sums,
    state,
    pooled,
    row,
    R: tl.constexpr,
    RP: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
    N: tl.constexpr,
):
    """pooled [G, row]: the largest share that a query head gives a group."""
    h, p = tl.program_id(0), tl.program_id(1)
    n_groups = (tl.load(state + 1) + 8) // 8
    r, i = tl.arange(0, RP), tl.arange(0, P)
    at = (h * P + i[:, None]) * RP + r[None, :]
    part_tops = tl.load(tops + at)
    top = tl.max(part_tops, 0)
    total = tl.sum(tl.load(sums + at) * tl.exp2(part_tops - top[None, :]), 0)
    inverse = tl.where(total > 0, 1.0 / total, 0.0)
    for first in range(p * N, n_groups, B * N):
        g = first + tl.arange(0, N)
        mask = (r < R)[:, None] & (g < n_groups)[None, :]
        m = tl.load(masses + (h * R + r[:, None]) * row + g[None, :], mask=mask, other=-1e30)
        share = tl.where(mask, _coarse_power(m - top[:, None]) * inverse[:, None], 0.0)
        tl.store(pooled + h * row + g, tl.max(share, 0), mask=g < n_groups)


@triton.jit
def _bits(shares, start, first, last, N: tl.constexpr):
    """Bits of the shares of groups start.., -1 outside first..last: as integers they order as the
    shares do."""
    g = start + tl.arange(0, N)
    inside = (g >= first) & (g < last)
    value = tl.load(shares + g, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    return tl.where(inside, value, -1)


@triton.jit
def _count(shares, held, first, last, limit, N: tl.constexpr, ONE: tl.constexpr):
    """Groups first..last whose share has bits of at least `limit`."""
    if ONE:
        return tl.sum((held >= limit).to(tl.int32), 0)
    count = 0
    for start in range(first // N * N, last, N):
        count += tl.sum((_bits(shares, start, first, last, N) >= limit).to(tl.int32), 0)
    return count


@triton.jit
def _packed(bits, one, two, three):
    return (
        (bits >= one).to(tl.int64)
        + ((bits >= two).to(tl.int64) << 20)
        + ((bits >= three).to(tl.int64) << 40)
    )


@triton.jit
def _count3(shares, held, first, last, one, two, three, N: tl.constexpr, ONE: tl.constexpr):
    """`_count` for three limits in one sum of three fields."""
    if ONE:
        total = tl.sum(_packed(held, one, two, three), 0)
    else:
        total = tl.zeros([], tl.int64)
        for start in range(first // N * N, last, N):
            total += tl.sum(_packed(_bits(shares, start, first, last, N), one, two, three), 0)
    field = 0xFFFFF
    return (
        (total & field).to(tl.int32),
        (total >> 20 & field).to(tl.int32),
        (total >> 40).to(tl.int32),
    )


@triton.jit
def _choose(pooled, state, groups, counts, row, N: tl.constexpr, ONE: tl.constexpr):
    """The groups of a KV head; ONE: all of them lie in N registers, read once."""
    h = tl.program_id(0)
    n_groups = (tl.load(state + 1) + 8) // 8
    first, window = tl.load(state + 2), tl.load(state + 3)
    least, most, limit = tl.load(state + 4), tl.load(state + 5), tl.load(state + 6)
    shares = pooled + h * row
    last, exact, ties = n_groups - window, 0, 0
    low = 0
    held = _bits(shares, 0, first, last, N)
    if n_groups <= first + window + least:
        first = n_groups
        last = n_groups
    else:
        least = tl.minimum(least, last - first)
        most = tl.minimum(most, last - first)
        reached = _count(shares, held, first, last, limit, N, ONE)
        take = tl.minimum(tl.maximum(reached, least), most)
        # At least `take` groups reach low, fewer reach high.
        high = 0x40000000
        if take == reached:
            low = limit
            exact = 1
        else:
            if reached > take:
                low = limit
            else:
                high = limit
            while high - low > 1:
                # Three limits at a time: a pass costs as much as its sum over all threads.
                step = (high - low + 3) // 4
                one = low + step
                two = tl.minimum(one + step, high)
                three = tl.minimum(two + step, high)
                at_one, at_two, at_three = _count3(
                    shares, held, first, last, one, two, three, N, ONE
                )
                bottom, top, reached = low, one, take + 1
                if at_three >= take:
                    bottom, top, reached = three, high, at_three
                elif at_two >= take:
                    bottom, top, reached = two, three, at_two
                elif at_one >= take:
                    bottom, top, reached = one, two, at_one
                low, high = bottom, top
                if reached == take:
                    exact = 1
                    high = low
            if exact == 0:
                ties = take - _count(shares, held, first, last, low + 1, N, ONE)
    count = 0
    for start in range(0, n_groups, N):
        g = start + tl.arange(0, N)
        between = (g >= first) & (g < last)
        if ONE:
            value = held
        else:
            value = _bits(shares, start, first, last, N)
        always = (g < n_groups) & ((g < first) | (g >= last))
        kept = always | (between & ((value > low) | ((value == low) & (exact == 1))))
        if ties > 0:
            tied = (between & (value == low)).to(tl.int32)
            kept = kept | ((tied == 1) & (tl.cumsum(tied, 0) <= ties))
            ties -= tl.sum(tied, 0)
        kept_here = kept.to(tl.int32)
        place = count + tl.cumsum(kept_here, 0) - 1
        tl.store(groups + h * row + place, g, mask=kept)
        count += tl.sum(kept_here, 0)
    tl.store(counts + h, count)


class RouteBuffers:
    """Device scratch of a routed token: masses float32 [H, row], pooled [G, row], groups int32
    [G, row] ascending, row: groups of the context."""

    def __init__(self, n_heads: int, n_kv_heads: int, ctx: int, device: str) -> None:
        self.row = -(-ctx // GROUP_TOKENS)
        padded = max(16, triton.next_power_of_2(n_heads // n_kv_heads))
        make = torch.zeros
        self.masses = make((n_heads, self.row), dtype=torch.float32, device=device)
        self.pooled = make((n_kv_heads, self.row), dtype=torch.float32, device=device)
        self.groups = make((n_kv_heads, self.row), dtype=torch.int32, device=device)
        parts = (n_kv_heads, SCANNERS, padded)
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
    padded = buffers.tops.shape[2]
    b = buffers
    _scan[(n_kv, SCANNERS)](
        turned, codes, scales, params, b.masses, b.tops, b.sums, capacity, b.row,
        R=rows, RP=padded, W=width, N=SCAN_GROUPS, P=SCANNERS,
    )  # fmt: skip
    _pool[(n_kv, POOLERS)](
        b.masses, b.tops, b.sums, params, b.pooled, b.row,
        R=rows, RP=padded, P=SCANNERS, B=POOLERS, N=128,
    )  # fmt: skip
    size = max(512, min(CHOICE_GROUPS, triton.next_power_of_2(n_groups)))
    warps = max(4, min(32, size // 256))
    _choose[(n_kv,)](
        b.pooled, params, b.groups, counts, b.row, N=size, ONE=n_groups <= size, num_warps=warps
    )
