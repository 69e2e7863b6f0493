"""Llama (1 to 3.3, SmolLM and others of the same shape): RMS norms, RoPE, SiLU-gated MLP.

GGUF files of this architecture hold q and k with the RoPE pairs of each head interleaved.
"""

from .architecture import Architecture, GgufFacts, gguf_sizes, hf_sizes, mlp_width
from .keys import Keys
from .names import (
    GGUF_MLP,
    GGUF_NAMES,
    GGUF_O_BIAS,
    GGUF_QKV_BIAS,
    HF_MLP,
    HF_NAMES,
    HF_O_BIAS,
    HF_QKV_BIAS,
)
from .plan import LayerPlan, MlpPlan, ModelPlan
from .rope import rope_from_gguf, rope_from_hf


def read_hf(keys: Keys) -> ModelPlan:
    """ModelPlan of a LlamaForCausalLM config.json."""
    sizes = hf_sizes(keys)
    keys.expect("hidden_act", "silu")
    keys.expect("mlp_bias", False)
    keys.expect("pretraining_tp", 1)
    keys.expect("rope_interleaved", False)
    keys.ignore("is_llama_config")
    bias = keys.flag("attention_bias", False)
    attention = sizes.attention(rope_from_hf(keys), qkv_bias=bias, o_bias=bias)
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "intermediate_size"), "silu"))
    tied = keys.flag("tie_word_embeddings", False)
    return sizes.model("llama", [layer] * sizes.n_layers, tied=tied)


def read_gguf(keys: Keys, facts: GgufFacts) -> ModelPlan:
    """ModelPlan of a GGUF; biases are there if the first layer has them."""
    sizes = gguf_sizes(keys, facts)
    keys.expect("expert_count", 0)
    keys.expect("expert_used_count", 0)
    attention = sizes.attention(
        rope_from_gguf(keys, sizes.head_dim, facts.rope_divisors),
        qkv_bias="blk.0.attn_q.bias" in facts.shapes,
        o_bias="blk.0.attn_output.bias" in facts.shapes,
    )
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "feed_forward_length"), "silu"))
    return sizes.model("llama", [layer] * sizes.n_layers, tied="output.weight" not in facts.shapes)


TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}

LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    gguf_name="llama",
    read_hf=read_hf,
    read_gguf=read_gguf,
    hf_names={**HF_NAMES, **HF_QKV_BIAS, **HF_O_BIAS, **HF_MLP},
    gguf_names={**GGUF_NAMES, **GGUF_QKV_BIAS, **GGUF_O_BIAS, **GGUF_MLP},
    gguf_transforms={f"layers.{{i}}.{name}": "unrope" for name in ("q", "k", "q_bias", "k_bias")},
    tiny=TINY,
)
