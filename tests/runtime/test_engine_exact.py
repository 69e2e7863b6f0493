"""What must change no bit: how tokens are cut into calls, threads, stale memory, a full budget."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hga.runtime.engine import Engine, Session

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

# Attention kinds, weights and MLPs that run code of their own.
MODELS = (("qwen3", "Q4_0"), ("gemma3", "f32"), ("qwen3_moe", "fp8"), ("qwen3_moe", "Q4_K"))
each_model = pytest.mark.parametrize(("arch", "kind"), MODELS)


def all_logits(session: Session, ids: Sequence[int]) -> np.ndarray:
    """float32 [T, V], in blocks."""
    session.attention = "dense"
    return np.concatenate([block.copy() for block in session.score(ids)])


def decoded(session: Session, ids: Sequence[int]) -> np.ndarray:
    """float32 [T, V], token by token."""
    return np.stack([session.step(token) for token in ids])


@each_model
def test_decoding_equals_prefill(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(180)
    with open_engine(packed_tiny(arch, kind)) as engine:
        whole = all_logits(engine.session(), ids)
        session = engine.session()
        session.attention = "dense"
        np.testing.assert_array_equal(decoded(session, ids), whole)


@pytest.mark.parametrize("window", [16, 100, 300])
def test_decoding_with_a_window_beyond_a_span(
    window: int, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(600)
    with open_engine(packed_tiny("gemma3", sliding_window=window), ctx=700) as engine:
        whole = all_logits(engine.session(), ids)
        session = engine.session()
        session.attention = "dense"
        # The window begins before, on and after the borders of a span of 256.
        for first in (250, 340, 352, 550):
            session.truncate(0)
            session.feed(ids[:first])
            got = decoded(session, ids[first : first + 20])
            np.testing.assert_array_equal(got, whole[first : first + 20])


@each_model
def test_a_prompt_can_be_cut_anywhere(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids, rng = token_ids(330), np.random.default_rng(0)
    with open_engine(packed_tiny(arch, kind)) as engine:
        whole = all_logits(engine.session(), ids)
        for n_cuts in (0, 1, 2, 5, 20):
            cuts = [0, *sorted(rng.integers(0, 331, n_cuts)), 330]
            session = engine.session()
            for start, end in itertools.pairwise(cuts):
                session.feed(ids[start:end])
                if end:
                    np.testing.assert_array_equal(session.logits, whole[end - 1])
            assert session.tokens == ids


@each_model
def test_threads_change_nothing(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(130)
    results = []
    for threads in (1, 2, 3, 4):
        with open_engine(packed_tiny(arch, kind), threads=threads) as engine:
            session = engine.session()
            session.attention = "dense"
            session.feed(ids[:70])
            parts = [session.logits[None], decoded(session, ids[70:75])]
            parts.append(all_logits(session, ids[75:]))
            results.append(np.concatenate(parts))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize(("heads", "budget"), [(4, "400"), (10, "400"), (18, "60%")])
def test_threads_change_no_route(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, heads: int, budget: str
) -> None:
    ids, results = token_ids(710), []
    path = packed_tiny("qwen3_moe", num_attention_heads=heads)
    for threads in (1, 2, 3):
        options = {"threads": threads, "attention": "hga", "budget": budget, "ctx": 800}
        with open_engine(path, **options) as engine:
            session = engine.session()
            session.feed(ids[:700])
            results.append((decoded(session, ids[700:]), session.last_route()))
    for logits, route in results[1:]:
        np.testing.assert_array_equal(logits, results[0][0])
        assert route == results[0][1] and route is not None


@each_model
def test_truncated_tokens_leave_no_trace(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids, others = token_ids(200), token_ids(300, seed=1)
    with open_engine(packed_tiny(arch, kind)) as engine:
        expected = all_logits(engine.session(), ids)
        session = engine.session()
        session.feed(ids[:90])
        session.feed(others)
        for keep in (90, 64, 17, 1, 0):
            session.truncate(keep)
            np.testing.assert_array_equal(all_logits(session, ids[keep:]), expected[keep:])
            session.truncate(keep)
            session.feed(others[: 400 - keep])


def poison(session: Session) -> None:
    """Every byte that a new session and a new engine hold becomes part of a NaN."""
    arena = session._arena
    arena.reserve(session.ctx)
    for array in (*arena._slabs, *(s for s in arena.sketches if s is not None)):
        array[...] = 0xFF
    for array in session._engine.forward_pass._buffers._arrays:
        array[...] = 0xFF


@each_model
def test_unwritten_memory_does_not_leak(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(230)
    with open_engine(packed_tiny(arch, kind)) as engine:
        expected = all_logits(engine.session(), ids)
        session = engine.session()
        session.attention = "dense"
        poison(session)
        np.testing.assert_array_equal(decoded(session, ids[:20]), expected[:20])
        session.feed(ids[20:171])
        np.testing.assert_array_equal(session.logits, expected[170])
        poison_scratch = session._engine.forward_pass._buffers._arrays
        for array in poison_scratch:
            array[...] = 0xFF
        np.testing.assert_array_equal(all_logits(session, ids[171:]), expected[171:])


def test_unwritten_memory_changes_no_route(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(500)
    options = {"attention": "hga", "budget": "400"}
    with open_engine(packed_tiny("qwen3"), **options) as engine:
        results = []
        for dirty in (False, True):
            session = engine.session()
            if dirty:
                poison(session)
            session.feed(ids[:480])
            results.append((decoded(session, ids[480:]), session.last_route()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("budget", ["100%", "512", "auto", "1k"])
def test_a_full_budget_equals_dense(
    budget: str, packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(512)
    with open_engine(packed_tiny("gemma3"), attention="hga", budget=budget) as engine:
        routed, dense = engine.session(), engine.session()
        dense.attention = "dense"
        for session in (routed, dense):
            session.feed(ids[:480])
        np.testing.assert_array_equal(decoded(routed, ids[480:]), decoded(dense, ids[480:]))
        assert routed.last_route() is None


def test_sessions_do_not_see_each_other(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    first, second = token_ids(100), token_ids(100, seed=1)
    with open_engine(packed_tiny("qwen3")) as engine:
        alone = [decoded(engine.session(), ids) for ids in (first, second)]
        a, b = engine.session(), engine.session()
        for i in range(100):
            np.testing.assert_array_equal(a.step(first[i]), alone[0][i])
            np.testing.assert_array_equal(b.step(second[i]), alone[1][i])
