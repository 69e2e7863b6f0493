"""Key sketches and the routes that follow from them (kernels/cpu/sketch.py, docs/method.md)."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_STEP = 1.25


def signs(head_dim: int) -> F32:
    """The fixed signs of the rotation [D]: bit 40 of i times the golden ratio, i from 1."""
    bits = [((i * 0x9E3779B97F4A7C15) >> 40) & 1 for i in range(1, head_dim + 1)]
    return np.where(np.array(bits) == 1, np.float32(-1), np.float32(1))


def rotate(x: F32) -> F32:
    """R x over the last axis: signs, then Walsh-Hadamard over the largest power of two in D."""
    head_dim = x.shape[-1]
    size = head_dim & -head_dim
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    blocks = (x * signs(head_dim)).reshape(*x.shape[:-1], -1, size)
    return np.asarray(blocks @ (matrix / np.sqrt(size)), np.float32).reshape(x.shape)


def coarse_power(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """2^x by straight lines between powers of two (up to 6 % too much), no less than 2^-100."""
    octaves = np.maximum(x, -100.0).astype(np.float64)
    whole = np.floor(octaves)
    return np.asarray(2.0**whole * (1 + octaves - whole), np.float64)


def coarse_log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `coarse_power`."""
    fraction, exponent = np.frexp(x)
    return np.asarray(exponent - 2 + 2 * fraction, np.float64)


def round_scale(scale: F32) -> F32:
    """The nearest float of four exponent bits (2^-7 to 2^7) and four fraction bits; 0 stays 0."""
    fraction, exponent = np.frexp(scale)
    rounded = np.ldexp(np.rint(fraction * 32) / 32, exponent)
    return np.where(scale > 0, np.clip(rounded, 2.0**-7, 248.0), 0).astype(np.float32)


def sketch_keys(k: F32, bits: int = 2) -> tuple[NDArray[np.int64], F32]:
    """Codes [..., D] (0..3, or 0 and 1) and rounded scales [...] of rotated keys k [..., D]."""
    y = rotate(k)
    size = np.abs(y).sum(-1)
    if bits == 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            length = np.where(size > 0, np.square(y).sum(-1) / size, 0)
        return (y >= 0).astype(np.int64), round_scale(length.astype(np.float32))
    scale = round_scale((_STEP * size / y.shape[-1]).astype(np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale[..., None] > 0, y / scale[..., None], 0)
    return np.clip(np.floor(steps) + 2, 0, 3).astype(np.int64), scale


def sketch_query(q: F32) -> tuple[NDArray[np.int64], F32]:
    """int8 codes [..., D] and scales [...] of scaled queries q [..., D]."""
    y = rotate(q)
    scale = (np.abs(y).max(-1) / 127).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale[..., None] > 0, np.rint(y / scale[..., None]), 0)
    return codes.astype(np.int64), scale


def estimates(q: F32, k: F32, tables: bool = True, bits: int = 2) -> NDArray[np.float64]:
    """Estimated q.k [S] of a query q [D] (scaled) and keys k [S, D], by tables of two dimensions
    (four at one bit) or by int8 codes of the query."""
    codes, scales = sketch_keys(k, bits)
    grid = 2.0 * codes - 1 if bits == 1 else codes - 1.5
    if not tables:
        query, scale = sketch_query(q)
        return np.asarray(grid @ query * scales.astype(np.float64) * scale, np.float64)
    y, per_table = rotate(q), 4 // bits
    most = {1: 4, 2: 3}[bits]
    unit = np.float32(most) * np.abs(y).max() / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = grid * np.where(unit > 0, y / unit, 0)
    # Dimensions d, d + 4, … share a table, whose entries are whole numbers.
    sums = parts.reshape(len(k), -1, per_table, 4).sum(2)
    return np.asarray(np.rint(sums).sum((1, 2)) * scales.astype(np.float64) * unit, np.float64)


def group_masses(logits: NDArray[np.float64], group_tokens: int) -> NDArray[np.float64]:
    """Log mass [..., groups] of logits [..., S]; the last group may be partial.

    Coarse powers of two are summed, moved by whole octaves, and their coarse logarithm is taken,
    which `shares` undoes.
    """
    n_groups = -(-logits.shape[-1] // group_tokens)
    out = np.full((*logits.shape[:-1], n_groups), -np.inf)
    for g in range(n_groups):
        octaves = logits[..., g * group_tokens : (g + 1) * group_tokens] * np.log2(np.e)
        whole = np.rint(octaves.max(-1, keepdims=True))
        out[..., g] = whole[..., 0] + coarse_log(coarse_power(octaves - whole).sum(-1))
    return np.asarray(out * np.log(2), np.float64)


def log_masses(
    q: F32, k: F32, group_tokens: int, tables: bool = True, bits: int = 2
) -> NDArray[np.float64]:
    """Estimated log mass [H, groups] of q [H, D] (scaled) over keys k [S, G, D].

    Query head h reads KV head h // (H / G).
    """
    rows = q.shape[0] // k.shape[1]
    logits = [estimates(q[h], k[:, h // rows], tables, bits) for h in range(len(q))]
    return group_masses(np.stack(logits), group_tokens)


def shares(masses: NDArray[np.float64], n_kv_heads: int) -> NDArray[np.float64]:
    """Shares [G, H / G, groups] of log masses [H, groups] in each query head's whole mass."""
    octaves = masses * np.log2(np.e)
    part = coarse_power(octaves - np.rint(octaves.max(-1, keepdims=True)))
    part /= part.sum(-1, keepdims=True)
    return part.reshape(n_kv_heads, -1, masses.shape[1])


def select(
    part: NDArray[np.float64],
    n_sinks: int,
    n_window: int,
    n_least: int,
    n_most: int,
    least_share: float = 1.0,
) -> tuple[tuple[int, ...], ...]:
    """Groups read by each KV head, ascending: sinks, window and the best between them.

    part [G, R, groups]: shares of the R query heads of a KV head. A group ranks by its largest
    share (equal: the earlier); chosen are those that reach least_share, from n_least to n_most.
    Everything, where that is no more than the least.
    """
    n_groups = part.shape[2]
    if n_groups <= n_sinks + n_window + n_least:
        return tuple(tuple(range(n_groups)) for _ in part)
    last = n_groups - n_window
    routes = []
    for head in part:
        largest = head.max(0)[n_sinks:last]
        order = np.argsort(-largest, kind="stable") + n_sinks
        take = int(np.sum(largest.astype(np.float32) >= np.float32(least_share)))
        best = order[: min(max(take, n_least), n_most)]
        routes.append((*range(n_sinks), *map(int, np.sort(best)), *range(last, n_groups)))
    return tuple(routes)
