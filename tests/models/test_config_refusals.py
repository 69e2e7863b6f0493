"""Every configuration value that is not understood is refused by name."""

import math

import pytest

from hga.models.plan import ConfigError, UnsupportedError
from hga.models.registry import ARCHITECTURES, plan_from_gguf, plan_from_hf

NAMES = [a.name for a in ARCHITECTURES]
REQUIRED = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key(tiny, name, key):
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        plan_from_hf(tiny.config(name, **{key: None}))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_key(tiny, name):
    with pytest.raises(UnsupportedError, match="'logit_bias_scale' = 3"):
        plan_from_hf(tiny.config(name, logit_bias_scale=3))


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("value", [True, "64", 64.0, 0, -1, [64], 10**30])
def test_sizes_must_be_sane_integers(tiny, key, value):
    with pytest.raises(ConfigError, match=f"{key}: expected an integer"):
        plan_from_hf(tiny.config("llama", **{key: value}))


@pytest.mark.parametrize("value", [True, "1e-6", 0, -1e-6, 1.0, math.nan, math.inf])
def test_eps_must_be_a_sane_number(tiny, value):
    with pytest.raises(ConfigError, match="rms_norm_eps: expected a"):
        plan_from_hf(tiny.config("llama", rms_norm_eps=value))


@pytest.mark.parametrize(
    ("name", "changes", "error", "text"),
    [
        ("llama", {"model_type": "mamba"}, UnsupportedError, "llama, qwen2, qwen3, qwen3_moe"),
        ("llama", {"model_type": 3}, ConfigError, "model_type: expected a string"),
        ("llama", {"hidden_act": "relu"}, UnsupportedError, "hidden_act is 'relu'"),
        ("llama", {"mlp_bias": True}, UnsupportedError, "mlp_bias"),
        ("llama", {"mlp_bias": 0}, UnsupportedError, "mlp_bias"),
        ("llama", {"pretraining_tp": 2}, UnsupportedError, "pretraining_tp is 2"),
        ("llama", {"attention_bias": 1}, ConfigError, "attention_bias: expected true or false"),
        ("llama", {"tie_word_embeddings": "yes"}, ConfigError, "tie_word_embeddings"),
        ("llama", {"num_hidden_layers": 1001}, ConfigError, "1..1000"),
        ("llama", {"num_key_value_heads": 3}, ConfigError, "4 query heads .* 3 KV heads"),
        ("llama", {"num_attention_heads": 5, "head_dim": None}, ConfigError, "multiple of the 5"),
        ("llama", {"head_dim": 17}, ConfigError, "odd"),
        ("llama", {"hidden_size": 72}, UnsupportedError, "multiples of 32"),
        ("llama", {"intermediate_size": 100}, UnsupportedError, "multiples of 32"),
        ("llama", {"add_cross_attention": True}, UnsupportedError, "add_cross_attention"),
        ("qwen2", {"use_sliding_window": True}, UnsupportedError, "use_sliding_window"),
        ("qwen2", {"use_mrope": True}, UnsupportedError, "use_mrope"),
        ("qwen3", {"layer_types": ["full_attention"]}, ConfigError, "a list of 2 names"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            UnsupportedError,
            "sliding_attention",
        ),
        ("qwen3", {"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, ConfigError, "1..8"),
        ("qwen3_moe", {"num_experts": 0}, ConfigError, "num_experts"),
        ("qwen3_moe", {"num_local_experts": 4}, UnsupportedError, "num_local_experts is 4"),
        ("qwen3_moe", {"norm_topk_prob": None}, ConfigError, "norm_topk_prob is missing"),
        ("qwen3_moe", {"mlp_only_layers": [2]}, ConfigError, "mlp_only_layers"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, ConfigError, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, ConfigError, "decoder_sparse_step"),
        (
            "qwen3_moe",
            {"shared_expert_intermediate_size": 64},
            UnsupportedError,
            "shared_expert_intermediate_size",
        ),
        ("gemma3", {"hidden_activation": "gelu"}, UnsupportedError, "gelu_pytorch_tanh"),
        ("gemma3", {"hidden_activation": None}, ConfigError, "hidden_act is missing"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, UnsupportedError, "attn_logit_soft"),
        ("gemma3", {"final_logit_softcapping": 30.0}, UnsupportedError, "final_logit_soft"),
        ("gemma3", {"use_bidirectional_attention": True}, UnsupportedError, "bidirectional"),
        ("gemma3", {"sliding_window": None}, ConfigError, "sliding_window is missing"),
        ("gemma3", {"query_pre_attn_scalar": None}, ConfigError, "query_pre_attn_scalar"),
        ("gemma3", {"rope_local_base_freq": None}, ConfigError, "rope_local_base_freq"),
        ("gemma3", {"layer_types": None}, ConfigError, "layer_types"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 6}, ConfigError, "layer_types"),
        ("gemma3", {"layer_types": [["full_attention"]] * 6}, ConfigError, "layer_types"),
    ],
)
def test_value_refused(tiny, name, changes, error, text):
    with pytest.raises(error, match=text):
        plan_from_hf(tiny.config(name, **changes))


def test_text_config_is_for_gemma3_only(tiny):
    with pytest.raises(UnsupportedError, match="model_type is 'gemma3_text'"):
        plan_from_hf({"model_type": "llama", "text_config": tiny.config("gemma3")})


def test_unknown_key_beside_text_config(tiny):
    outer = {"model_type": "gemma3", "text_config": tiny.config("gemma3"), "audio_config": {}}
    with pytest.raises(UnsupportedError, match="audio_config"):
        plan_from_hf(outer)


def gguf(**changes):
    values = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"general__architecture": None}, ConfigError, "general.architecture is missing"),
        (
            {"general__architecture": "mamba"},
            UnsupportedError,
            "'mamba'; supported: llama, qwen2, qwen3, qwen3moe, gemma3",
        ),
        ({"general__architecture": ["llama"]}, UnsupportedError, "supported"),
        ({"general__type": "adapter"}, UnsupportedError, "general.type is 'adapter'"),
        ({"split__count": 3}, UnsupportedError, "split.count is 3"),
        ({"llama__block_count": None}, ConfigError, "llama.block_count is missing"),
        ({"llama__block_count": True}, ConfigError, "llama.block_count"),
        ({"llama__attention__head_count": [4, 4]}, ConfigError, "head_count: expected an int"),
        ({"llama__attention__value_length": 8}, ConfigError, "value_length"),
        ({"llama__vocab_size": 321}, ConfigError, "vocab_size.*320..320"),
        ({"llama__expert_count": 8}, UnsupportedError, "expert_count is 8"),
        ({"llama__logit_scale": 0.5}, UnsupportedError, "'llama.logit_scale' = 0.5"),
    ],
)
def test_gguf_value_refused(changes, error, text):
    with pytest.raises(error, match=text):
        plan_from_gguf(gguf(**changes), {"token_embd.weight": (320, 64)})


@pytest.mark.parametrize("shapes", [{}, {"token_embd.weight": (320,)}])
def test_gguf_needs_an_embedding(shapes):
    with pytest.raises(ConfigError, match="token_embd"):
        plan_from_gguf(gguf(), shapes)


def test_gguf_gemma3_refusals():
    base = {
        name.replace("llama.", "gemma3."): value
        for name, value in gguf(general__architecture="gemma3").items()
    }
    shapes = {"token_embd.weight": (320, 64)}
    with pytest.raises(ConfigError, match="sliding_window is missing"):
        plan_from_gguf(base, shapes)
    base["gemma3.attention.sliding_window"] = 512
    plan_from_gguf(base, shapes)
    with pytest.raises(UnsupportedError, match="final_logit_softcapping"):
        plan_from_gguf({**base, "gemma3.final_logit_softcapping": 30.0}, shapes)
