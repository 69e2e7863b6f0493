"""Norms, activations, quantisation and RoPE on rows."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """x [..., n] / sqrt(mean(x^2) + eps) * weight [n]."""
    mean = np.mean(np.square(x, dtype=np.float64), -1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + eps) * weight, np.float32)


def silu(x: F32) -> F32:
    """x / (1 + e^-x)."""
    return np.asarray(x / (1 + np.exp(-np.clip(x.astype(np.float64), -700, 700))), np.float32)


def gelu_tanh(x: F32) -> F32:
    """GELU by its tanh approximation (Gemma)."""
    y = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
    return np.asarray(0.5 * y * (1 + np.tanh(u)), np.float32)


def quantize(x: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """Codes int8 [..., n], scales float32 [..., n/32], sums int32 [..., n/16] of the codes."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scales = (np.abs(blocks).max(-1) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        # The reciprocal of a smaller scale would be infinite: such a block is zero.
        inverse = np.where(scales > 1e-38, np.float32(1) / scales, np.float32(0))
    codes = np.rint(blocks * inverse[..., None].astype(np.float32)).astype(np.int8)
    sums = codes.reshape(*x.shape[:-1], -1, 16).sum(-1, dtype=np.int32)
    return codes.reshape(x.shape), scales, sums


def rope(x: F32, cos: F32, sin: F32) -> F32:
    """Rotate the pairs (i, i + D/2) of x [..., D] by cos, sin [..., D/2]."""
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(np.float32)


def top_experts(
    logits: F32, n_used: int, norm_topk: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Chosen experts [T, used] in descending weight (lower index on ties) and their weights."""
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.argsort(-p, -1, kind="stable")[:, :n_used]
    weights = np.take_along_axis(p, chosen, -1)
    if norm_topk:
        weights = weights / weights.sum(-1, keepdims=True)
    return chosen, weights
