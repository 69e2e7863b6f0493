"""Exact attention."""

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
    return np.asarray(np.einsum("ths,shd->thd", p, values), np.float32)


def causal(position: int, n_tokens: int, window: int) -> NDArray[np.bool_]:
    """Visibility [T, position + T] of tokens at position…; window 0 sees everything before."""
    i = position + np.arange(n_tokens)[:, None]
    j = np.arange(position + n_tokens)[None]
    seen = j <= i
    return seen & (j > i - window) if window else seen
