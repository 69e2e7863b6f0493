"""Routed prompts: units of 64 tokens read one choice of groups, for any cut and threads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hga.kernels.reference import attention, sketch
from hga.kernels.reference.model import Reference
from hga.kvstore.route import NO_UNITS, PREFILL_UNITS, Units
from hga.runtime import session as session_module
from hga.runtime.container import ModelFile
from hga.runtime.engine import Engine, Session
from hga.runtime.rope import inverse_frequencies

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

# Routing from position 128 on: 1 sink group, 32 tokens before a unit, a quarter of the past.
SMALL = Units(1, 32, 4, 0.25, 128)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PREFILLS", {"exact": NO_UNITS, "hga": SMALL})


@pytest.fixture(scope="module")
def engine(packed_tiny: Packed, open_engine: Opened) -> Iterator[Engine]:
    path = packed_tiny("qwen3", num_attention_heads=6, head_dim=64)
    with open_engine(path, attention="dense", ctx=2000) as opened:
        yield opened


def fed(engine: Engine, ids: list[int], prefill: str, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits after each of the pieces that the cuts make of a prompt."""
    with engine.session() as session:
        session.prefill = prefill
        logits = []
        for start, end in zip((0, *cuts), (*cuts, len(ids)), strict=True):
            session.feed(ids[start:end])
            logits.append(session.logits.copy())
    return np.stack(logits)


def test_short_prompts_are_exact(engine: Engine, token_ids: Ids) -> None:
    ids = token_ids(1500)
    assert PREFILL_UNITS.exact_tokens >= 1500
    np.testing.assert_array_equal(fed(engine, ids, "hga"), fed(engine, ids, "exact"))


def test_everything_read_is_exact(
    engine: Engine, token_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, everything = token_ids(700), Units(1, 32, 4, 1.0, 0)
    monkeypatch.setattr(session_module, "PREFILLS", {"exact": NO_UNITS, "hga": everything})
    np.testing.assert_array_equal(fed(engine, ids, "hga"), fed(engine, ids, "exact"))


def test_less_is_read_of_a_long_prompt(engine: Engine, token_ids: Ids, small_units: None) -> None:
    ids = token_ids(700)
    assert np.abs(fed(engine, ids, "hga") - fed(engine, ids, "exact")).max() > 1e-3


def test_cuts_at_units_change_nothing(engine: Engine, token_ids: Ids, small_units: None) -> None:
    ids = token_ids(900)
    whole = fed(engine, ids, "hga")[-1]
    for cuts in ((64,), (192, 256), (448, 512, 832)):
        np.testing.assert_array_equal(fed(engine, ids, "hga", cuts)[-1], whole)


def test_threads_change_nothing(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, small_units: None
) -> None:
    ids, results = token_ids(800), []
    for threads in (1, 2, 3):
        with open_engine(packed_tiny("qwen3_moe"), threads=threads, ctx=1000) as engine:
            results.append(fed(engine, ids, "hga")[-1])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_sliding_layers_are_as_ever(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, small_units: None
) -> None:
    with open_engine(packed_tiny("gemma3", sliding_window=40), ctx=800) as engine:
        ids = token_ids(700)
        assert np.isfinite(fed(engine, ids, "hga")).all()


def expected_groups(q: np.ndarray, k: np.ndarray, start: int) -> list[set[int]]:
    """Groups that each KV head reads for the unit from `start` on besides what follows its window,
    from queries [T, H, D] and keys [T, G, D]."""
    n_past = (start - SMALL.window_tokens) // 8
    take = max(SMALL.least, int(SMALL.share * n_past))
    total = np.zeros((k.shape[1], n_past))
    for t in range(start + 3, start + 64, 4):
        part = sketch.shares(sketch.log_masses(q[t], k[: t + 1], 8), k.shape[1])
        total += part.max(1)[:, :n_past]
    chosen = []
    for row in total:
        row[: SMALL.sinks] = -1
        best = np.argsort(-row, kind="stable")[:take]
        chosen.append(set(range(SMALL.sinks)) | {int(g) for g in best})
    return chosen


def test_units_read_what_the_reference_chooses(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, small_units: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One layer, so that its queries and keys are all there is to know."""
    path = packed_tiny("qwen3", num_hidden_layers=1, num_attention_heads=6, head_dim=64)
    ids = token_ids(420)
    with open_engine(path, attention="dense", ctx=512) as engine, engine.session() as session:
        session.prefill = "hga"
        logits = [session.feed(ids[:384]) or session.logits.copy()]
        q, k = queries(session, 384), keys(session)
        session.feed(ids[384:])
        logits.append(session.logits.copy())
    seen = np.tril(np.ones((420, 420), bool))[:, None].repeat(6, 1)
    for start in range(128, 384, 64):
        for head, groups in enumerate(expected_groups(q, k, start)):
            past = np.isin(np.arange(420) // 8, list(groups))
            past |= np.arange(420) >= start - SMALL.window_tokens
            seen[start : start + 64, 3 * head : 3 * head + 3] &= past
    plain = attention.attend

    def chosen(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
        half = [x.astype(np.float16).astype(np.float32) for x in (k, v)]
        return plain(q, *half, seen)

    monkeypatch.setattr(attention, "attend", chosen)
    with ModelFile.open(path) as model:
        reference = Reference(
            model.plan, lambda role: model.tensor(role).values(), model.has, inverse_frequencies
        )
        expected = reference.forward(ids)[[383, 419]]
    for got, wanted in zip(logits, expected, strict=True):
        assert np.abs(got - wanted).max() <= 2e-3 * wanted.std()


def queries(session: Session, n_tokens: int) -> np.ndarray:
    """Rotated, scaled queries [T, H, D] of the last layer of the last call."""
    plan = session._engine.plan.layers[-1].attention
    forward = session._engine.forward_pass
    shape = (n_tokens, plan.n_heads, plan.head_dim)
    return forward._buffers.view(int(forward._call[0]["q"]), shape).copy()


def keys(session: Session) -> np.ndarray:
    """Keys [S, G, D] of the last layer as the store holds them."""
    plan, n_tokens = session._engine.plan.layers[-1].attention, len(session.tokens)
    heads = []
    for head in range(plan.n_kv_heads):
        records = [session._arena.record(0, head, g) for g in range(-(-n_tokens // 8))]
        halves = [r[: len(r) // 2].reshape(plan.head_dim, 8).T for r in records]
        heads.append(np.concatenate(halves)[:n_tokens])
    return np.stack(heads, 1).astype(np.float32)


def test_an_unknown_prefill_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="expected one of exact, hga"):
        engine.session().prefill = "some"
