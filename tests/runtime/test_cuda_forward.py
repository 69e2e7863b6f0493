"""The CUDA backend on whole tiny models against the numpy reference, in Triton's interpreter: the
same kernels, run by numpy on the CPU. With TRITON_INTERPRET=0 it runs on a card.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hga.runtime.container import ModelFile
from hga.runtime.cuda_plan import place_on_card
from hga.runtime.engine import Engine
from hga.runtime.options import Options
from hga.runtime.placement import Placement
from hga.runtime.planning import geometry_of

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed (Linux alone has it)")
DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"

Packed = Callable[..., Path]
Logits = Callable[[Path, list[int]], np.ndarray]
Ids = Callable[..., list[int]]

CTX = 256


@contextmanager
def card(path: Path, **changes: Any) -> Iterator[Any]:
    """A forward pass on the interpreter, with an arena."""
    from hga.runtime.cuda_backend import CudaBackend

    options = Options(device="cuda", ctx=CTX, **changes)
    with ModelFile.open(path) as model:
        geometry = geometry_of(model.plan, options)
        plan = place_on_card(model, geometry, CTX, options)
        backend = CudaBackend(model, plan, geometry, CTX, options, device=DEVICE)
        yield backend.forward_pass, backend.forward_pass.new_arena().bank


def run(forward: Any, bank: Any, ids: list[int], first: int, n_prompt: int) -> np.ndarray:
    """float32 [T, V]: a prompt of n_prompt tokens, then one token after the other."""
    rows = []
    if n_prompt:
        tokens = np.array(ids[first : first + n_prompt])
        rows.append(forward.run(bank, tokens, first, n_prompt).copy())
    for i in range(first + n_prompt, len(ids)):
        rows.append(forward.run(bank, np.array(ids[i : i + 1]), i, 1).copy())
    return np.concatenate(rows)


def off(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(got - expected).max(1) / expected.std()


# The interpreter takes seconds a model: every architecture and layout, not every pair.
CASES = (("llama", "f32"), ("qwen2", "bf16"), ("qwen3_moe", "fp8"))
SLOW = (
    ("qwen3", "fp8"), ("qwen3", "Q4_0"), ("qwen3", "Q8_0"), ("qwen3", "Q4_1"),
    ("qwen3_moe", "f16"), ("qwen3_moe", "Q8_0"), ("gemma3", "f32"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "kind"), [*CASES, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_models(
    arch: str, kind: str, packed_tiny: Packed, reference_logits: Logits, token_ids: Ids
) -> None:
    path, ids = packed_tiny(arch, kind), token_ids(8)
    with card(path) as (forward, bank):
        got = run(forward, bank, ids, 0, 6)
    expected = reference_logits(path, ids)
    error = off(got, expected)
    assert np.median(error) <= 0.06


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """on_card(path, **options) -> Engine with device cuda, on the interpreter where there is no
    card."""
    from hga.runtime import cuda_backend

    if DEVICE == "cpu":
        monkeypatch.setattr(cuda_backend, "require_cuda", lambda options: None)
        made = partial(cuda_backend.CudaBackend, device="cpu")
        monkeypatch.setattr(cuda_backend, "CudaBackend", made)
    return lambda path, **options: Engine.open(path, Options(device="cuda", **options))


@pytest.mark.slow
def test_a_session_routes_as_on_the_cpu(
    packed_tiny: Packed, open_engine: Callable[..., Engine], on_card: Callable[..., Engine],
    token_ids: Ids,
) -> None:  # fmt: skip
    """A prompt and a few tokens with a budget: the groups that the CPU reads, logits near its."""
    path, ids = packed_tiny("qwen3", "f32"), token_ids(83)
    found = []
    for opened in (open_engine, on_card):
        with opened(path, ctx=128, budget="56") as engine, engine.session() as session:
            session.feed(ids[:80])
            logits = [session.step(token).copy() for token in ids[80:]]
            stats, route = session.stats, session.last_route()
            assert route is not None
            session.truncate(70)
            again = session.fork_point(ids)
            found.append((np.array(logits), stats.attended_mean, stats.read_bytes, route, again))
    (want, *want_counts, want_route, _), (got, *counts, route, again) = found
    assert counts == want_counts and again == 70
    assert off(got, want).max() <= 0.05
    for mine, theirs in zip(route.groups, want_route.groups):
        assert len(set(mine) & set(theirs)) >= 0.9 * len(theirs)


def test_what_a_card_cannot_do_is_refused(
    packed_tiny: Packed, on_card: Callable[..., Engine], token_ids: Ids
) -> None:
    with on_card(packed_tiny("llama"), ctx=64) as engine, engine.session() as session:
        assert engine.backend.startswith("cuda: ")
        asked = {"attention": "hga-paper", "prefill": "hga", "measure_recall": True}
        for name, value in asked.items():
            with pytest.raises(ValueError, match="--device cpu"):
                setattr(session, name, value)


@pytest.mark.slow
def test_experts_and_keys_in_host_memory_change_nothing(
    packed_tiny: Packed, token_ids: Ids
) -> None:
    """The plan of a small card against that of a large one: other places, the same numbers."""
    path, ids = packed_tiny("qwen3_moe", "fp8"), token_ids(5)
    results = []
    for resident, on_host in ((99, False), (3, True)):
        with ModelFile.open(path) as model:
            from hga.runtime.cuda_backend import CudaBackend
            from hga.runtime.cuda_plan import CudaPlan

            options = Options(device="cuda", ctx=CTX)
            plan = CudaPlan((), Placement(False, 0, 0, ()), on_host, resident)
            geometry = geometry_of(model.plan, options)
            backend = CudaBackend(model, plan, geometry, CTX, options, DEVICE)
            forward = backend.forward_pass
            arena = forward.new_arena()
            results.append(run(forward, arena.bank, ids, 0, 3))
            assert (backend.weights.host_bytes > 0) == on_host
            arena.close()
            backend.close()
    assert np.array_equal(*results)
