"""Parameter records: what they point at, and the mixes of formats that kernels cannot take."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hga.kernels.formats import FORMATS
from hga.models.plan import UnsupportedError
from hga.runtime.container import ModelFile
from hga.runtime.weights import Weights

Packed = Callable[..., Path]


class Relabelled:
    """A model file that gives some tensors another format's name; nothing is read through it."""

    def __init__(self, model: ModelFile, formats: dict[str, str]) -> None:
        self.plan, self.has = model.plan, model.has
        self._model, self._formats = model, formats

    def tensor(self, role: str) -> Any:
        view = self._model.tensor(role)
        name = self._formats.get(role)
        return dataclasses.replace(view, format=FORMATS[name]) if name else view


def test_records_point_at_the_tensors(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("qwen3", "bf16")) as model:
        weights = Weights(model)
        for i, record in enumerate(weights.layers):
            for name in ("q", "k", "v", "o", "gate", "up", "down"):
                view, matrix = model.tensor(f"layers.{i}.{name}"), record[name]
                assert (matrix["rows"], matrix["cols"]) == view.shape
                assert matrix["tiles"] == view.data.ctypes.data
                assert matrix["code"] == view.format.code
                assert matrix["step"] == view.format.group_bytes(view.shape[1])
            norm = model.tensor(f"layers.{i}.q_norm")
            assert record["q_norm"] == norm.data.ctypes.data
            assert record["q_bias"] == record["post_attn_norm"] == record["experts"] == 0
            assert record["window"] == 0 and record["scale"] == pytest.approx(32**-0.5)
        assert weights.head is weights.embed, "tied"


def test_experts_have_a_table(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("qwen3_moe", "fp8")) as model:
        weights = Weights(model)
        record = weights.layers[1]
        table = next(
            t for t in weights._keep if t.ctypes.data == record["experts"] and t.dtype == np.int64
        )
        for expert, row in enumerate(table):
            for name, address in zip(("gate", "up", "down"), row, strict=True):
                view = model.tensor(f"layers.1.experts.{expert}.{name}")
                assert address == view.data.ctypes.data
        assert (record["n_experts"], record["n_used"], record["norm_topk"]) == (8, 2, 1)


def test_each_distinct_rope_is_kept_once(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("gemma3")) as model:
        weights = Weights(model)
        assert len(weights.ropes) == 2
        thetas = [weights.ropes[r["rope_index"]][0].theta for r in weights.layers]
        assert thetas == [1e4] * 5 + [1e6]


def test_experts_of_different_formats_are_refused(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("qwen3_moe")) as model:
        relabelled = Relabelled(model, {"layers.0.experts.3.up": "bf16"})
        with pytest.raises(UnsupportedError, match=r"layers\.0\.experts\.3\.up has another format"):
            Weights(relabelled)  # type: ignore[arg-type]


def test_float_gates_beside_integer_ups_are_refused(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("qwen3_moe")) as model:
        ups = {f"layers.1.experts.{e}.up": "q8" for e in range(8)}
        with pytest.raises(UnsupportedError, match=r"layers\.1\.experts: gate and up mix"):
            Weights(Relabelled(model, ups))  # type: ignore[arg-type]


def test_heads_are_widened_to_whole_vectors(packed_tiny: Packed) -> None:
    with ModelFile.open(packed_tiny("llama")) as model:
        record = Weights(model).layers[0]
        assert (record["true_dim"], record["head_dim"]) == (16, 32)
        assert record["q"]["rows"] == 4 * 16 and record["scale"] == 0.25


def test_heads_beyond_the_sketches_are_refused(packed_tiny: Packed) -> None:
    refusal = pytest.raises(UnsupportedError, match="head_dim 544; supported: up to 512")
    with ModelFile.open(packed_tiny("qwen3", head_dim=544)) as model, refusal:
        Weights(model)
