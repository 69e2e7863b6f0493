"""Qwen3, dense: an explicit head_dim, RMS norms on every query and key head, no qkv bias."""

from .architecture import (
    Architecture,
    GgufFacts,
    Sizes,
    full_attention_only,
    gguf_sizes,
    hf_sizes,
    mlp_width,
)
from .keys import Keys
from .names import (
    GGUF_MLP,
    GGUF_NAMES,
    GGUF_QK_NORM,
    HF_MLP,
    HF_NAMES,
    HF_O_BIAS,
    HF_QK_NORM,
    HF_QKV_BIAS,
)
from .plan import AttentionPlan, LayerPlan, MlpPlan, ModelPlan
from .rope import rope_from_gguf, rope_from_hf


def hf_attention(keys: Keys, sizes: Sizes) -> AttentionPlan:
    """Qwen3's attention, dense and mixture alike, from config.json."""
    keys.expect("hidden_act", "silu")
    full_attention_only(keys, sizes.n_layers)
    bias = keys.flag("attention_bias", False)
    return sizes.attention(rope_from_hf(keys), qk_norm=True, qkv_bias=bias, o_bias=bias)


def gguf_attention(keys: Keys, sizes: Sizes, facts: GgufFacts) -> AttentionPlan:
    """Qwen3's attention, dense and mixture alike, from GGUF metadata."""
    rope = rope_from_gguf(keys, sizes.head_dim, facts.rope_divisors)
    return sizes.attention(rope, qk_norm=True)


def read_hf(keys: Keys) -> ModelPlan:
    """ModelPlan of a Qwen3ForCausalLM config.json."""
    sizes = hf_sizes(keys)
    attention = hf_attention(keys, sizes)
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "intermediate_size"), "silu"))
    tied = keys.flag("tie_word_embeddings", False)
    return sizes.model("qwen3", [layer] * sizes.n_layers, tied=tied)


def read_gguf(keys: Keys, facts: GgufFacts) -> ModelPlan:
    """ModelPlan of a GGUF whose general.architecture is qwen3."""
    sizes = gguf_sizes(keys, facts)
    attention = gguf_attention(keys, sizes, facts)
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "feed_forward_length"), "silu"))
    return sizes.model("qwen3", [layer] * sizes.n_layers, tied="output.weight" not in facts.shapes)


TINY = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

QWEN3 = Architecture(
    name="qwen3",
    model_types=("qwen3",),
    gguf_name="qwen3",
    read_hf=read_hf,
    read_gguf=read_gguf,
    hf_names={**HF_NAMES, **HF_QKV_BIAS, **HF_O_BIAS, **HF_QK_NORM, **HF_MLP},
    gguf_names={**GGUF_NAMES, **GGUF_QK_NORM, **GGUF_MLP},
    tiny=TINY,
)
