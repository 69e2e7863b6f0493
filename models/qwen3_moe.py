"""Qwen3-MoE: Qwen3's attention, and a router over experts in some or all layers.

Softmax over all experts, the best ones run, their weights renormalised where the configuration
says so. There are no shared experts.
"""

from .architecture import Architecture, GgufFacts, gguf_sizes, hf_sizes, mlp_width
from .keys import Keys
from .names import (
    GGUF_MLP,
    GGUF_MOE,
    GGUF_NAMES,
    GGUF_QK_NORM,
    HF_MLP,
    HF_MOE,
    HF_NAMES,
    HF_O_BIAS,
    HF_QK_NORM,
    HF_QKV_BIAS,
)
from .plan import LayerPlan, MlpPlan, ModelPlan, MoePlan
from .qwen3 import gguf_attention, hf_attention


def _experts(keys: Keys, count: str, used: str, width: str, norm_topk: bool) -> MoePlan:
    n_experts = keys.integer(count, 1, 65536)
    n_used = keys.integer(used, 1, n_experts)
    return MoePlan(n_experts, n_used, mlp_width(keys, width), "silu", norm_topk)


def read_hf(keys: Keys) -> ModelPlan:
    """ModelPlan of a Qwen3MoeForCausalLM config.json; a layer i is dense if it is named in
    mlp_only_layers or if i + 1 is no multiple of decoder_sparse_step."""
    sizes = hf_sizes(keys)
    attention = hf_attention(keys, sizes)
    # transformers 5 writes num_local_experts for num_experts.
    count = "num_experts" if keys.has("num_experts") else "num_local_experts"
    moe = _experts(
        keys, count, "num_experts_per_tok", "moe_intermediate_size", keys.flag("norm_topk_prob")
    )
    keys.expect("num_experts", moe.n_experts)
    keys.expect("num_local_experts", moe.n_experts)
    keys.ignore("router_aux_loss_coef", "output_router_logits")
    step = keys.integer("decoder_sparse_step", 1, 1000, 1)
    dense = keys.raw("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(
        type(i) is int and 0 <= i < sizes.n_layers for i in dense
    ):
        raise keys.wrong("mlp_only_layers", f"layer numbers below {sizes.n_layers}", dense)
    mlp = MlpPlan(mlp_width(keys, "intermediate_size"), "silu")
    layers = [
        LayerPlan(attention, mlp if i in dense or (i + 1) % step else moe)
        for i in range(sizes.n_layers)
    ]
    return sizes.model("qwen3_moe", layers, tied=keys.flag("tie_word_embeddings", False))


def read_gguf(keys: Keys, facts: GgufFacts) -> ModelPlan:
    """ModelPlan of a GGUF; llama.cpp gives every layer experts and always renormalises."""
    sizes = gguf_sizes(keys, facts)
    attention = gguf_attention(keys, sizes, facts)
    keys.expect("expert_weights_norm", True)
    keys.expect("expert_weights_scale", 1.0, 0.0)
    keys.expect("expert_gating_func", 1)
    keys.expect("expert_shared_count", 0)
    keys.expect("expert_shared_feed_forward_length", 0)
    keys.ignore("feed_forward_length")
    moe = _experts(
        keys, "expert_count", "expert_used_count", "expert_feed_forward_length", norm_topk=True
    )
    layers = [LayerPlan(attention, moe)] * sizes.n_layers
    return sizes.model("qwen3_moe", layers, tied="output.weight" not in facts.shapes)


TINY = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}

QWEN3_MOE = Architecture(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    gguf_name="qwen3moe",
    read_hf=read_hf,
    read_gguf=read_gguf,
    hf_names={**HF_NAMES, **HF_QKV_BIAS, **HF_O_BIAS, **HF_QK_NORM, **HF_MLP, **HF_MOE},
    gguf_names={**GGUF_NAMES, **GGUF_QK_NORM, **GGUF_MLP, **GGUF_MOE},
    tiny=TINY,
)
