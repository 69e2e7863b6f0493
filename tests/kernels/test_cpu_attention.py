"""Paged attention against plain softmax attention, in memory that is NaN where nobody wrote."""

from types import ModuleType

import numpy as np
import pytest

from hga.kernels import cases
from hga.kernels.cases import ATTENTION, TOLERANCE, AttentionCase
from hga.kernels.reference import attention as reference

SPAN_GROUPS = 32


def attend(cpu: ModuleType, pages, q, position: int, window: int, groups=None) -> np.ndarray:
    """[T, H, D]: every row through spans of 32 groups, four rows at a time as the kernels do."""
    n_tokens, n_heads = q.shape[:2]
    share = n_heads // pages.kv_heads
    out = np.zeros_like(q)
    for head in range(pages.kv_heads):
        rows = [(t, head * share + r) for t in range(n_tokens) for r in range(share)]
        for i in range(0, len(rows), 4):
            four = [rows[min(i + j, len(rows) - 1)] for j in range(4)]
            high = [position + t + 1 for t, _ in four]
            low = [max(0, h - window) if window else 0 for h in high]
            n_groups = -(-max(high) // 8) if groups is None else len(groups)
            first = min(low) // 256 * SPAN_GROUPS if groups is None else 0
            partials = [
                cpu.attend_span(
                    pages,
                    head,
                    np.stack([q[t, h] for t, h in four]),
                    low,
                    high,
                    start,
                    min(SPAN_GROUPS, n_groups - start),
                    groups,
                )
                for start in range(first, n_groups, SPAN_GROUPS)
            ]
            for j, (t, h) in enumerate(rows[i : i + 4]):
                out[t, h] = cpu.finish(cpu.merge([p[j] for p in partials]))
    return out


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(cpu: ModuleType, case: AttentionCase) -> None:
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, case.tokens)
    position = case.context - case.tokens
    got = attend(cpu, cpu.Pages(k, v), q, position, case.window)
    visible = reference.causal(position, case.tokens, case.window)
    assert cases.error(got, reference.attend(q, k, v, visible)) <= TOLERANCE["attend"]


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


def test_chosen_groups(cpu: ModuleType) -> None:
    case = AttentionCase(6, 2, 64, 700)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)
    groups = np.array([0, 1, 5, 6, 17, 30, 61, 84, 87], np.int32)
    visible = np.isin(np.arange(700) // 8, groups)[None]
    got = attend(cpu, cpu.Pages(k, v), q, 699, 0, groups)
    assert cases.error(got, reference.attend(q, k, v, visible)) <= TOLERANCE["attend"]


def test_a_row_does_not_depend_on_its_company(cpu: ModuleType) -> None:
    case = AttentionCase(4, 1, 32, 300, 20)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 20)
    pages = cpu.Pages(k, v)
    together = attend(cpu, pages, q, 280, 0)
    for t in (0, 7, 19):
        alone = attend(cpu, pages, q[t : t + 1], 280 + t, 0)
        np.testing.assert_array_equal(alone[0], together[t])


def test_scores_of_any_size_are_finite(cpu: ModuleType) -> None:
    case = AttentionCase(2, 1, 32, 300)
    k, v = cases.keys_and_values(case)
    for scale in (0, 1e-3, 30, 1000):
        q = cases.queries(case, 1) * np.float32(scale)
        got = attend(cpu, cpu.Pages(k, v), q, 299, 0)
        visible = reference.causal(299, 1, 0)
        # e^x of a score in the hundreds is off by some units of the score's last place.
        limit = TOLERANCE["attend"] * max(1, scale)
        assert cases.error(got, reference.attend(q, k, v, visible)) <= limit


def partials(cpu: ModuleType, n: int) -> list[np.ndarray]:
    case = AttentionCase(1, 1, 64, 256 * n)
    k, v = cases.keys_and_values(case)
    # Spans of very different weight.
    k *= np.repeat(np.linspace(0.2, 4, n), 256)[:, None, None].astype(np.float32)
    q = np.repeat(cases.queries(case, 1)[0], 4, 0)
    pages, end = cpu.Pages(k, v), [256 * n] * 4
    return [cpu.attend_span(pages, 0, q, [0] * 4, end, 32 * i, 32)[0] for i in range(n)]


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


def test_a_span_without_visible_tokens_is_neutral(cpu: ModuleType) -> None:
    case = AttentionCase(4, 1, 32, 512)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    pages = cpu.Pages(k, v)
    # Rows 0 and 1 end before the second span, rows 2 and 3 see some of it.
    low, high = [0, 100, 250, 0], [256, 200, 300, 512]
    first, second = (cpu.attend_span(pages, 0, q, low, high, g, 32) for g in (0, 32))
    for row in range(4):
        both, seen = cpu.merge([first[row], second[row]]), np.zeros((1, 512), bool)
        seen[:, low[row] : high[row]] = True
        expected = reference.attend(q[None, row : row + 1], k, v, seen)[0, 0]
        assert cases.error(cpu.finish(both), expected) <= TOLERANCE["attend"]
        if row < 2:
            np.testing.assert_array_equal(both, cpu.merge([first[row]]))
