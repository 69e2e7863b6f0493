"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v and none on o."""

from .architecture import (
    Architecture,
    GgufFacts,
    full_attention_only,
    gguf_sizes,
    hf_sizes,
    mlp_width,
)
from .keys import Keys
from .names import GGUF_MLP, GGUF_NAMES, GGUF_QKV_BIAS, HF_MLP, HF_NAMES, HF_QKV_BIAS
from .plan import LayerPlan, MlpPlan, ModelPlan
from .rope import rope_from_gguf, rope_from_hf


def read_hf(keys: Keys) -> ModelPlan:
    """ModelPlan of a Qwen2ForCausalLM config.json."""
    sizes = hf_sizes(keys)
    keys.expect("hidden_act", "silu")
    keys.expect("use_mrope", False)
    full_attention_only(keys, sizes.n_layers)
    attention = sizes.attention(rope_from_hf(keys), qkv_bias=True)
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "intermediate_size"), "silu"))
    tied = keys.flag("tie_word_embeddings", False)
    return sizes.model("qwen2", [layer] * sizes.n_layers, tied=tied)


def read_gguf(keys: Keys, facts: GgufFacts) -> ModelPlan:
    """ModelPlan of a GGUF whose general.architecture is qwen2."""
    sizes = gguf_sizes(keys, facts)
    rope = rope_from_gguf(keys, sizes.head_dim, facts.rope_divisors)
    attention = sizes.attention(rope, qkv_bias=True)
    layer = LayerPlan(attention, MlpPlan(mlp_width(keys, "feed_forward_length"), "silu"))
    return sizes.model("qwen2", [layer] * sizes.n_layers, tied="output.weight" not in facts.shapes)


TINY = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 512,
    "max_window_layers": 2,
    "tie_word_embeddings": True,
}

QWEN2 = Architecture(
    name="qwen2",
    model_types=("qwen2",),
    gguf_name="qwen2",
    read_hf=read_hf,
    read_gguf=read_gguf,
    hf_names={**HF_NAMES, **HF_QKV_BIAS, **HF_MLP},
    gguf_names={**GGUF_NAMES, **GGUF_QKV_BIAS, **GGUF_MLP},
    tiny=TINY,
)
