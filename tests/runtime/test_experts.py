"""Experts on disk: the same bits as in memory, whatever the slots, hints, threads and ways to
read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hga.runtime.engine import Engine, Session
from hga.runtime.experts import blob_bytes

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

N_EXPERTS, N_LAYERS = 12, 3


@pytest.fixture(scope="module")
def model(packed_tiny: Packed) -> Path:
    return packed_tiny(
        "qwen3_moe", num_experts=N_EXPERTS, num_experts_per_tok=3, num_hidden_layers=N_LAYERS
    )


def slots(path: Path, n: int) -> int:
    """--expert-cache for n slots."""
    from hga.runtime.container import ModelFile
    from hga.runtime.expert_budget import _TABLE_BYTES

    with ModelFile.open(path) as opened:
        return n * (blob_bytes(opened) + _TABLE_BYTES)


def spoken(session: Session, ids: list[int]) -> np.ndarray:
    """Logits after a prompt, decoded tokens, a second prompt and more."""
    session.feed(ids[:70])
    logits = [session.logits.copy()]
    logits += [session.step(token).copy() for token in ids[70:90]]
    session.feed(ids[90:120])
    logits.append(session.logits.copy())
    logits += [session.step(token).copy() for token in ids[120:130]]
    return np.stack(logits)


@pytest.fixture(scope="module")
def expected(model: Path, open_engine: Opened, token_ids: Ids) -> np.ndarray:
    with open_engine(model) as engine, engine.session() as session:
        assert engine.experts is None
        return spoken(session, token_ids(130))


@pytest.mark.parametrize("n_slots", [1, 2, 3, 5, 7, 12, 20, 36])
@pytest.mark.parametrize("hints", ["off", "on"])
def test_slots_and_hints_change_nothing(
    model: Path, open_engine: Opened, token_ids: Ids, expected: np.ndarray, n_slots: int, hints: str
) -> None:
    size = slots(model, n_slots)
    with open_engine(model, expert_cache=size, expert_hints=hints) as engine:
        assert engine.experts is not None and engine.experts.n_slots == n_slots
        with engine.session() as session:
            np.testing.assert_array_equal(spoken(session, token_ids(130)), expected)
        reads = engine.experts.reads
        assert reads.hits + reads.foreseen + reads.reads > 0
        if n_slots == N_EXPERTS * N_LAYERS:
            assert reads.reads <= n_slots
        assert engine.experts.resident <= n_slots
