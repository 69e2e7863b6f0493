"""Row operations against their references, at the values where they could break."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kernels import cases
from hga.kernels.cases import TOLERANCE
from hga.kernels.formats import FORMATS
from hga.kernels.reference import rows

ACTS = {"silu": rows.silu, "gelu_tanh": rows.gelu_tanh}


def normal(n: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


@pytest.mark.parametrize("n", [32, 96, 576, 4096])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_rms_norm(cpu: ModuleType, n: int, scale: float) -> None:
    x, weight = normal(n, 1, scale), normal(n, 2)
    got = cpu.rms_norm(x, weight, 1e-6)
    assert cases.error(got, rows.rms_norm(x, weight, 1e-6)) <= TOLERANCE["rms_norm"]


def test_rms_norm_of_zeros_is_zero(cpu: ModuleType) -> None:
    assert not cpu.rms_norm(np.zeros(64, np.float32), normal(64), 1e-6).any()


def test_sums(cpu: ModuleType) -> None:
    x, y = normal(160, 1), normal(160, 2)
    for n in (1, 15, 16, 17, 160):
        np.testing.assert_array_equal(cpu.add_into(x[:n].copy(), y[:n].copy()), x[:n] + y[:n])
    expected = x + 0.3 * y.astype(np.float64)
    assert cases.error(cpu.add_scaled(x, y, 0.3), expected) <= 1e-6


@pytest.mark.parametrize("n", [32, 64, 576])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e5, 1e36])
def test_quantize(cpu: ModuleType, n: int, scale: float) -> None:
    x = normal(n, 3, scale)
    for got, expected in zip(cpu.quantize(x), rows.quantize(x), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_quantize_keeps_zero_blocks_and_outliers(cpu: ModuleType) -> None:
    x = normal(128, 4)
    x[:32] = 0
    x[40], x[70] = 3e38, -65504
    codes, scales, sums = cpu.quantize(x)
    assert scales[0] == 0 and not codes[:32].any() and not sums[:2].any()
    assert codes[40] == 127 and codes[70] == -127
    assert sums[2] == 127 and sums[3] == 0
    np.testing.assert_array_equal(codes.reshape(-1, 16).sum(1, dtype=np.int32), sums)


def test_quantize_rounds_ties_to_even(cpu: ModuleType) -> None:
    x = np.tile(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127], np.float32), 4)
    expected = np.tile(np.array([127, 0, 2, 2, 0, -2, -2, -127], np.int8), 4)
    np.testing.assert_array_equal(cpu.quantize(x)[0], expected)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
def test_rope(cpu: ModuleType, head_dim: int) -> None:
    x, angles = normal(head_dim, 5), normal(head_dim // 2, 6, 3.0)
    cos, sin = np.cos(angles), np.sin(angles)
    expected = rows.rope(x, cos, sin) * np.float32(0.125)
    assert cases.error(cpu.rope(x, cos, sin, 0.125), expected) <= TOLERANCE["rope"]


@pytest.mark.parametrize(("n", "head_dim"), [(2, 32), (16, 32), (48, 64), (80, 96), (64, 64)])
def test_heads_are_widened_with_zeros(cpu: ModuleType, n: int, head_dim: int) -> None:
    x, weight = normal(n, 1), normal(n, 2)
    wide = cpu.widen_head(x, head_dim)
    np.testing.assert_array_equal(wide[:n], x)
    assert not wide[n:].any()
    for norm in (None, weight):
        expected = x if norm is None else rows.rms_norm(x, norm, 1e-5)
        low, high = np.split(cpu.spread_head(x, norm, 1e-5, head_dim), 2)
        got = np.concatenate([low[: n // 2], high[: n // 2]])
        assert cases.error(got, expected) <= TOLERANCE["rms_norm"]
        assert not low[n // 2 :].any() and not high[n // 2 :].any()


@pytest.mark.parametrize("activation", ACTS)
def test_gated(cpu: ModuleType, activation: str) -> None:
    gate = np.concatenate([np.linspace(-12, 12, 480), normal(32, 7)]).astype(np.float32)
    up = normal(512, 8)
    expected = ACTS[activation](gate) * up
    assert cases.error(cpu.gated(gate, up, activation), expected) <= TOLERANCE["gated"]


@pytest.mark.parametrize("activation", ACTS)
def test_gated_at_the_ends(cpu: ModuleType, activation: str) -> None:
    ends = np.array([0, -0.0, 100, -100, 30, -30, 1e4, -1e4, 1e-30, -1e-30], np.float32)
    gate = np.resize(ends, 32)
    got = cpu.gated(gate, np.ones(32, np.float32), activation)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, ACTS[activation](gate), rtol=2e-6, atol=1e-12)


def test_exp(cpu: ModuleType) -> None:
    x = np.linspace(-87, 88, 16 * 4000).astype(np.float32)
    x[0] = 0
    exact = np.exp(x.astype(np.float64))
    got = cpu.exp(x)
    assert np.abs(got / exact - 1).max() <= TOLERANCE["exp"]
    assert got[0] == 1, "exp(0) is 1 to the bit: merging a partial with itself relies on it"
    ends = cpu.exp(np.resize(np.array([-np.inf, -1e30, -88, 89, 1e30, np.inf], np.float32), 16))
    assert np.isfinite(ends).all() and (ends > 0).all()


@pytest.mark.parametrize("n_experts", [2, 8, 60, 128])
@pytest.mark.parametrize("norm_topk", [False, True])
def test_top_experts(cpu: ModuleType, n_experts: int, norm_topk: bool) -> None:
    for n_used in {1, 2, min(8, n_experts), n_experts}:
        logits = normal(n_experts, n_used, 3.0)
        chosen, weights = cpu.top_experts(logits, n_used, norm_topk)
        (best,), (expected,) = rows.top_experts(logits[None], n_used, norm_topk)
        np.testing.assert_array_equal(chosen, best)
        assert cases.error(weights, expected) <= TOLERANCE["top_experts"]
        assert (np.diff(weights) <= 0).all()


def test_top_experts_prefers_the_lower_index_on_ties(cpu: ModuleType) -> None:
    logits = np.array([1, 3, 2, 3, 3, 1, 2, 3], np.float32)
    assert cpu.top_experts(logits, 5, True)[0].tolist() == [1, 3, 4, 7, 2]
    assert cpu.top_experts(np.zeros(64, np.float32), 8, False)[0].tolist() == list(range(8))


def test_top_experts_with_far_logits(cpu: ModuleType) -> None:
    logits = np.array([1000, -1000, 999, 0], np.float32)
    chosen, weights = cpu.top_experts(logits, 4, True)
    assert chosen.tolist() == [0, 2, 1, 3], "shares of zero are still taken once each"
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.step])
def test_embedding_row(cpu: ModuleType, name: str) -> None:
    n_rows, n_cols = 37, 2 * FORMATS[name].step + (32 if FORMATS[name].step == 32 else 0)
    packed = cases.matrix(name, n_rows, n_cols)
    values = FORMATS[name].unpack(packed, n_rows, n_cols)
    for row in range(n_rows):
        got = cpu.embedding_row(name, packed, n_cols, row, 1.0)
        assert cases.error(got, values[row]) <= TOLERANCE["embedding_row"]
    got = cpu.embedding_row(name, packed, n_cols, 36, 24.0)
    assert cases.error(got, values[36] * np.float64(24)) <= TOLERANCE["embedding_row"]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=32, max_size=32
    )
)
def test_quantize_stays_within_half_a_step(cpu: ModuleType, values: list[float]) -> None:
    x = np.array(values, np.float32)
    codes, scales, _ = cpu.quantize(x)
    assert np.isfinite(scales).all()
    if scales[0] >= 2.0**-126:
        back = codes.astype(np.float64) * scales[0]
        assert np.abs(back - x).max() <= 0.5001 * scales[0]
