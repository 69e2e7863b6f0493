"""Paged attention against plain softmax attention, in memory that is NaN where nobody wrote."""

from types import ModuleType

import numpy as np
import pytest

from hga.kernels import cases
from hga.kernels.cases import ATTENTION, TOLERANCE, AttentionCase
from hga.kernels.reference import attention as reference

SPAN_GROUPS, GROUP, TILE_ROWS = 32, 8, 96


def attend(cpu: ModuleType, pages, q, position: int, window: int, groups=None) -> np.ndarray:
    """[T, H, D]: token after token through spans of 32 groups, as decoding does."""
    share = q.shape[1] // pages.kv_heads
    out = np.zeros_like(q)
    for t, token in enumerate(q):
        high = position + t + 1
        low = max(0, high - window) if window else 0
        n_groups = -(-high // GROUP) if groups is None else len(groups)
        first = low // 256 * SPAN_GROUPS if groups is None else 0
        for head in range(pages.kv_heads):
            rows = slice(head * share, (head + 1) * share)
            partials = [
                cpu.attend_span(pages, head, token[rows], low, high, start, n_groups, groups)
                for start in range(first, n_groups, SPAN_GROUPS)
            ]
            for j in range(share):
                out[t, head * share + j] = cpu.finish(cpu.merge([p[j] for p in partials]))
    return out


def attend_tiles(cpu: ModuleType, pages, q, position: int, window: int, size=None) -> np.ndarray:
    """[T, H, D]: tiles of query tokens with all heads of a KV head, as prompts do."""
    share = q.shape[1] // pages.kv_heads
    size = size or max(1, TILE_ROWS // share)
    out = np.zeros_like(q)
    for start in range(0, len(q), size):
        for head in range(pages.kv_heads):
            rows, tile = slice(head * share, (head + 1) * share), q[start : start + size]
            got = cpu.attend_tile(pages, head, tile, position + start, window)
            out[start : start + size, rows] = got
    return out


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(cpu: ModuleType, case: AttentionCase, int8: bool) -> None:
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, case.tokens)
    position = case.context - case.tokens
    pages = cpu.Pages(k, v, int8=int8)
    k, v = pages.stored()
    got = attend(cpu, pages, q, position, case.window)
    visible = reference.causal(position, case.tokens, case.window)
    assert cases.error(got, reference.attend(q, k, v, visible)) <= TOLERANCE["attend"]
    np.testing.assert_array_equal(attend_tiles(cpu, pages, q, position, case.window), got)


@pytest.mark.parametrize("size", [1, 2, 5, 13, 24])
@pytest.mark.parametrize("window", [0, 1, 40, 300])
def test_tiles_change_no_bit(cpu: ModuleType, size: int, window: int) -> None:
    case = AttentionCase(4, 1, 32, 540)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 60)
    pages = cpu.Pages(k, v)
    expected = attend_tiles(cpu, pages, q, 480, window)
    np.testing.assert_array_equal(attend_tiles(cpu, pages, q, 480, window, size), expected)


@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_records_lie_where_the_document_says(cpu: ModuleType, head_dim: int) -> None:
    case = AttentionCase(2, 2, head_dim, 150)
    k, v = cases.keys_and_values(case)
    pages = cpu.Pages(k, v)
    for group in range(19):
        for head in range(2):
            keys, values = pages.record(group, head)
            n = min(8, 150 - 8 * group)
            np.testing.assert_array_equal(keys[:, :n].T, k[8 * group : 8 * group + n, head])
            np.testing.assert_array_equal(values[:n], v[8 * group : 8 * group + n, head])
            assert np.isnan(keys[:, n:]).all() and np.isnan(values[n:]).all()
    written = np.count_nonzero(~np.isnan(pages.memory))
    assert written == 2 * k.size, "nothing else was written"


def test_int8_is_the_nearest_multiple_of_a_scale(cpu: ModuleType) -> None:
    case = AttentionCase(2, 2, 64, 150)
    k, v = cases.keys_and_values(case)
    k[:, :, 7] *= 30
    k[5], v[5], v[6] = 0, 1e-9, 1e5
    pages = cpu.Pages(k, v, int8=True)
    for given, stored in zip((k, v), pages.stored(), strict=True):
        scale = np.abs(given).max(-1, keepdims=True) / 127
        assert (np.abs(stored - given) <= 0.51 * np.maximum(scale, 2**-14)).all()
        assert (np.abs(stored).max(-1) >= 0.99 * np.abs(given).max(-1) - 2**-14).all()
    assert np.count_nonzero(pages.memory != -128) == 2 * k.size, "nothing else was written"
    assert np.count_nonzero(~np.isnan(pages.scales)) == 2 * 2 * 150


def test_append_holds_what_float16_cannot(cpu: ModuleType) -> None:
    k = np.full((1, 1, 32), 1e6, np.float32)
    keys, values = cpu.Pages(k, -k).record(0, 0)
    assert (keys[:, 0] == 65504).all() and (values[0] == -65504).all()


