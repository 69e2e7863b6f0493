"""The FP8 Qwen3-MoE checkpoint against float32 figures of transformers on its dequantised weights
(reference.json beside it), and what it was trained for: finding a needle."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hga.runtime.engine import Engine

pytestmark = pytest.mark.oracle

CODE = "The secret code of the silver anchor is"


@pytest.fixture(scope="module")
def reference(needle_moe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((needle_moe / "reference.json").read_text())
    return found


@pytest.fixture(scope="module")
def engine(needle_moe: Path, open_engine: Callable[..., Engine]) -> Iterator[Engine]:
    with open_engine(needle_moe) as opened:
        yield opened


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square error over the spread of the expected values."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected))


@pytest.mark.parametrize("text", ["moby-dick.txt", "addresses.txt"])
@pytest.mark.parametrize("ctx", [1024, 4096])
def test_loss_on_long_texts(
    hga_ppl: Callable[..., dict[str, Any]],
    needle_moe: Path,
    shared_dir: Path,
    reference: dict[str, Any],
    text: str,
    ctx: int,
) -> None:
    flags = ("--ctx", str(ctx), "--chunks", "1", "--score", "all")
    found = hga_ppl(needle_moe, shared_dir / "texts" / text, *flags)
    assert found["tokens_scored"] == ctx - 1
    expected = reference["dense_float32"][f"{text}:{ctx}"]["nats"]
    # The issue allows 0.02 nats; measured 0.0005.
    assert found["nll"] == pytest.approx(expected, abs=0.004)


def test_logits_after_a_short_prompt(engine: Engine, reference: dict[str, Any]) -> None:
    first = reference["first_logits"]
    expected = np.array(first["logits_of_last"])
    with engine.session() as session:
        session.feed(first["tokens"])
        found = session.logits.astype(np.float64)
    assert relative_error(found, expected) < 0.01
    assert found.argmax() == expected.argmax()


def test_greedy_continuations(engine: Engine, reference: dict[str, Any]) -> None:
    """Each token of the reference is ours, or all but as likely by our own logits."""
    for case in reference["greedy"]:
        assert engine.tokenizer.encode(case["prompt"]) == case["prompt_tokens"]
        with engine.session() as session:
            session.feed(case["prompt_tokens"])
            for number, token in enumerate(case["tokens"]):
                logits = session.logits
                assert logits.max() - logits[token] < 0.02, (case["prompt"], number)
                session.step(token)
        assert engine.tokenizer.decode(case["tokens"]) == case["text"]


def haystack(engine: Engine, text: str, n_tokens: int) -> tuple[list[int], str]:
    """A prompt of n_tokens that hides a code at a tenth of its length and asks for it at the end;
    and the answer."""
    encode = engine.tokenizer.encode
    needle, question = (
        f"\n{CODE} 48213.\n",
        f"\nWhat is the secret code of the silver anchor? {CODE}",
    )
    room = n_tokens - len(encode(needle)) - len(encode(question))
    prose = encode(text)[:room]
    assert len(prose) == room
    at = room // 10
    return prose[:at] + encode(needle) + prose[at:] + encode(question), " 48213"


@pytest.mark.parametrize(
    "n_tokens",
    [4096, pytest.param(65472, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_dense_attention_finds_the_needle(engine: Engine, shared_dir: Path, n_tokens: int) -> None:
    text = (shared_dir / "texts" / "moby-dick.txt").read_text()
    ids, answer = haystack(engine, text, n_tokens)
    expected = engine.tokenizer.encode(answer)
    with engine.session() as session:
        session.feed(ids)
        found = []
        for _ in expected:
            found.append(int(session.logits.argmax()))
            session.step(found[-1])
    assert engine.tokenizer.decode(found) == answer
