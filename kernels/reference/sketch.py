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


def sketch_keys(k: F32) -> tuple[NDArray[np.int64], F32]:
    """Codes 0..3 [..., D] and float16-rounded scales [...] of rotated keys k [..., D]."""
    y = rotate(k)
    scale = (_STEP * np.abs(y).mean(-1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale[..., None] > 0, y / scale[..., None], 0)
    codes = np.clip(np.floor(steps) + 2, 0, 3).astype(np.int64)
    return codes, scale.astype(np.float16).astype(np.float32)


def sketch_query(q: F32) -> tuple[NDArray[np.int64], F32]:
    """int8 codes [..., D] and scales [...] of scaled queries q [..., D]."""
    y = rotate(q)
    scale = (np.abs(y).max(-1) / 127).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale[..., None] > 0, np.rint(y / scale[..., None]), 0)
    return codes.astype(np.int64), scale


def log_masses(q: F32, k: F32, group_tokens: int) -> NDArray[np.float64]:
    """Estimated log mass [H, groups] of q [H, D] (scaled) over keys k [S, G, D].

    The last group may be partial. Query head h reads KV head h // (H / G).
    """
    codes, scales = sketch_keys(k)
    query, query_scale = sketch_query(q)
    rows = q.shape[0] // k.shape[1]
    n_groups = -(-len(k) // group_tokens)
    out = np.full((len(q), n_groups), -np.inf)
    for head in range(len(q)):
        values = (codes[:, head // rows] - 1.5) @ query[head]
        logits = values * scales[:, head // rows].astype(np.float64) * query_scale[head]
        for g in range(n_groups):
            part = logits[g * group_tokens : (g + 1) * group_tokens]
            out[head, g] = part.max() + np.log(np.exp(part - part.max()).sum())
    return out


def pooled_shares(masses: NDArray[np.float64], n_kv_heads: int) -> NDArray[np.float64]:
    """Largest share [G, groups] that a query head of each KV head gives every group."""
    shares = np.exp(masses - masses.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.asarray(shares.reshape(n_kv_heads, -1, masses.shape[1]).max(1), np.float64)


def select(
    pooled: NDArray[np.float64], n_select: int, n_sinks: int, n_window: int
) -> tuple[tuple[int, ...], ...]:
    """Groups read by each KV head, ascending: sinks, window and the best between them.

    pooled [G, groups]; equal shares: the earlier group. Everything, if that is no more.
    """
    n_groups = pooled.shape[1]
    if n_groups <= n_sinks + n_window + n_select:
        return tuple(tuple(range(n_groups)) for _ in pooled)
    last = n_groups - n_window
    routes = []
    for row in pooled:
        best = np.argsort(-row[n_sinks:last], kind="stable")[:n_select] + n_sinks
        routes.append((*range(n_sinks), *map(int, np.sort(best)), *range(last, n_groups)))
    return tuple(routes)
