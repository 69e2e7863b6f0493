"""The numpy references of row operations against the formulas, written out in Python floats."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from hga.kernels.reference import rows

FINITE = st.floats(-1e4, 1e4, width=32)


def test_rms_norm() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    weight = np.array([1.0, 2.0], np.float32)
    got = rows.rms_norm(x, weight, 1e-6)
    r = 1 / math.sqrt(12.5 + 1e-6)
    np.testing.assert_allclose(got, [[3 * r, 8 * r], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("x", [-1e4, -100.0, -3.0, -0.5, 0.0, 1e-3, 0.5, 3.0, 100.0, 1e4])
def test_activations(x: float) -> None:
    (silu,) = rows.silu(np.array([x], np.float32))
    assert silu == pytest.approx(x / (1 + math.exp(min(-x, 700))), rel=1e-6, abs=1e-30)
    (gelu,) = rows.gelu_tanh(np.array([x], np.float32))
    exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    assert gelu == pytest.approx(exact, rel=1e-3, abs=1e-3), "the approximation is that of GELU"


@settings(max_examples=100, deadline=None)
@given(x=st_np.arrays(np.float32, (2, 64), elements=FINITE))
def test_quantisation_is_within_half_a_step(x: np.ndarray) -> None:
    codes, scales, sums = rows.quantize(x)
    assert codes.dtype == np.int8 and scales.shape == (2, 2) and sums.shape == (2, 4)
    assert np.abs(codes.astype(int)).max() <= 127
    back = codes.reshape(2, 2, 32) * scales[..., None].astype(np.float64)
    assert (np.abs(back.reshape(2, 64) - x) <= 0.5001 * np.repeat(scales, 32, 1) + 1e-36).all()
    np.testing.assert_array_equal(sums, codes.reshape(2, 4, 16).astype(int).sum(-1))


def test_quantisation_of_blocks_without_a_usable_scale() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 40] = 1e-38
    codes, scales, sums = rows.quantize(x)
    assert not codes.any() and not sums.any() and np.isfinite(scales).all()


def test_rope_turns_pairs() -> None:
    x = np.array([1, 2, 3, 4], np.float32)
    cos, sin = np.array([0, -1], np.float32), np.array([1, 0], np.float32)
    np.testing.assert_array_equal(rows.rope(x, cos, sin), [-3, -2, 1, -4])


@settings(max_examples=100, deadline=None)
@given(
    logits=st_np.arrays(np.float32, (3, 8), elements=st.integers(-4, 4)),
    n_used=st.integers(1, 8),
    norm=st.booleans(),
)
def test_top_experts(logits: np.ndarray, n_used: int, norm: bool) -> None:
    chosen, weights = rows.top_experts(logits, n_used, norm)
    for row, best, got in zip(logits.tolist(), chosen.tolist(), weights, strict=True):
        order = sorted(range(8), key=lambda e: (-row[e], e))[:n_used]
        assert best == order
        shares = [math.exp(row[e]) / sum(map(math.exp, row)) for e in order]
        wanted = [s / sum(shares) for s in shares] if norm else shares
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
