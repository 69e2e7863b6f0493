"""A whole model in plain numpy: the oracle of the forward kernel, slow and obvious.

`Reference` takes any object with the fields of a ModelPlan and a function from a tensor's role to
its float32 values; it keeps float32 keys and values and no other state.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import attention, rows

F32 = NDArray[np.float32]


class Reference:
    """Dense forward pass. `angles(rope, head_dim)` gives radians per position of each pair [D/2].

    With `quantized` activations meet the product as the integer formats see them (int8 per 32).
    """

    def __init__(
        self,
        plan: Any,
        values: Callable[[str], F32],
        has: Callable[[str], bool],
        angles: Callable[[Any, int], NDArray[np.float64]],
        quantized: Callable[[str], bool] = lambda role: False,
    ) -> None:
        self.plan, self.values, self.has, self.angles = plan, values, has, angles
        self.quantized = quantized
        self.cache: list[tuple[F32, F32]] = []

    def _product(self, role: str, x: F32) -> F32:
        if self.quantized(role):
            codes, scales, _ = rows.quantize(x)
            blocks = codes.reshape(*x.shape[:-1], -1, 32) * scales[..., None]
            x = blocks.reshape(x.shape).astype(np.float32)
        return np.asarray(x @ self.values(role).T, np.float32)

    def _rotate(self, x: F32, plan: Any, position: int) -> F32:
        steps = position + np.arange(len(x), dtype=np.float64)
        angle = (steps[:, None] * self.angles(plan.rope, plan.head_dim))[:, None]
        factor = plan.rope.attention_factor
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        return rows.rope(x, cos.astype(np.float32), sin.astype(np.float32))

    def _attention(self, y: F32, plan: Any, prefix: str, layer: int, position: int) -> F32:
        heads = {"q": plan.n_heads, "k": plan.n_kv_heads, "v": plan.n_kv_heads}
        parts = {}
        for name, n in heads.items():
            x = self._product(prefix + name, y)
            if self.has(f"{prefix}{name}_bias"):
                x = x + self.values(f"{prefix}{name}_bias")
            x = x.reshape(len(y), n, plan.head_dim)
            if self.has(f"{prefix}{name}_norm"):
                x = rows.rms_norm(x, self.values(f"{prefix}{name}_norm"), self.plan.norm_eps)
            parts[name] = x
        q = self._rotate(parts["q"], plan, position) * np.float32(plan.scale)
        k, v = self._rotate(parts["k"], plan, position), parts["v"]
        if layer < len(self.cache):
            k = np.concatenate([self.cache[layer][0], k])
            v = np.concatenate([self.cache[layer][1], v])
            self.cache[layer] = (k, v)
        else:
            self.cache.append((k, v))
        visible = attention.causal(position, len(y), plan.window)
        mixed = attention.attend(q, k, v, visible).reshape(len(y), -1)
        out = self._product(prefix + "o", mixed)
        return out + self.values(prefix + "o_bias") if self.has(prefix + "o_bias") else out

    def _gated(self, y: F32, activation: str, prefix: str) -> F32:
        act = rows.silu if activation == "silu" else rows.gelu_tanh
        hidden = act(self._product(prefix + "gate", y)) * self._product(prefix + "up", y)
        return self._product(prefix + "down", hidden)

    def _mlp(self, y: F32, plan: Any, prefix: str) -> F32:
        if not hasattr(plan, "n_experts"):
            return self._gated(y, plan.activation, prefix)
        logits = self._product(prefix + "router", y)
        chosen, weights = rows.top_experts(logits, plan.n_experts_used, plan.norm_topk)
        out = np.zeros_like(y)
        for expert in np.unique(chosen):
            token, slot = np.nonzero(chosen == expert)
            part = self._gated(y[token], plan.activation, f"{prefix}experts.{expert}.")
            out[token] += (part * weights[token, slot][:, None]).astype(np.float32)
        return out

    def _post_norm(self, y: F32, role: str) -> F32:
        return rows.rms_norm(y, self.values(role), self.plan.norm_eps) if self.has(role) else y

    def forward(self, tokens: list[int]) -> F32:
        """Append tokens [T]; logits float32 [T, V]."""
        plan = self.plan
        position = len(self.cache[0][0]) if self.cache else 0
        x = self.values("embed")[tokens] * np.float32(plan.embed_scale)
        for i, layer in enumerate(plan.layers):
            prefix = f"layers.{i}."
            y = rows.rms_norm(x, self.values(prefix + "attn_norm"), plan.norm_eps)
            y = self._attention(y, layer.attention, prefix, i, position)
            x = x + self._post_norm(y, prefix + "post_attn_norm")
            y = rows.rms_norm(x, self.values(prefix + "mlp_norm"), plan.norm_eps)
            x = x + self._post_norm(self._mlp(y, layer.mlp, prefix), prefix + "post_mlp_norm")
        x = rows.rms_norm(x, self.values("final_norm"), plan.norm_eps)
        return self._product("embed" if plan.tied_head else "head", x)
