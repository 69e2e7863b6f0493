"""Configurations to plans: what is read, and the values that follow from the architecture."""

import json
import math

import pytest

from hga.models.plan import MlpPlan, MoePlan, RopePlan, tensor_roles
from hga.models.registry import ARCHITECTURES, plan_from_gguf, plan_from_hf

NAMES = [a.name for a in ARCHITECTURES]

# config.json of released models, without tokens ids: the sizes that their cards state.
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 262144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def weights(plan):
    return sum(math.prod(shape) for _, shape in tensor_roles(plan))


@pytest.mark.parametrize("name", NAMES)
def test_tiny_config_of_every_architecture(name):
    tiny = next(a.tiny for a in ARCHITECTURES if a.name == name)
    plan, specs = plan_from_hf(json.loads(json.dumps(tiny)))
    assert plan.architecture == name
    assert len(plan.layers) == tiny["num_hidden_layers"]
    assert [(s.role, s.shape) for s in specs] == list(tensor_roles(plan))
    assert len({s.source for s in specs}) == len(specs)


def test_llama_31_8b():
    plan, specs = plan_from_hf(LLAMA_31_8B)
    attention = plan.layers[0].attention
    assert weights(plan) == 8_030_261_248
    assert (attention.head_dim, attention.scale) == (128, 128**-0.5)
    assert attention.rope == RopePlan(500000.0, "llama3", 8.0, 8192, 1.0, 4.0)
    assert not plan.tied_head
    assert specs[-1].source == "model.layers.31.mlp.down_proj.weight"


def test_qwen3_30b_a3b():
    plan, specs = plan_from_hf(QWEN3_30B_A3B)
    assert weights(plan) == 30_532_122_624
    assert plan.layers[0].mlp == MoePlan(128, 8, 768, "silu", True)
    assert plan.layers[0].attention.qk_norm
    assert "model.layers.47.mlp.experts.127.up_proj.weight" in {s.source for s in specs}


