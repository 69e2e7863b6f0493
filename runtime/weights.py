"""Weights: the packed file's tensors as the parameter records that the forward kernel reads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hga.kernels.cpu.params import LAYER, MATRIX
from hga.kernels.formats import FORMATS
from hga.kvstore.geometry import padded_head_dim
from hga.models.plan import LayerPlan, ModelPlan, MoePlan, RopePlan, UnsupportedError

from .container import ModelFile, TensorView

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
# kernels/cpu/sketch.py has signs for so many dimensions.
_MAX_HEAD_DIM = 512
# The last of the float formats.
_FP8 = FORMATS["fp8"].code


class Weights:
    """LAYER and MATRIX records over an open ModelFile, which must stay open.

    With cached_experts the tables of experts are left to ExpertCache (runtime/experts.py).
    """

    def __init__(self, model: ModelFile, cached_experts: bool = False) -> None:
        self.plan: ModelPlan = model.plan
        self._cached_experts = cached_experts
        self._model = model
        # Views and tables that the records point into.
        self._keep: list[Any] = []
        self.ropes: tuple[tuple[RopePlan, int], ...] = tuple(
            dict.fromkeys((a.attention.rope, a.attention.head_dim) for a in model.plan.layers)
        )
        self.embed = self._matrix("embed")
        self.head = self.embed if model.plan.tied_head else self._matrix("head")
        self.final_norm = self._vector("final_norm")
        self.layers: NDArray[Any] = np.zeros(len(model.plan.layers), LAYER)
        for i, layer in enumerate(model.plan.layers):
            self._fill(self.layers[i], layer, f"layers.{i}.")

    def check(self) -> None:
        """ContainerError where the file that the records point into has changed."""
        self._model.check_mapped()

    def _view(self, role: str) -> TensorView:
        view = self._model.tensor(role)
        self._keep.append(view.data)
        return view

    def _matrix(self, role: str) -> Any:
        view = self._view(role)
        rows, cols = view.shape
        step = view.format.group_bytes(cols)
        return np.array((view.data.ctypes.data, view.format.code, step, rows, cols), MATRIX)

    def _vector(self, role: str) -> int:
        return int(self._view(role).data.ctypes.data)

    def _fill(self, record: Any, layer: LayerPlan, prefix: str) -> None:
        a = layer.attention
        if a.head_dim > _MAX_HEAD_DIM:
            raise UnsupportedError(
                f"{prefix}attention: head_dim {a.head_dim}; supported: up to {_MAX_HEAD_DIM}"
            )
        for name in ("q", "k", "v", "o"):
            record[name] = self._matrix(prefix + name)
        for name in (
            "attn_norm",
            "mlp_norm",
            "post_attn_norm",
            "post_mlp_norm",
            "q_norm",
            "k_norm",
            "q_bias",
            "k_bias",
            "v_bias",
            "o_bias",
        ):
            if self._model.has(prefix + name):
                record[name] = self._vector(prefix + name)
        record["n_heads"], record["n_kv_heads"] = a.n_heads, a.n_kv_heads
        record["head_dim"], record["true_dim"] = padded_head_dim(a.head_dim), a.head_dim
        record["window"], record["scale"] = a.window, a.scale
        record["rope_index"] = self.ropes.index((a.rope, a.head_dim))
        record["activation"] = _ACTIVATIONS[layer.mlp.activation]
        if isinstance(layer.mlp, MoePlan):
            self._fill_experts(record, layer.mlp, prefix)
        else:
            for name in ("gate", "up", "down"):
                record[name] = self._matrix(prefix + name)

    def _fill_experts(self, record: Any, moe: MoePlan, prefix: str) -> None:
        record["router"] = self._matrix(prefix + "router")
        if self._cached_experts:
            for name in ("gate", "up", "down"):
                # All experts of a layer are alike: the container has checked it.
                record[name] = self._shape(f"{prefix}experts.0.{name}")
        else:
            self._fill_table(record, moe, prefix)
        # Gathered activations are either values or codes, for both.
        if (record["gate"]["code"] > _FP8) != (record["up"]["code"] > _FP8):
            raise UnsupportedError(f"{prefix}experts: gate and up mix float and integer formats")
        record["n_experts"], record["n_used"] = moe.n_experts, moe.n_experts_used
        record["norm_topk"] = int(moe.norm_topk)

    def _fill_table(self, record: Any, moe: MoePlan, prefix: str) -> None:
        table = np.zeros((moe.n_experts, 3), np.int64)
        for column, name in enumerate(("gate", "up", "down")):
            for expert in range(moe.n_experts):
                matrix = self._matrix(f"{prefix}experts.{expert}.{name}")
                if expert == 0:
                    record[name] = matrix
                elif matrix["code"] != record[name]["code"]:
                    raise UnsupportedError(
                        f"{prefix}experts.{expert}.{name} has another format than expert 0's"
                    )
                table[expert, column] = matrix["tiles"]
        self._keep.append(table)
        record["experts"] = table.ctypes.data

    def _shape(self, role: str) -> Any:
        """A matrix whose tiles are elsewhere."""
        tensor = self._model.record(role)
        rows, cols = tensor.shape
        fmt = FORMATS[tensor.format]
        return np.array((0, fmt.code, fmt.group_bytes(cols), rows, cols), MATRIX)
