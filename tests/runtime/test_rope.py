"""RoPE angles against the formulas of transformers' documentation, written out pair by pair."""

import math

import numpy as np
import pytest

from hga.models.plan import RopePlan
from hga.runtime.rope import RopeTables, inverse_frequencies

HEAD_DIMS = (32, 64, 128)


def plain(theta: float, head_dim: int) -> list[float]:
    return [1.0 / theta ** (2 * i / head_dim) for i in range(head_dim // 2)]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_none(theta: float, head_dim: int) -> None:
    got = inverse_frequencies(RopePlan(theta), head_dim)
    np.testing.assert_allclose(got, plain(theta, head_dim), rtol=1e-14)
    assert got.dtype == np.float64 and got[0] == 1


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_linear(head_dim: int) -> None:
    got = inverse_frequencies(RopePlan(1e4, "linear", 8.0), head_dim)
    np.testing.assert_allclose(got, [f / 8 for f in plain(1e4, head_dim)], rtol=1e-14)


def llama3(f: float, factor: float, low: float, high: float, original: int) -> float:
    """One frequency as Llama 3.1's model code scales it, by wavelength."""
    wavelength = 2 * math.pi / f
    if wavelength < original / high:
        return f
    if wavelength > original / low:
        return f / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * f / factor + smooth * f


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 8192), (4.0, 512)])
def test_llama3(head_dim: int, factor: float, original: int) -> None:
    rope = RopePlan(5e5, "llama3", factor, original, 1.0, 4.0)
    frequencies = plain(5e5, head_dim)
    expected = [llama3(f, factor, 1.0, 4.0, original) for f in frequencies]
    np.testing.assert_allclose(inverse_frequencies(rope, head_dim), expected, rtol=1e-12)
    assert expected[0] == frequencies[0] and expected[-1] == frequencies[-1] / factor


def yarn(head_dim: int, theta: float, factor: float, original: int, fast: float, slow: float):
    """The paper's ramp between interpolated and unchanged frequencies, as transformers has it."""

    def correction(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(correction(fast)), 0)
    high = min(math.ceil(correction(slow)), head_dim - 1)
    out = []
    for i, f in enumerate(plain(theta, head_dim)):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        keep = 1 - ramp
        out.append((f / factor) * (1 - keep) + f * keep)
    return out


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("factor", "original"), [(4.0, 32768), (2.5, 4096)])
def test_yarn(head_dim: int, factor: float, original: int) -> None:
    rope = RopePlan(1e6, "yarn", factor, original, beta_fast=32.0, beta_slow=1.0)
    expected = yarn(head_dim, 1e6, factor, original, 32.0, 1.0)
    got = inverse_frequencies(rope, head_dim)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert got[0] == 1, "the fastest pair is left alone"
    np.testing.assert_allclose(got[-1], plain(1e6, head_dim)[-1] / factor, rtol=1e-12)


def test_yarn_with_a_ramp_of_no_width() -> None:
    rope = RopePlan(1e6, "yarn", 4.0, 16, beta_fast=1.0, beta_slow=1.0)
    assert np.isfinite(inverse_frequencies(rope, 64)).all()


def test_tables() -> None:
    yarned = RopePlan(1e6, "yarn", 4.0, 4096, beta_fast=32.0, beta_slow=1.0, attention_factor=1.139)
    plans = ((RopePlan(1e4), 32), (yarned, 128))
    tables = RopeTables(plans, 8)
    for position, n_tokens in ((0, 8), (131_072, 3), (5, 1)):
        tables.fill(position, n_tokens)
        for i, (rope, head_dim) in enumerate(plans):
            for t in range(n_tokens):
                for pair, f in enumerate(inverse_frequencies(rope, head_dim)):
                    angle = (position + t) * float(f)
                    cos, sin = tables.cos[i, t, pair], tables.sin[i, t, pair]
                    assert cos == pytest.approx(rope.attention_factor * math.cos(angle), abs=1e-6)
                    assert sin == pytest.approx(rope.attention_factor * math.sin(angle), abs=1e-6)


def test_a_rotation_depends_on_the_distance_alone() -> None:
    tables, rng = RopeTables(((RopePlan(1e4), 64),), 200), np.random.default_rng(0)
    tables.fill(0, 200)
    q, k = rng.standard_normal((2, 64))

    def turned(x: np.ndarray, t: int) -> np.ndarray:
        a, b = np.split(x, 2)
        cos, sin = tables.cos[0, t].astype(float), tables.sin[0, t].astype(float)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin])

    first = turned(q, 57) @ turned(k, 20)
    assert turned(q, 187) @ turned(k, 150) == pytest.approx(first, abs=1e-4)
