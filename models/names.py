"""Tensor names of both source formats, and the TensorSpecs that follow from a plan.

Tables of role template -> source name; an architecture joins the ones it has. {i} is the layer,
{e} the expert. A GGUF stacks all experts of a layer in one tensor, so its names have no {e}.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from .plan import ModelPlan, TensorSpec, tensor_roles

Transform = Literal["none", "unrope", "add_one"]

HF_NAMES: Final[Mapping[str, str]] = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.q": "model.layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.k": "model.layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.v": "model.layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.o": "model.layers.{i}.self_attn.o_proj.weight",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
}
HF_QKV_BIAS: Final[Mapping[str, str]] = {
    "layers.{i}.q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "layers.{i}.k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "layers.{i}.v_bias": "model.layers.{i}.self_attn.v_proj.bias",
}
HF_O_BIAS: Final[Mapping[str, str]] = {
    "layers.{i}.o_bias": "model.layers.{i}.self_attn.o_proj.bias",
}
HF_QK_NORM: Final[Mapping[str, str]] = {
    "layers.{i}.q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "layers.{i}.k_norm": "model.layers.{i}.self_attn.k_norm.weight",
}
HF_MLP: Final[Mapping[str, str]] = {
    "layers.{i}.gate": "model.layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.up": "model.layers.{i}.mlp.up_proj.weight",
    "layers.{i}.down": "model.layers.{i}.mlp.down_proj.weight",
}
GGUF_NAMES: Final[Mapping[str, str]] = {
    "embed": "token_embd.weight",
    "head": "output.weight",
    "final_norm": "output_norm.weight",
    "layers.{i}.attn_norm": "blk.{i}.attn_norm.weight",
    "layers.{i}.q": "blk.{i}.attn_q.weight",
    "layers.{i}.k": "blk.{i}.attn_k.weight",
    "layers.{i}.v": "blk.{i}.attn_v.weight",
    "layers.{i}.o": "blk.{i}.attn_output.weight",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm.weight",
}
GGUF_QKV_BIAS: Final[Mapping[str, str]] = {
    "layers.{i}.q_bias": "blk.{i}.attn_q.bias",
    "layers.{i}.k_bias": "blk.{i}.attn_k.bias",
    "layers.{i}.v_bias": "blk.{i}.attn_v.bias",
}
GGUF_O_BIAS: Final[Mapping[str, str]] = {"layers.{i}.o_bias": "blk.{i}.attn_output.bias"}
GGUF_QK_NORM: Final[Mapping[str, str]] = {
    "layers.{i}.q_norm": "blk.{i}.attn_q_norm.weight",
    "layers.{i}.k_norm": "blk.{i}.attn_k_norm.weight",
}
GGUF_MLP: Final[Mapping[str, str]] = {
    "layers.{i}.gate": "blk.{i}.ffn_gate.weight",
    "layers.{i}.up": "blk.{i}.ffn_up.weight",
    "layers.{i}.down": "blk.{i}.ffn_down.weight",
}
HF_MOE: Final[Mapping[str, str]] = {
    "layers.{i}.router": "model.layers.{i}.mlp.gate.weight",
    "layers.{i}.experts.{e}.gate": "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    "layers.{i}.experts.{e}.up": "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    "layers.{i}.experts.{e}.down": "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
}
GGUF_MOE: Final[Mapping[str, str]] = {
    "layers.{i}.router": "blk.{i}.ffn_gate_inp.weight",
    "layers.{i}.experts.{e}.gate": "blk.{i}.ffn_gate_exps.weight",
    "layers.{i}.experts.{e}.up": "blk.{i}.ffn_up_exps.weight",
    "layers.{i}.experts.{e}.down": "blk.{i}.ffn_down_exps.weight",
}


def tensor_specs(
    plan: ModelPlan, names: Mapping[str, str], transforms: Mapping[str, Transform]
) -> Iterator[TensorSpec]:
    """One TensorSpec per role of the plan. `expert` is set where the source stacks experts, and
    then selects the slice of the first dimension."""
    for role, shape in tensor_roles(plan):
        found = re.fullmatch(r"layers\.(\d+)\.(?:experts\.(\d+)\.)?(\w+)", role)
        if found is None:
            template, layer, expert = role, -1, -1
        else:
            layer, expert = int(found[1]), int(found[2] or -1)
            template = f"layers.{{i}}.{'experts.{e}.' if found[2] else ''}{found[3]}"
        name = names[template]
        transform = transforms.get(template, "none")
        n_heads = 0
        if transform == "unrope":
            attention = plan.layers[layer].attention
            n_heads = shape[0] // attention.head_dim
        stacked = expert >= 0 and "{e}" not in name
        yield TensorSpec(
            role,
            name.format(i=layer, e=expert),
            shape,
            transform,
            n_heads,
            expert if stacked else -1,
        )
