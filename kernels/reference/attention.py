"""Exact attention, and the choice of groups from group means."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def attend(q: F32, k: F32, v: F32, visible: NDArray[np.bool_]) -> F32:
    """Softmax attention of q [T, H, D] (already scaled) over k, v [S, G, D].

    visible: bool [T, S], or [T, H, S] where heads see different tokens. Query head h reads KV head
    h // (H / G). Returns [T, H, D].
    """
    share = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, share, 1), np.repeat(v, share, 1)
    scores = np.einsum("thd,shd->ths", q.astype(np.float64), keys)
    mask = visible[:, None] if visible.ndim == 2 else visible
    scores = np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("ths,shd->thd", p, values).astype(np.float32)


def causal(position: int, n_tokens: int, window: int) -> NDArray[np.bool_]:
    """Visibility [T, position + T] of tokens at position…; window 0 sees everything before."""
    i = position + np.arange(n_tokens)[:, None]
    j = np.arange(position + n_tokens)[None]
    seen = j <= i
    return seen & (j > i - window) if window else seen


def group_means(k: F32, group_tokens: int) -> F32:
    """Mean key [S // group_tokens, G, D] of every full group of k [S, G, D]."""
    n = len(k) // group_tokens
    return k[: n * group_tokens].reshape(n, group_tokens, *k.shape[1:]).mean(1, dtype=np.float64)


def route(
    q: F32, means: F32, n_groups: int, n_select: int, n_sinks: int, n_window: int
) -> tuple[tuple[int, ...], ...]:
    """Groups read by each KV head for one token, ascending.

    q [H, D] (scaled), means [N, G, D]. Sinks and the last n_window of n_groups are always read;
    between them the n_select groups whose largest softmax share over the query heads is highest.
    """
    if n_groups <= n_sinks + n_window + n_select:
        return tuple(tuple(range(n_groups)) for _ in range(means.shape[1]))
    rows = q.shape[0] // means.shape[1]
    last = n_groups - n_window
    routes = []
    for head in range(means.shape[1]):
        scores = q[head * rows : (head + 1) * rows] @ means[n_sinks:last, head].T
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        pooled = (shares / shares.sum(-1, keepdims=True)).max(0)
        best = np.sort(np.argsort(-pooled, kind="stable")[:n_select]) + n_sinks
        routes.append((*range(n_sinks), *map(int, best), *range(last, n_groups)))
    return tuple(routes)