def test_a_list_of_groups_equals_the_run_of_them(cpu: ModuleType) -> None:
    case = AttentionCase(4, 2, 64, 700)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)
    pages = cpu.Pages(k, v)
    every = np.arange(88, dtype=np.int32)
    np.testing.assert_array_equal(
        attend(cpu, pages, q, 699, 0, every), attend(cpu, pages, q, 699, 0)
    )


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize(
    "groups", [[0, 1, 5, 6, 17, 30, 61, 84, 87], [87], [0, 3, 6, 87], range(0, 88, 2), [3, 9]]
)
def test_chosen_groups(cpu: ModuleType, groups: list[int], int8: bool) -> None:
    case = AttentionCase(6, 2, 64, 700)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)
    visible = np.isin(np.arange(700) // 8, groups)[None]
    pages = cpu.Pages(k, v, int8=int8)
    k, v = pages.stored()
    got = attend(cpu, pages, q, 699, 0, np.array(groups, np.int32))
    assert cases.error(got, reference.attend(q, k, v, visible)) <= TOLERANCE["attend"]


def test_a_row_does_not_depend_on_its_company(cpu: ModuleType) -> None:
    case = AttentionCase(4, 1, 32, 300, 20)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 20)
    pages = cpu.Pages(k, v)
    together = attend_tiles(cpu, pages, q, 280, 0)
    for row in range(4):
        # A single head in place of four: other rows beside it in the registers.
        alone = attend_tiles(cpu, pages, np.ascontiguousarray(q[:, row : row + 1]), 280, 0)
        np.testing.assert_array_equal(alone[:, 0], together[:, row])


def test_scores_of_any_size_are_finite(cpu: ModuleType) -> None:
    case = AttentionCase(2, 1, 32, 300)
    k, v = cases.keys_and_values(case)
    for scale in (0, 1e-3, 30, 1000):
        q = cases.queries(case, 1) * np.float32(scale)
        visible = reference.causal(299, 1, 0)
        expected = reference.attend(q, k, v, visible)
        # e^x of a score in the hundreds is off by some units of the score's last place.
        limit = TOLERANCE["attend"] * max(1, scale)
        pages = cpu.Pages(k, v)
        assert cases.error(attend(cpu, pages, q, 299, 0), expected) <= limit
        assert cases.error(attend_tiles(cpu, pages, q, 299, 0), expected) <= limit


def partials(cpu: ModuleType, n: int) -> list[np.ndarray]:
    case = AttentionCase(1, 1, 64, 256 * n)
    k, v = cases.keys_and_values(case)
    # Spans of very different weight.
    k *= np.repeat(np.linspace(0.2, 4, n), 256)[:, None, None].astype(np.float32)
    q = cases.queries(case, 1)[0]
    pages = cpu.Pages(k, v)
    return [cpu.attend_span(pages, 0, q, 0, 256 * n, 32 * i, 32 * n)[0] for i in range(n)]


def test_spans_merge_in_any_order(cpu: ModuleType) -> None:
    parts = partials(cpu, 6)
    expected = cpu.finish(cpu.merge(parts))
    rng = np.random.default_rng(0)
    for _ in range(20):
        got = cpu.finish(cpu.merge([parts[i] for i in rng.permutation(len(parts))]))
        assert cases.error(got, expected) <= TOLERANCE["merge"]


def test_merging_is_associative(cpu: ModuleType) -> None:
    parts = partials(cpu, 4)
    pairs = [cpu.merge(parts[:2]), cpu.merge(parts[2:])]
    got = cpu.finish(cpu.merge(pairs))
    assert cases.error(got, cpu.finish(cpu.merge(parts))) <= TOLERANCE["merge"]


def test_the_neutral_element_changes_no_bit(cpu: ModuleType) -> None:
    (part,) = partials(cpu, 1)
    alone = cpu.merge([part])
    np.testing.assert_array_equal(alone[16:], part[16:])
    np.testing.assert_array_equal(alone[:2], part[:2])
    nothing = cpu.neutral(64)
    for order in ([nothing, part], [part, nothing], [nothing, part, nothing]):
        np.testing.assert_array_equal(cpu.merge(order), alone)


@pytest.mark.parametrize(("low", "high"), [(0, 256), (100, 200), (0, 512), (250, 300), (256, 257)])
def test_a_span_without_visible_tokens_is_neutral(cpu: ModuleType, low: int, high: int) -> None:
    case = AttentionCase(4, 1, 32, 512)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    pages = cpu.Pages(k, v)
    first, second = (cpu.attend_span(pages, 0, q, low, high, g, 64) for g in (0, 32))
    seen = np.zeros((1, 512), bool)
    seen[:, low:high] = True
    expected = reference.attend(q[None], k, v, seen)[0]
    for row in range(4):
        both = cpu.merge([first[row], second[row]])
        assert cases.error(cpu.finish(both), expected[row]) <= TOLERANCE["attend"]
        if high <= 256:
            np.testing.assert_array_equal(both, cpu.merge([first[row]]))
        if low >= 256:
            np.testing.assert_array_equal(both, cpu.merge([second[row]]))


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("groups", [[0], [0, 7], [1, 2, 3, 9, 11, 30, 31], list(range(40))])
def test_a_tile_reads_listed_groups_and_what_follows(
    cpu: ModuleType, rows: int, groups: list[int]
) -> None:
    case = AttentionCase(2 * rows, 2, 64, 600, 12)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 12)
    seen = reference.causal(588, 12, 0)
    seen &= np.isin(np.arange(600) // 8, groups) | (np.arange(600) >= 400)
    expected = reference.attend(q, k, v, seen)
    pages = cpu.Pages(k, v)
    for head in range(2):
        got = cpu.attend_tile(pages, head, q, 588, 0, groups, 400)
        own = expected[:, rows * head : rows * head + rows]
        assert cases.error(got, own) <= TOLERANCE["attend"]
