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


def decode(blocks: np.ndarray, head_dim: int, bits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Codes [blocks, 128, D] and scale bytes [blocks, 128], from the layout in sketch.py."""
    n, per_word = len(blocks), 32 // bits
    end = 16 * head_dim * bits
    words = blocks[:, :end].view("<u4").reshape(n, 8, head_dim // per_word, 16)
    codes = np.zeros((n, 16, 8, head_dim), np.int64)
    for d in range(head_dim):
        j, s, b = d // per_word, d % per_word // 4, d % 4
        field = words[:, :, j] >> (8 * b + bits * s) & (2**bits - 1)
        codes[:, :, :, d] = field.transpose(0, 2, 1)
    scales = blocks[:, end:].reshape(n, 8, 16).transpose(0, 2, 1)
    return codes.reshape(n, 128, head_dim), scales.reshape(n, 128)


def scale_values(codes: np.ndarray) -> np.ndarray:
    """What a scale byte says: four bits of exponent, four of fraction, 16 is 2^-7."""
    return np.where(codes > 0, (1 + codes % 16 / 16) * 2.0 ** (codes // 16 - 8.0), 0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", [1, 2])
def test_key_sketches(cpu: ModuleType, head_dim: int, bits: int) -> None:
    k, _ = cases.keys_and_values(AttentionCase(2, 2, head_dim, 150))
    k[::7] *= 30
    blocks = cpu.sketch_keys(k, bits)
    expected_codes, expected_scales = reference.sketch_keys(k, bits)
    for head in range(2):
        codes, scales = decode(blocks[head], head_dim, bits)
        codes, scales = codes.reshape(-1, head_dim)[:150], scales.reshape(-1)[:150]
        found = scale_values(scales.astype(np.int64))
        # A scale, or a value, on the border of two cells may fall to either side.
        np.testing.assert_allclose(found, expected_scales[:, head], rtol=1 / 15)
        same = found == expected_scales[:, head]
        assert same.mean() >= 0.98
        assert (codes != expected_codes[:, head])[same].mean() <= 1e-3
    rest = decode(blocks[:, 1], head_dim, bits)[0][:, 22:]
    assert (rest == 2**bits - 1).all(), "a token wrote into another's"


def test_scales_are_rounded_to_the_nearest(cpu: ModuleType) -> None:
    for scale in (1e-9, 0.004, 0.0080, 0.3, 1.0, 1.04, 77.7, 247.0, 1e4):
        k = np.zeros((1, 1, 64), np.float32)
        # One dimension is spread evenly over all by the rotation.
        k[..., 0] = scale / 1.25 * 8
        code = int(decode(cpu.sketch_keys(k)[0], 64)[1][0, 0])
        expected = reference.round_scale(np.float32([scale]))[0]
        assert scale_values(np.array(code)) == expected


def test_sketches_of_zeros_and_of_huge_keys_are_finite(cpu: ModuleType) -> None:
    k = np.zeros((3, 1, 64), np.float32)
    k[1], k[2] = 6e4, 1e-7
    masses = cpu.log_masses(cpu.sketch_keys(k)[0], 3, cpu.sketch_queries(k[:, 0] * 1e-3))
    assert np.isfinite(masses).all()
    # The coarse logarithm of 3 is 1.5 octaves; sums of one, two, four and eight are exact.
    np.testing.assert_allclose(masses[0, 0], 1.5 * np.log(2), atol=1e-6)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("bits", [1, 2])
def test_log_masses(cpu: ModuleType, head_dim: int, rows: int, bits: int) -> None:
    case = RouteCase(rows, 1, head_dim, 300, 1)
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    blocks = cpu.sketch_keys(k, bits)[0]
    got = cpu.log_masses(blocks, 300, cpu.sketch_queries(q, bits), bits)
    expected = reference.log_masses(q, k, 8, cpu.BYTE_TABLES, bits)
    off = np.abs(got[:, :38] - expected)
    # One key's code on a border moves its group's mass a little.
    assert np.median(off) <= 1e-5 and off.max() <= 0.05
    assert (got[:, 38:] < -1e29).all(), "groups without tokens have no mass"


@pytest.mark.parametrize("bits", [1, 2])
def test_masses_do_not_depend_on_the_rows_beside(cpu: ModuleType, bits: int) -> None:
    case = RouteCase(13, 1, 64, 300, 1)
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    # Some heads reach beyond what sums take as it is: the others are summed as before.
    q[2::3] *= 60
    blocks, queries = cpu.sketch_keys(k, bits)[0], cpu.sketch_queries(q, bits)
    together = cpu.log_masses(blocks, 300, queries, bits)
    for rows in (1, 2, 3, 4, 5, 8, 9):
        for first in range(0, 14 - rows, 3):
            own = np.ascontiguousarray(queries[first : first + rows])
            alone = cpu.log_masses(blocks, 300, own, bits)
            np.testing.assert_array_equal(alone, together[first : first + rows])


@pytest.mark.parametrize("head_dim", [32, 128, 512])
@pytest.mark.parametrize("bits", [1, 2])
def test_estimates_are_within_reach(cpu: ModuleType, head_dim: int, bits: int) -> None:
    """A key whose codes all agree with the query comes closest."""
    q = np.random.default_rng(1).standard_normal((20, head_dim)).astype(np.float32)
    q[0], q[1] = 0, reference.rotate(np.eye(head_dim, dtype=np.float32)[:1])
    queries = cpu.sketch_queries(q, bits)
    reach = queries[:, 4:8].copy().view(np.float32)[:, 0]
    blocks = cpu.sketch_keys(q[:, None], bits)[0]
    scales = scale_values(decode(blocks, head_dim, bits)[1].astype(np.int64))[0, :20]
    largest = np.abs(cpu.estimates(blocks[0], queries, bits))[np.arange(20), np.arange(20)]
    assert (largest <= reach * scales * (1 + 1e-6)).all()
    assert (largest[2:] >= 0.5 * reach[2:] * scales[2:]).all(), "a bound far too wide"


def test_near_masses_equal_those_of_any_size(cpu: ModuleType) -> None:
    rng = np.random.default_rng(2)
    for size in (0.1, 1.0, 10.0, 27.9):
        estimates = np.clip(rng.standard_normal((8, 16)) * size, -83.9, 83.9).astype(np.float32)
        expected = reference.group_masses(estimates.T.astype(np.float64), 8)[:, 0]
        for unit in (1.0, 2.0**-10, 0.37):
            near = cpu.log_mass_near(estimates / np.float32(unit), unit)
            np.testing.assert_allclose(near, expected, rtol=1e-6, atol=2e-5)
            far = cpu.log_mass(estimates / np.float32(unit), unit)
            np.testing.assert_allclose(far, expected, rtol=1e-6, atol=2e-5)
    far = cpu.log_mass(np.full((8, 16), 3e4, np.float32), 1.0)
    np.testing.assert_allclose(far, 3e4 + np.log(8), rtol=1e-6)


def test_tokens_beyond_the_end_do_not_count(cpu: ModuleType) -> None:
    case = RouteCase(2, 1, 64, 300, 1)
    k, _ = cases.keys_and_values(case)
    queries = cpu.sketch_queries(cases.queries(case, 1)[0])
    blocks = cpu.sketch_keys(k)[0]
    for n_tokens in (1, 8, 9, 127, 128, 289):
        fresh = cpu.sketch_keys(k[:n_tokens])[0]
        got = cpu.log_masses(blocks, n_tokens, queries)[:, : 16 * len(fresh)]
        np.testing.assert_array_equal(got, cpu.log_masses(fresh, n_tokens, queries))


@pytest.mark.parametrize("n_groups", [1, 15, 16, 17, 100])
def test_pooled_shares(cpu: ModuleType, n_groups: int) -> None:
    masses = np.full((3, -(-n_groups // 16) * 16), -1e30, np.float32)
    masses[:, :n_groups] = np.random.default_rng(0).standard_normal((3, n_groups)) * 4
    # A head of another temperature: shares are pooled, not logits.
    masses[2, :n_groups] += 50
    expected = reference.shares(masses[:, :n_groups].astype(np.float64), 1)[0]
    assert cases.error(cpu.pool_shares(masses, n_groups), expected.max(0)) <= TOLERANCE["shares"]


def test_coarse_powers(cpu: ModuleType) -> None:
    x = np.linspace(-99.9, 99.9, 16000).astype(np.float32)
    power, log = cpu.coarse_power(x)
    ratio = power / 2.0 ** x.astype(np.float64)
    assert ratio.min() >= 1 - 1e-5 and ratio.max() <= 1.0615
    np.testing.assert_allclose(power, reference.coarse_power(x), rtol=2e-5)
    np.testing.assert_allclose(log, x, atol=2e-5)
    np.testing.assert_allclose(reference.coarse_log(power.astype(np.float64)), x, atol=2e-5)
    assert (cpu.coarse_power(np.full(16, -1e30, np.float32))[0] == 2.0**-100).all()


@pytest.mark.parametrize("seed", range(60))
def test_selection(cpu: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_groups = int(rng.integers(3, 400))
    n_sinks, n_window = int(rng.integers(0, 20)) % n_groups, int(rng.integers(0, 20))
    n_window = min(n_window, n_groups - n_sinks)
    between = n_groups - n_sinks - n_window
    most = int(rng.integers(0, between + 1))
    least = int(rng.integers(0, most + 1)) if seed % 2 else most
    # Few distinct values: ties everywhere.
    shares = rng.integers(1, rng.choice([2, 4, 1000]), n_groups) / 4096
    limit = float(rng.choice(shares))
    got = cpu.select_groups(shares, n_sinks, n_groups - n_window, least, most, limit)
    part = shares[None, None]
    (expected,) = reference.select(part, n_sinks, n_window, least, most, limit)
    if n_groups > n_sinks + n_window + least:
        assert got == expected
    else:
        assert got == tuple(range(n_groups)), "everything, where that is no more than the least"


def test_selection_prefers_the_earlier_group_on_ties(cpu: ModuleType) -> None:
    shares = np.array([0, 5, 7, 5, 5, 9, 5, 0], np.float32) / 16
    assert cpu.select_groups(shares, 1, 7, 4, 4) == (0, 1, 2, 3, 5, 7)


def test_selection_takes_what_reaches_the_limit(cpu: ModuleType) -> None:
    shares = np.array([0.1, 0.5, 0.02, 0.01, 0.3, 0.03, 0.04], np.float32)
    for limit, expected in ((0.6, ()), (0.4, (1,)), (0.3, (1, 4)), (0.03, (1, 4, 5, 6))):
        assert cpu.select_groups(shares, 1, 7, 0, 6, limit) == (0, *expected)
    assert cpu.select_groups(shares, 1, 7, 2, 6, 1.0) == (0, 1, 4)
    assert cpu.select_groups(shares, 1, 7, 0, 1, 0.0) == (0, 1)


@pytest.mark.parametrize("case", ROUTES, ids=str)
def test_route(cpu: ModuleType, case: RouteCase) -> None:
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    n_groups, rows = -(-case.context // 8), case.heads // case.kv_heads
    blocks, queries = cpu.sketch_keys(k), cpu.sketch_queries(q)
    part = reference.shares(reference.log_masses(q, k, 8, cpu.BYTE_TABLES), case.kv_heads)
    expected = reference.select(part, case.sinks, case.window, case.select, case.select)
    for head in range(case.kv_heads):
        own = np.ascontiguousarray(queries[head * rows : (head + 1) * rows])
        largest = cpu.pool_shares(cpu.log_masses(blocks[head], case.context, own), n_groups)
        limits = (case.sinks, n_groups - case.window, case.select, case.select)
        got = cpu.select_groups(largest, *limits)
        assert len(got) == len(expected[head]) == len(set(got))
        assert got == tuple(sorted(got)) and got[-1] < n_groups
        swapped = sorted(set(got) ^ set(expected[head]))
        pooled = part[head].max(0)
        threshold = min(pooled[list(expected[head][case.sinks : -case.window])])
        # Only groups at the threshold may change places.
        np.testing.assert_allclose(pooled[swapped], threshold, rtol=0.02)
