"""Gemma 3 text models: five sliding-window layers to one full layer, norms on both ends of each
branch, scaled embeddings, GELU-gated MLP.

Sliding layers use their own RoPE base and no scaling. Norm weights are stored as w - 1 by Hugging
Face and as w in a GGUF. The embedding scale is sqrt(hidden) in float, as in llama.cpp
(transformers rounds it to the model's dtype).
"""

import math

from .architecture import Architecture, GgufFacts, gguf_sizes, hf_sizes, mlp_width
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
from .plan import AttentionPlan, LayerPlan, MlpPlan, ModelPlan, RopePlan
from .rope import rope_from_gguf, rope_from_hf

# Fixed by the architecture where a GGUF does not state them.
_LOCAL_THETA = 10000.0
_PATTERN = 6


def _layers(
    windowed: list[bool], full: AttentionPlan, local: AttentionPlan, width: int
) -> tuple[LayerPlan, ...]:
    mlp = MlpPlan(width, "gelu_tanh")
    return tuple(LayerPlan(local if w else full, mlp, post_norms=True) for w in windowed)


def _by_pattern(n_layers: int, pattern: int) -> list[bool]:
    return [(i + 1) % pattern != 0 for i in range(n_layers)]


def _hf_windowed(keys: Keys, n_layers: int) -> list[bool]:
    """Which layers have a window: layer_types, or else a pattern (transformers 4.50 to 4.52)."""
    pattern = 0
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        if keys.has(name):
            pattern = keys.integer(name, 1, 1000)
    kinds = keys.raw("layer_types", None)
    if kinds is None:
        if not pattern:
            raise keys.wrong("layer_types", "it or sliding_window_pattern", None)
        return _by_pattern(n_layers, pattern)
    allowed = ("sliding_attention", "full_attention")
    if (
        not isinstance(kinds, list)
        or len(kinds) != n_layers
        or not all(kind in allowed for kind in kinds)
    ):
        raise keys.wrong("layer_types", f"{n_layers} times {' or '.join(allowed)}", kinds)
    return [kind == "sliding_attention" for kind in kinds]


def _hf_local_rope(keys: Keys) -> RopePlan:
    if keys.has("rope_parameters"):
        return rope_from_hf(keys, "sliding_attention")
    return RopePlan(keys.number("rope_local_base_freq", 1.0, 1e12))


def read_hf(keys: Keys) -> ModelPlan:
    """ModelPlan of a Gemma3ForCausalLM config.json, or of the text_config of a multimodal one."""
    sizes = hf_sizes(keys)
    activation = "hidden_activation" if keys.has("hidden_activation") else "hidden_act"
    if keys.text(activation) != "gelu_pytorch_tanh":
        raise keys.unsupported(activation, "gelu_pytorch_tanh", keys.text(activation))
    keys.expect("hidden_act", "gelu_pytorch_tanh")
    keys.expect_null("attn_logit_softcapping", "final_logit_softcapping")
    keys.expect("use_bidirectional_attention", False)
    bias = keys.flag("attention_bias", False)
    scale = keys.number("query_pre_attn_scalar", 1.0, 1e6) ** -0.5
    window = keys.integer("sliding_window", 1, 1 << 31)
    windowed = _hf_windowed(keys, sizes.n_layers)
    width = mlp_width(keys, "intermediate_size")
    full, local = (
        sizes.attention(rope, scale=scale, window=w, qk_norm=True, qkv_bias=bias, o_bias=bias)
        for rope, w in ((rope_from_hf(keys), 0), (_hf_local_rope(keys), window))
    )
    return sizes.model(
        "gemma3",
        _layers(windowed, full, local, width),
        tied=keys.flag("tie_word_embeddings", True),
        embed_scale=math.sqrt(sizes.hidden),
    )


def read_gguf(keys: Keys, facts: GgufFacts) -> ModelPlan:
    """ModelPlan of a GGUF. The scale of q.k is not in the metadata: 1 / sqrt(head_dim), but
    1 / sqrt(hidden / heads) in the 27B model, which llama.cpp too knows by its 62 layers."""
    sizes = gguf_sizes(keys, facts)
    keys.expect("attn_logit_softcapping", 0.0)
    keys.expect("final_logit_softcapping", 0.0)
    window = keys.integer("attention.sliding_window", 1, 1 << 31)
    pattern = keys.integer("attention.sliding_window_pattern", 1, 1000, _PATTERN)
    rope = rope_from_gguf(keys, sizes.head_dim, facts.rope_divisors)
    local_rope = RopePlan(keys.number("rope.freq_base_swa", 1.0, 1e12, _LOCAL_THETA))
    scale = (sizes.hidden / sizes.n_heads) ** -0.5 if sizes.n_layers == 62 else 0.0
    width = mlp_width(keys, "feed_forward_length")
    full = sizes.attention(rope, scale=scale, qk_norm=True)
    local = sizes.attention(local_rope, scale=scale, window=window, qk_norm=True)
    windowed = _by_pattern(sizes.n_layers, pattern)
    return sizes.model(
        "gemma3",
        _layers(windowed, full, local, width),
        tied="output.weight" not in facts.shapes,
        embed_scale=math.sqrt(sizes.hidden),
    )


TINY = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": 32,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
}

_NORMS = ("attn_norm", "q_norm", "k_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")

GEMMA3 = Architecture(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    gguf_name="gemma3",
    read_hf=read_hf,
    read_gguf=read_gguf,
    hf_names={
        **HF_NAMES,
        **HF_QKV_BIAS,
        **HF_O_BIAS,
        **HF_QK_NORM,
        **HF_MLP,
        "layers.{i}.post_attn_norm": "model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm.weight",
        "layers.{i}.post_mlp_norm": "model.layers.{i}.post_feedforward_layernorm.weight",
    },
    gguf_names={
        **GGUF_NAMES,
        **GGUF_QK_NORM,
        **GGUF_MLP,
        "layers.{i}.post_attn_norm": "blk.{i}.post_attention_norm.weight",
        "layers.{i}.post_mlp_norm": "blk.{i}.post_ffw_norm.weight",
    },
    hf_transforms={
        "final_norm": "add_one",
        **{f"layers.{{i}}.{name}": "add_one" for name in _NORMS},
    },
    tiny=TINY,
)
