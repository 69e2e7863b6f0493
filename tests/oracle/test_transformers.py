"""Tiny random checkpoints of every architecture against transformers: float32, eager attention.

Both sides read the same folder; of an FP8 one transformers gets the dequantised values. The
engine's prompt pass and its single-token pass are both compared.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hga.kernels.formats import FormatError
from hga.models.plan import UnsupportedError
from hga.runtime.engine import Engine

pytestmark = pytest.mark.oracle

N_PROMPT, N_GREEDY = 150, 20

# Relative RMS error of the logits, whatever the type of the matrices: keys and values are float16,
# all else is float32 against float32. Measured up to 1.5e-4.
TOLERANCE = 5e-4

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint: architecture, type of its matrices, changes to the tiny configuration."""

    arch: str
    dtype: str = "f32"
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return "-".join(part for part in (self.arch, self.dtype, self.name) if part)


CASES = (
    *(
        Case(arch, dtype)
        for arch in ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3")
        for dtype in ("f32", "bf16", "fp8")
    ),
    Case("llama", "f16"),
    *(
        Case(arch, "f32", {"rope_scaling": scaling}, str(scaling["rope_type"]))
        for arch, scalings in (
            ("llama", (LINEAR, LLAMA3, YARN)),
            ("qwen2", (YARN,)),
            ("qwen3", (LINEAR, YARN)),
            ("qwen3_moe", (YARN,)),
            # Its sliding layers are not scaled.
            ("gemma3", (LINEAR,)),
        )
        for scaling in scalings
    ),
    Case("llama", "f32", {"rope_scaling": {**YARN, "attention_factor": 1.3}}, "yarn-factor"),
    Case("llama", "f32", {"rope_scaling": {**YARN, "beta_fast": 16.0}}, "yarn-beta"),
    *(
        Case(arch, "f32", {"tie_word_embeddings": tied}, "tied" if tied else "untied")
        for arch, tied in (
            ("llama", True),
            ("qwen2", False),
            ("qwen3", False),
            ("qwen3_moe", True),
            ("gemma3", False),
        )
    ),
    Case("llama", "f32", {"attention_bias": True}, "biases"),
    Case("qwen3_moe", "f32", {"norm_topk_prob": False}, "weights-as-they-are"),
    Case("qwen3_moe", "f32", {"mlp_only_layers": [0]}, "dense-layer"),
    Case("gemma3", "f32", {"sliding_window": 7}, "short-window"),
    Case("gemma3", "f32", {"query_pre_attn_scalar": 50}, "scale"),
)


# Heads of 32 where the tiny configuration has fewer dimensions.
HEADS_OF_32 = {"llama": {"head_dim": 32}, "qwen2": {"hidden_size": 128}}


def config(tiny: ModuleType, case: Case) -> dict[str, object]:
    """A tiny configuration; that of an FP8 checkpoint has several blocks of 128 x 128 values."""
    if case.dtype == "fp8":
        return dict(tiny.wide_config(case.arch, **case.changes))
    return dict(tiny.config(case.arch, **{**HEADS_OF_32.get(case.arch, {}), **case.changes}))


def transformers_model(tiny: ModuleType, folder: Path, case: Case) -> Any:
    torch = pytest.importorskip("torch", reason="see make setup-oracle")
    transformers = pytest.importorskip("transformers", reason="see make setup-oracle")
    if case.dtype == "fp8":
        cfg = config(tiny, case)
        values = tiny.held(cfg, "fp8")
        folder = tiny.write_hf(folder / "dequantised", cfg)
        path = folder / "model.safetensors"
        tiny.write_safetensors(path, {name: ("F32", held) for name, held in values.items()})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def logits_of(model: Any, ids: Sequence[int]) -> np.ndarray:
    """float32 [T, V]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(ids)])).logits[0].numpy(), np.float32)


@dataclasses.dataclass(frozen=True)
class Run:
    """Logits float32 [N_PROMPT + N_GREEDY, V] of the same ids on both sides."""

    found: np.ndarray
    expected: np.ndarray

    def error(self, rows: slice) -> float:
        """Relative RMS error over some positions."""
        found, expected = self.found[rows], self.expected[rows]
        return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.fixture
def run(
    tiny: ModuleType, open_engine: Callable[..., Engine], tmp_path: Path
) -> Callable[[Case], Run]:
    """run(case) -> a random prompt through the prompt pass, then the tokens that transformers
    chooses, one by one."""

    def go(case: Case) -> Run:
        folder = tiny.write_hf(tmp_path / str(case), config(tiny, case), case.dtype)
        model = transformers_model(tiny, folder, case)
        ids = [int(i) for i in np.random.default_rng(1).integers(3, tiny.VOCAB, N_PROMPT)]
        for _ in range(N_GREEDY):
            ids.append(int(logits_of(model, ids)[-1].argmax()))
        with open_engine(folder) as engine, engine.session() as session:
            rows = [logits.copy() for logits in session.score(ids[:N_PROMPT])]
            rows += [session.step(token)[None] for token in ids[N_PROMPT:]]
        return Run(np.concatenate(rows), logits_of(model, ids))

    return go


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_greedy_tokens(run: Callable[[Case], Run], case: Case) -> None:
    found = run(case)
    assert found.error(slice(N_PROMPT)) < TOLERANCE
    assert found.error(slice(N_PROMPT, None)) < TOLERANCE
    best = np.sort(found.expected, 1)
    clear = best[:, -1] - best[:, -2] > 10 * TOLERANCE * found.expected.std()
    assert clear[N_PROMPT:].sum() >= N_GREEDY // 2
    assert (found.found.argmax(1) == found.expected.argmax(1))[clear].all()


@pytest.mark.parametrize("head_dim", [8, 16, 24, 48, 80, 96, 100, 112])
def test_heads_of_unusual_width(run: Callable[[Case], Run], head_dim: int) -> None:
    """Right, or refused by name; never silently wrong."""
    case = Case("llama", "f32", {"head_dim": head_dim}, f"heads-of-{head_dim}")
    try:
        found = run(case)
    except (UnsupportedError, FormatError) as error:
        assert "head_dim" in str(error) or "columns" in str(error)
        return
    assert found.error(slice(None)) < TOLERANCE
