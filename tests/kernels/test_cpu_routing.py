"""Key sketches, the masses they estimate, and the groups chosen from them."""

from types import ModuleType

import numpy as np
import pytest

from hga.kernels import cases
from hga.kernels.cases import ROUTES, TOLERANCE, AttentionCase, RouteCase
from hga.kernels.reference import sketch as reference

HEAD_DIMS = (32, 64, 96, 128, 160, 256, 512)


def test_log(cpu: ModuleType) -> None:
    x = np.concatenate([np.linspace(1, 17, 8000), np.geomspace(1, 1e30, 7984)]).astype(np.float32)
    exact = np.log(x.astype(np.float64))
    assert np.abs(cpu.log(x) - exact).max() <= TOLERANCE["log"] * exact.max()
    near = x <= 17
    assert np.abs(cpu.log(x) - exact)[near].max() <= 3e-7


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_is_orthogonal(cpu: ModuleType, head_dim: int) -> None:
    identity = np.eye(head_dim, dtype=np.float32)
    matrix = np.stack([cpu.rotate(row) for row in identity])
    np.testing.assert_allclose(matrix @ matrix.T, identity, atol=1e-5)
    assert cases.error(matrix, reference.rotate(identity)) <= TOLERANCE["rotate"]


def decode(blocks: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [groups, 16, D] and scales [groups, 16], straight from the layout in sketch.py."""
    words = blocks[:, : 4 * head_dim].view("<u4").reshape(len(blocks), head_dim // 16, 16)
    codes = np.zeros((len(blocks), 16, head_dim), np.int64)
    for d in range(head_dim):
        j, s, b = d // 16, d % 16 // 4, d % 4
        codes[:, :, d] = words[:, j] >> (8 * b + 2 * s) & 3
    return codes, blocks[:, 4 * head_dim :].view("<f2").astype(np.float32)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_key_sketches(cpu: ModuleType, head_dim: int) -> None:
    k, _ = cases.keys_and_values(AttentionCase(2, 2, head_dim, 150))
    blocks = cpu.sketch_keys(k)
    expected_codes, expected_scales = reference.sketch_keys(k)
    for head in range(2):
        codes, scales = decode(blocks[head], head_dim)
        codes, scales = codes.reshape(-1, head_dim)[:150], scales.reshape(-1)[:150]
        np.testing.assert_allclose(scales, expected_scales[:, head], rtol=1e-3)
        # A value on the border of two cells may fall to either side.
        assert (codes != expected_codes[:, head]).mean() <= 1e-3
    assert (decode(blocks[:, 9], head_dim)[0][:, 6:] == 3).all(), "a token wrote into another's"


def test_sketches_of_zeros_and_of_huge_keys_are_finite(cpu: ModuleType) -> None:
    k = np.zeros((3, 1, 64), np.float32)
    k[1], k[2] = 6e4, 1e-7
    masses = cpu.log_masses(cpu.sketch_keys(k)[0], 3, cpu.sketch_queries(k[:, 0] * 1e-3))
    assert np.isfinite(masses).all()
    np.testing.assert_allclose(masses[0, 0], np.log(3), rtol=1e-6)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_log_masses(cpu: ModuleType, head_dim: int, rows: int) -> None:
    case = RouteCase(rows, 1, head_dim, 300, 1)
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    got = cpu.log_masses(cpu.sketch_keys(k)[0], 300, cpu.sketch_queries(q))
    expected = reference.log_masses(q, k, 16)
    off = np.abs(got[:, :19] - expected)
    # One key's code on a border moves its group's mass a little.
    assert np.median(off) <= 1e-5 and off.max() <= 0.02
    assert (got[:, 19:] < -1e29).all(), "groups without tokens have no mass"


def test_masses_do_not_depend_on_the_rows_beside(cpu: ModuleType) -> None:
    case = RouteCase(5, 1, 64, 300, 1)
    k, _ = cases.keys_and_values(case)
    blocks, queries = cpu.sketch_keys(k)[0], cpu.sketch_queries(cases.queries(case, 1)[0])
    together = cpu.log_masses(blocks, 300, queries)
    for row in range(5):
        alone = cpu.log_masses(blocks, 300, queries[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


def test_tokens_beyond_the_end_do_not_count(cpu: ModuleType) -> None:
    case = RouteCase(2, 1, 64, 300, 1)
    k, _ = cases.keys_and_values(case)
    queries = cpu.sketch_queries(cases.queries(case, 1)[0])
    blocks = cpu.sketch_keys(k)[0]
    for n_tokens in (1, 16, 17, 289):
        fresh = cpu.sketch_keys(k[:n_tokens])[0]
        got = cpu.log_masses(blocks, n_tokens, queries)[:, : len(fresh)]
        np.testing.assert_array_equal(got, cpu.log_masses(fresh, n_tokens, queries))


@pytest.mark.parametrize("n_groups", [1, 15, 16, 17, 100])
def test_pooled_shares(cpu: ModuleType, n_groups: int) -> None:
    masses = np.full((3, -(-n_groups // 16) * 16), -1e30, np.float32)
    masses[:, :n_groups] = np.random.default_rng(0).standard_normal((3, n_groups)) * 4
    # A head of another temperature: shares are pooled, not logits.
    masses[2, :n_groups] += 50
    expected = reference.pooled_shares(masses[:, :n_groups].astype(np.float64), 1)[0]
    assert cases.error(cpu.pool_shares(masses, n_groups), expected) <= TOLERANCE["shares"]


@pytest.mark.parametrize("seed", range(40))
def test_selection(cpu: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_groups = int(rng.integers(3, 400))
    n_sinks, n_window = int(rng.integers(0, 3)), int(rng.integers(0, 2))
    between = n_groups - n_sinks - n_window
    n_select = int(rng.integers(1, between)) if between > 1 else 1
    # Few distinct values: ties everywhere.
    pooled = rng.integers(0, rng.choice([1, 3, 1000]), n_groups).astype(np.float32)
    got = cpu.select_groups(pooled, n_sinks, n_groups - n_window, n_select)
    (expected,) = reference.select(pooled[None].astype(np.float64), n_select, n_sinks, n_window)
    assert got == expected


def test_selection_prefers_the_earlier_group_on_ties(cpu: ModuleType) -> None:
    pooled = np.array([0, 5, 7, 5, 5, 9, 5, 0], np.float32)
    assert cpu.select_groups(pooled, 1, 7, 4) == (0, 1, 2, 3, 5, 7)


@pytest.mark.parametrize("case", ROUTES, ids=str)
def test_route(cpu: ModuleType, case: RouteCase) -> None:
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    n_groups, rows = -(-case.context // 16), case.heads // case.kv_heads
    blocks, queries = cpu.sketch_keys(k), cpu.sketch_queries(q)
    pooled = reference.pooled_shares(reference.log_masses(q, k, 16), case.kv_heads)
    expected = reference.select(pooled, case.select, case.sinks, case.window)
    for head in range(case.kv_heads):
        own = np.ascontiguousarray(queries[head * rows : (head + 1) * rows])
        shares = cpu.pool_shares(cpu.log_masses(blocks[head], case.context, own), n_groups)
        got = cpu.select_groups(shares, case.sinks, n_groups - case.window, case.select)
        assert len(got) == len(expected[head]) == len(set(got))
        assert got == tuple(sorted(got)) and got[-1] < n_groups
        swapped = sorted(set(got) ^ set(expected[head]))
        threshold = min(pooled[head][list(expected[head][case.sinks : -case.window])])
        # Only groups at the threshold may change places.
        np.testing.assert_allclose(pooled[head][swapped], threshold, rtol=1e-3)
