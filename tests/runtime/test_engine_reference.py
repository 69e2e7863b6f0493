"""Whole models against the numpy reference: every architecture, every kind of weight."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hga.runtime.engine import Engine

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Logits = Callable[[Path, list[int]], np.ndarray]
Ids = Callable[..., list[int]]

FLOATS = (
    *((arch, kind) for arch in ("llama", "qwen2", "qwen3") for kind in ("f32", "bf16", "fp8")),
    *((arch, kind) for arch in ("qwen3_moe", "gemma3") for kind in ("f32", "f16", "fp8")),
)
INTEGERS = (
    *(("qwen3", kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")),
    *(("qwen3_moe", kind) for kind in ("Q8_0", "Q4_K")),
    *(("gemma3", kind) for kind in ("Q4_0", "Q6_K")),
    ("llama", "Q4_0"),
    ("qwen2", "Q8_0"),
)


def scored(engine: Engine, ids: list[int]) -> np.ndarray:
    """float32 [T, V] by blocks, dense."""
    with engine.session() as session:
        session.attention = "dense"
        return np.concatenate([block.copy() for block in session.score(ids)])


def errors(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference of each token's logits, in standard deviations of all."""
    return np.abs(got - expected).max(1) / expected.std()


@pytest.mark.parametrize(("arch", "kind"), FLOATS)
def test_float_weights(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, reference_logits: Logits,
    token_ids: Ids,
) -> None:  # fmt: skip
    path, ids = packed_tiny(arch, kind), token_ids(200)
    with open_engine(path) as engine:
        off = errors(scored(engine, ids), reference_logits(path, ids))
    assert off.max() <= 1e-3
    assert np.median(off) <= 1e-4


@pytest.mark.parametrize(("arch", "kind"), INTEGERS)
def test_integer_weights(
    arch: str, kind: str, packed_tiny: Packed, open_engine: Opened, reference_logits: Logits,
    token_ids: Ids,
) -> None:  # fmt: skip
    """Activations are rounded to int8: a value between two codes may fall to either, and then
    every later token that attends to it is off by the rounding of one value. So the whole
    sequence is held to that, and single tokens, where it is rare, to float32."""
    path, ids = packed_tiny(arch, kind), token_ids(120)
    with open_engine(path) as engine:
        off = errors(scored(engine, ids), reference_logits(path, ids))
        assert np.quantile(off, 0.9) <= 0.1
        alone = [
            errors(scored(engine, [token]), reference_logits(path, [token])) for token in ids[:15]
        ]
    assert np.median(alone) <= 2e-5


def test_every_expert(
    packed_tiny: Packed, open_engine: Opened, reference_logits: Logits, token_ids: Ids
) -> None:
    ids = token_ids(70)
    for used, norm in ((8, True), (8, False), (1, False), (3, True)):
        path = packed_tiny("qwen3_moe", num_experts_per_tok=used, norm_topk_prob=norm)
        with open_engine(path) as engine:
            assert errors(scored(engine, ids), reference_logits(path, ids)).max() <= 1e-3


def test_more_tokens_than_an_expert_gathers_at_a_time(
    packed_tiny: Packed, open_engine: Opened, reference_logits: Logits, token_ids: Ids
) -> None:
    path, ids = packed_tiny("qwen3_moe", "Q8_0", num_experts_per_tok=8), token_ids(150)
    expected = reference_logits(path, ids)[-1:]
    with open_engine(path) as engine, engine.session() as session:
        session.feed(ids)
        assert errors(session.logits[None], expected)[0] <= 0.1


@pytest.mark.parametrize("window", [1, 16, 31, 100])
def test_sliding_windows(
    window: int, packed_tiny: Packed, open_engine: Opened, reference_logits: Logits,
    token_ids: Ids,
) -> None:  # fmt: skip
    path, ids = packed_tiny("gemma3", sliding_window=window), token_ids(330)
    with open_engine(path) as engine:
        assert errors(scored(engine, ids), reference_logits(path, ids)).max() <= 1e-3


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        *((4, 4, 32), (6, 2, 32), (8, 1, 64), (5, 1, 96), (2, 1, 128), (2, 2, 256)),
        # Heads that do not fill whole vectors are widened.
        *((8, 4, 4), (4, 1, 24), (2, 1, 48), (2, 2, 80)),
    ],
)
def test_head_shapes(
    heads: int, kv_heads: int, head_dim: int, packed_tiny: Packed, open_engine: Opened,
    reference_logits: Logits, token_ids: Ids,
) -> None:  # fmt: skip
    path = packed_tiny(
        "qwen3", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim
    )
    ids = token_ids(90)
    with open_engine(path) as engine:
        assert errors(scored(engine, ids), reference_logits(path, ids)).max() <= 1e-3


def test_a_context_of_several_blocks_and_slabs(
    packed_tiny: Packed, open_engine: Opened, reference_logits: Logits, token_ids: Ids
) -> None:
    path, ids = packed_tiny("qwen3"), token_ids(1100)
    expected = reference_logits(path, ids)
    with open_engine(path, ctx=1200) as engine, engine.session() as session:
        session.attention = "dense"
        for first, end in ((0, 520), (520, 1010), (1010, 1030)):
            session.feed(ids[first:end])
            assert errors(session.logits[None], expected[end - 1 : end])[0] <= 1e-3
        got = np.stack([session.step(token) for token in ids[1030:]])
        assert errors(got, expected[1030:]).max() <= 1e-3


def test_biases(
    packed_tiny: Packed, open_engine: Opened, reference_logits: Logits, token_ids: Ids
) -> None:
    path, ids = packed_tiny("llama", attention_bias=True), token_ids(70)
    with open_engine(path) as engine:
        assert engine.plan.layers[0].attention.o_bias
        assert errors(scored(engine, ids), reference_logits(path, ids)).max() <= 1e-3


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "linear", "factor": 4.0}, LLAMA3, YARN], ids=lambda s: s["rope_type"]
)
def test_rope_scaling(
    scaling: dict[str, object], packed_tiny: Packed, open_engine: Opened,
    reference_logits: Logits, token_ids: Ids,
) -> None:  # fmt: skip
    path, ids = packed_tiny("qwen3", rope_scaling=scaling), token_ids(200)
    with open_engine(path) as engine:
        assert engine.plan.layers[0].attention.rope.kind == scaling["rope_type"]
        assert errors(scored(engine, ids), reference_logits(path, ids)).max() <= 1e-3


def test_a_vocabulary_that_fills_no_group(
    packed_tiny: Packed, open_engine: Opened, reference_logits: Logits
) -> None:
    path = packed_tiny("qwen3", vocab_size=333, tie_word_embeddings=False)
    ids = list(range(0, 333, 4))
    with open_engine(path) as engine:
        got = scored(engine, ids)
        assert got.shape == (len(ids), 333)
        assert errors(got, reference_logits(path, ids)).max() <= 1e-3