def test_dense_layers_of_a_mixture(tiny):
    cfg = tiny.config("qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    plan, _ = plan_from_hf(cfg)
    kinds = [type(layer.mlp) for layer in plan.layers]
    assert kinds == [MlpPlan, MoePlan, MlpPlan, MlpPlan, MlpPlan, MoePlan]


def test_num_local_experts_is_the_newer_name(tiny):
    cfg = tiny.config("qwen3_moe", num_experts=None, num_local_experts=8)
    assert plan_from_hf(cfg) == plan_from_hf(tiny.config("qwen3_moe"))


def test_qwen2_has_biases_on_qkv_only(tiny):
    plan, specs = plan_from_hf(tiny.config("qwen2"))
    assert plan.layers[0].attention.qkv_bias
    assert not plan.layers[0].attention.o_bias
    assert sum(s.source.endswith(".bias") for s in specs) == 6


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gemma3"])
def test_attention_bias_is_on_all_four(tiny, name):
    plan, specs = plan_from_hf(tiny.config(name, attention_bias=True))
    n_bias = sum(s.source.endswith(".bias") for s in specs)
    assert n_bias == 4 * len(plan.layers)


def test_head_dim_follows_from_heads(tiny):
    plan, _ = plan_from_hf(tiny.config("llama", head_dim=None))
    assert plan.layers[0].attention.head_dim == 16


def test_gemma3_layers(tiny):
    plan, specs = plan_from_hf(tiny.config("gemma3"))
    assert [layer.attention.window for layer in plan.layers] == [32] * 5 + [0]
    assert [layer.attention.rope.theta for layer in plan.layers] == [1e4] * 5 + [1e6]
    assert plan.embed_scale == 8.0
    assert plan.layers[0].attention.scale == 32**-0.5
    assert plan.layers[0].post_norms and plan.tied_head
    norms = [s for s in specs if len(s.shape) == 1]
    assert {s.transform for s in norms} == {"add_one"}
    assert {s.transform for s in specs if len(s.shape) == 2} == {"none"}


def test_gemma3_query_scale_is_not_the_head_dim(tiny):
    plan, _ = plan_from_hf(tiny.config("gemma3", query_pre_attn_scalar=168))
    assert plan.layers[0].attention.scale == 168**-0.5


def test_gemma3_scaling_is_for_full_layers_only(tiny):
    cfg = tiny.config("gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0})
    plan, _ = plan_from_hf(cfg)
    assert plan.layers[0].attention.rope == RopePlan(1e4)
    assert plan.layers[5].attention.rope == RopePlan(1e6, "linear", 8.0)


def test_gemma3_rope_parameters_of_transformers_5(tiny):
    cfg = tiny.config(
        "gemma3",
        rope_theta=None,
        rope_local_base_freq=None,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    )
    plan, _ = plan_from_hf(cfg)
    assert plan.layers[0].attention.rope == RopePlan(1e4)
    assert plan.layers[5].attention.rope == RopePlan(1e6, "linear", 8.0)


def test_gemma3_pattern_without_layer_types(tiny):
    cfg = tiny.config("gemma3", layer_types=None, sliding_window_pattern=3)
    plan, _ = plan_from_hf(cfg)
    assert [layer.attention.window == 0 for layer in plan.layers] == [False, False, True] * 2


def test_gemma3_text_config_of_a_multimodal_model(tiny):
    inner = tiny.config("gemma3")
    outer = {"model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 1152}}
    assert plan_from_hf(outer) == plan_from_hf(inner)


def gguf_metadata(arch, **changes):
    values = {
        "context_length": 512,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    return {
        "general.architecture": arch,
        **{f"{arch}.{name}": value for name, value in values.items() if value is not None},
    }


SHAPES = {"token_embd.weight": (320, 64)}


def test_gguf_llama_unropes_q_and_k():
    plan, specs = plan_from_gguf(
        gguf_metadata("llama"), {**SHAPES, "blk.0.attn_q.bias": (64,), "output.weight": (320, 64)}
    )
    unroped = {(s.role, s.n_heads) for s in specs if s.transform == "unrope"}
    assert unroped == {
        (f"layers.{i}.{name}", heads)
        for i in (0, 1)
        for name, heads in (("q", 4), ("k", 2), ("q_bias", 4), ("k_bias", 2))
    }
    assert not plan.tied_head
    assert plan.vocab_size == 320


def test_gguf_ties_the_head_when_there_is_no_output_tensor():
    plan, specs = plan_from_gguf(gguf_metadata("qwen3"), SHAPES)
    assert plan.tied_head
    assert "output.weight" not in {s.source for s in specs}


def test_gguf_gemma3_pattern_and_local_base_are_the_architectures():
    metadata = gguf_metadata("gemma3", block_count=12, attention__sliding_window=512)
    plan, specs = plan_from_gguf(metadata, SHAPES)
    assert [i for i, layer in enumerate(plan.layers) if not layer.attention.window] == [5, 11]
    assert plan.layers[0].attention.rope.theta == 10000.0
    assert {s.transform for s in specs} == {"none"}


def test_gguf_gemma3_27b_scales_by_width_over_heads():
    metadata = gguf_metadata(
        "gemma3",
        block_count=62,
        embedding_length=5376,
        attention__head_count=32,
        attention__head_count_kv=16,
        attention__key_length=128,
        attention__sliding_window=1024,
    )
    plan, _ = plan_from_gguf(metadata, {"token_embd.weight": (320, 5376)})
    assert plan.layers[0].attention.scale == pytest.approx(168**-0.5)


def test_gguf_experts_are_slices_of_one_tensor():
    metadata = gguf_metadata(
        "qwen3moe", expert_count=8, expert_used_count=2, expert_feed_forward_length=32
    )
    plan, specs = plan_from_gguf(metadata, SHAPES)
    ups = [s for s in specs if s.source == "blk.1.ffn_up_exps.weight"]
    assert [s.expert for s in ups] == list(range(8))
    assert {s.shape for s in ups} == {(32, 64)}
    assert plan.layers[0].mlp == MoePlan(8, 2, 32, "silu", True)


def test_yarn_states_the_context(tiny):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    plan, _ = plan_from_hf(tiny.config("qwen3", rope_scaling=yarn))
    assert plan.ctx_train == 1024
