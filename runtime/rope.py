"""Rotary position embeddings: the angles of a RopePlan, computed in float64.

Sources: linear scaling (position interpolation), llama3 (Llama 3.1 model code), yarn
(arXiv 2309.00071, sections 3.2-3.4).
"""

import math

import numpy as np
from numpy.typing import NDArray

from hga.kvstore.geometry import CHUNK_TOKENS, padded_head_dim
from hga.models.plan import RopePlan


def inverse_frequencies(rope: RopePlan, head_dim: int) -> NDArray[np.float64]:
    """Radians per position of each pair [D/2]."""
    pairs = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    plain = rope.theta**-pairs
    if rope.kind == "none":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_ctx * plain / (2 * math.pi)
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(smooth, 0.0, 1.0)
        return (1 - blend) * plain / rope.factor + blend * plain

    # yarn: the pair index at which a pair makes `rotations` turns over the original context.
    def pair_of(rotations: float) -> float:
        ratio = rope.original_ctx / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low = max(math.floor(pair_of(rope.beta_fast)), 0)
    high = min(math.ceil(pair_of(rope.beta_slow)), head_dim - 1)
    ramp = (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
    interpolated = np.clip(ramp, 0.0, 1.0)
    return plain / rope.factor * interpolated + plain * (1 - interpolated)


# A pair that turns further than this within a chunk is summed as it stands (arXiv 2606.30709).
_SUMMED_TURN = 0.5


class RopeTables:
    """cos and sin of a run of positions for each distinct RoPE of a model.

    turn_cos, turn_sin: float32 [n_ropes][127][half] of turns by -63..63 positions, which bring the
    keys of a chunk to one position; 1 and 0 for pairs that the published rule sums as they stand.
    """

    def __init__(self, plans: tuple[tuple[RopePlan, int], ...], max_tokens: int) -> None:
        """plans: distinct (RopePlan, head_dim); max_tokens: longest run."""
        self._frequencies = [inverse_frequencies(rope, d) for rope, d in plans]
        self._factors = [rope.attention_factor for rope, _ in plans]
        half = max(padded_head_dim(d) // 2 for _, d in plans)
        self.cos = np.zeros((len(plans), max_tokens, half), np.float32)
        self.sin = np.zeros_like(self.cos)
        turns = np.arange(1 - CHUNK_TOKENS, CHUNK_TOKENS)
        self.turn_cos = np.zeros((len(plans), len(turns), half), np.float32)
        self.turn_sin = np.zeros_like(self.turn_cos)
        for i, frequencies in enumerate(self._frequencies):
            slow = (CHUNK_TOKENS - 1) * frequencies <= _SUMMED_TURN
            angles = turns[:, None] * frequencies * slow
            self.turn_cos[i, :, : len(frequencies)] = np.cos(angles)
            self.turn_sin[i, :, : len(frequencies)] = np.sin(angles)

    def fill(self, position: int, n_tokens: int) -> None:
        """Write positions position..position + n_tokens to the front of cos and sin."""
        positions = np.arange(position, position + n_tokens, dtype=np.float64)
        for i, frequencies in enumerate(self._frequencies):
            angles = positions[:, None] * frequencies
            half = len(frequencies)
            np.multiply(np.cos(angles), self._factors[i], out=self.cos[i, :n_tokens, :half])
            np.multiply(np.sin(angles), self._factors[i], out=self.sin[i, :n_tokens, :half])
