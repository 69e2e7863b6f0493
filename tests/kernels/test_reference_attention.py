"""The references of attention and routing against loops over Python floats."""

import math

import numpy as np
import pytest

from hga.kernels.reference import attention, sketch


def data(n_tokens: int, n_heads: int, n_kv: int, head_dim: int, n_keys: int) -> tuple:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((n_tokens, n_heads, head_dim)).astype(np.float32)
    k, v = rng.standard_normal((2, n_keys, n_kv, head_dim)).astype(np.float32)
    return q, k, v


def test_attend() -> None:
    q, k, v = data(3, 4, 2, 5, 7)
    visible = attention.causal(4, 3, 0)
    got = attention.attend(q, k, v, visible)
    for t in range(3):
        for h in range(4):
            seen = [s for s in range(7) if s <= 4 + t]
            weights = [math.exp(float(q[t, h] @ k[s, h // 2])) for s in seen]
            out = sum(w * v[s, h // 2].astype(float) for w, s in zip(weights, seen, strict=True))
            np.testing.assert_allclose(got[t, h], out / sum(weights), rtol=1e-5)


def test_heads_may_see_different_tokens() -> None:
    q, k, v = data(1, 4, 2, 5, 7)
    visible = np.zeros((1, 4, 7), bool)
    for head in range(4):
        visible[0, head, head : head + 2] = True
    got = attention.attend(q, k, v, visible)
    for head in range(4):
        alone = attention.attend(
            q[:, head : head + 1],
            k[head : head + 2, head // 2 : head // 2 + 1],
            v[head : head + 2, head // 2 : head // 2 + 1],
            np.ones((1, 2), bool),
        )
        np.testing.assert_allclose(got[:, head], alone[:, 0], rtol=1e-6)


@pytest.mark.parametrize("window", [0, 1, 3, 100])
def test_causal(window: int) -> None:
    got = attention.causal(5, 4, window)
    assert got.shape == (4, 9)
    for t in range(4):
        for s in range(9):
            assert got[t, s] == (s <= 5 + t and (not window or 5 + t - s < window))


@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_rotation_keeps_products(head_dim: int) -> None:
    q, k, _ = data(1, 1, 1, head_dim, 50)
    turned = sketch.rotate(q[0, 0]) @ sketch.rotate(k[:, 0]).T
    np.testing.assert_allclose(turned, q[0, 0] @ k[:, 0].T, atol=1e-4)


def test_sketches_estimate_products() -> None:
    """Two bits leave about a third of a key's length as error; the estimate has no bias."""
    q, k, _ = data(1, 1, 1, 128, 2000)
    codes, scales = sketch.sketch_keys(k[:, 0])
    assert set(np.unique(codes)) == {0, 1, 2, 3}
    query, scale = sketch.sketch_query(q[0, 0])
    estimate = ((codes - 1.5) @ query) * scales * scale
    exact = k[:, 0].astype(np.float64) @ q[0, 0]
    assert np.corrcoef(estimate, exact)[0, 1] > 0.93
    assert np.polyfit(exact, estimate, 1)[0] == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("bits", [1, 2])
def test_log_masses(tables: bool, bits: int) -> None:
    q, k, _ = data(1, 4, 2, 32, 40)
    got = sketch.log_masses(q[0], k, 16, tables, bits)
    assert got.shape == (4, 3)
    for head in range(4):
        logits = sketch.estimates(q[0, head], k[:, head // 2], tables, bits)
        for group in range(3):
            # Powers and their logarithm are coarse: each up to 6 %, one up, one down.
            expected = math.log(sum(map(math.exp, logits[16 * group : 16 * group + 16])))
            assert got[head, group] == pytest.approx(expected, abs=0.062)


@pytest.mark.parametrize("bits", [1, 2])
def test_tables_and_codes_estimate_alike(bits: int) -> None:
    q, k, _ = data(1, 1, 1, 128, 500)
    codes = sketch.estimates(q[0, 0], k[:, 0], False, bits)
    tables = sketch.estimates(q[0, 0], k[:, 0], True, bits)
    assert np.abs(tables - codes).max() < 0.12 * codes.std()


def test_one_bit_estimates_products() -> None:
    """One bit loses more, and has no bias: a key's product with itself is right."""
    q, k, _ = data(1, 1, 1, 128, 2000)
    exact = k[:, 0].astype(np.float64) @ q[0, 0]
    estimate = sketch.estimates(q[0, 0], k[:, 0], True, 1)
    assert 0.75 < np.corrcoef(estimate, exact)[0, 1] < 0.9
    own = np.array([sketch.estimates(x, x[None], False, 1)[0] / (x @ x) for x in k[:50, 0]])
    assert own == pytest.approx(1, abs=0.05)


def test_shares() -> None:
    masses = np.log(np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 0.0001]]))
    got = sketch.shares(np.concatenate([masses, masses[:1]]), 2)
    np.testing.assert_allclose(got[0], [[0.25, 0.75], [0.5, 0.5]], atol=0.015)
    np.testing.assert_allclose(got[1], [[1, 0], [0.25, 0.75]], atol=0.015)
    np.testing.assert_allclose(got.sum(2), 1)


def test_rounded_scales() -> None:
    scales = np.float32([0, 1e-9, 2**-7, 1, 1 + 1 / 16, 1.03, 1.04, 200, 1e9])
    got = sketch.round_scale(scales)
    assert got.tolist() == [0, 2**-7, 2**-7, 1, 1 + 1 / 16, 1, 1 + 1 / 16, 200, 248]


def test_select() -> None:
    part = np.array([[9.0, 1, 2, 3, 2, 1, 0, 9], [0.0, 0, 0, 0, 0, 0, 0, 0]])[:, None]
    assert sketch.select(part, 1, 1, 2, 2) == ((0, 2, 3, 7), (0, 1, 2, 7))
    assert sketch.select(part, 1, 1, 6, 6) == (tuple(range(8)),) * 2
    assert sketch.select(part, 4, 16, 100, 100) == (tuple(range(8)),) * 2
    # Those that reach a share, within limits.
    assert sketch.select(part, 1, 1, 0, 6, 2.0) == ((0, 2, 3, 4, 7), (0, 7))
    assert sketch.select(part, 1, 1, 1, 2, 2.0) == ((0, 2, 3, 7), (0, 1, 7))
