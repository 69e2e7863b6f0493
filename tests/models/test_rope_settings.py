"""RoPE settings of both formats, and llama3 parameters rebuilt from the divisors of a GGUF."""

import math

import pytest

from hga.models.plan import ConfigError, RopePlan, UnsupportedError
from hga.models.registry import plan_from_gguf, plan_from_hf
from hga.models.rope import llama3_divisors, llama3_from_divisors, yarn_factor

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_of(tiny, **changes):
    plan, _ = plan_from_hf(tiny.config("llama", **changes))
    return plan.layers[0].attention.rope


def test_no_scaling(tiny):
    assert rope_of(tiny) == RopePlan(10000.0)
    assert rope_of(tiny, rope_scaling={"rope_type": "default"}) == RopePlan(10000.0)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_old_and_new_name_of_the_kind(tiny, key):
    rope = rope_of(tiny, rope_scaling={key: "linear", "factor": 2})
    assert rope == RopePlan(10000.0, "linear", 2.0)


def test_both_names_must_agree(tiny):
    rope = rope_of(tiny, rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2})
    assert rope.kind == "linear"
    with pytest.raises(ConfigError, match="rope_type"):
        rope_of(tiny, rope_scaling={"type": "yarn", "rope_type": "linear", "factor": 2})


def test_llama3(tiny):
    rope = rope_of(tiny, rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert rope == RopePlan(10000.0, "llama3", 8.0, 8192, 1.0, 4.0)


def test_yarn_default_attention_factor(tiny):
    rope = rope_of(tiny, rope_scaling={"type": "yarn", **YARN})
    assert (rope.kind, rope.factor, rope.original_ctx) == ("yarn", 4.0, 32768)
    assert (rope.beta_fast, rope.beta_slow) == (32.0, 1.0)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_explicit_values(tiny):
    scaling = {"type": "yarn", **YARN, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2}
    rope = rope_of(tiny, rope_scaling=scaling)
    assert (rope.attention_factor, rope.beta_fast, rope.beta_slow) == (1.5, 16.0, 2.0)


def test_rope_parameters_of_transformers_5(tiny):
    new = {"rope_theta": 10000.0, "rope_type": "llama3", **LLAMA3}
    old = rope_of(tiny, rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert rope_of(tiny, rope_theta=None, rope_parameters=new) == old
    assert rope_of(tiny, rope_parameters=new) == old


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"rope_theta": None}, ConfigError, "rope_theta is missing"),
        ({"rope_theta": 0.5}, ConfigError, "rope_theta"),
        ({"rope_theta": True}, ConfigError, "rope_theta"),
        ({"rope_theta": "10000"}, ConfigError, "rope_theta"),
        ({"rope_theta": math.nan}, ConfigError, "rope_theta"),
        ({"rope_theta": math.inf}, ConfigError, "rope_theta"),
        ({"rope_theta": 10**400}, ConfigError, "rope_theta"),
        ({"rope_theta": None, "rope_parameters": {}}, ConfigError, "rope_theta is missing"),
        ({"rope_parameters": {"rope_theta": 5e5}}, UnsupportedError, "rope_theta is 10000"),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "default"}},
            UnsupportedError,
            "rope_scaling",
        ),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, ConfigError, "rope_scaling"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, UnsupportedError, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, UnsupportedError, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, ConfigError, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, ConfigError, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "x": 1}}, UnsupportedError, "'x' = 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, ConfigError, "original_max_position"),
        ({"rope_scaling": {"type": "yarn", **YARN, "mscale": 1.0}}, UnsupportedError, "mscale"),
        ({"rope_scaling": {"type": "yarn", **YARN, "truncate": False}}, UnsupportedError, "trunc"),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            ConfigError,
            "high_freq_factor",
        ),
        ({"rope_interleaved": True}, UnsupportedError, "rope_interleaved"),
    ],
)
def test_refusals(tiny, changes, error, text):
    with pytest.raises(error, match=text):
        rope_of(tiny, **changes)


def gguf_rope(divisors=None, **changes):
    values = {
        "context_length": 512,
        "embedding_length": 256,
        "block_count": 1,
        "feed_forward_length": 128,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    metadata = {f"llama.{k}": v for k, v in values.items() if v is not None}
    plan, _ = plan_from_gguf(
        {"general.architecture": "llama", **metadata}, {"token_embd.weight": (320, 256)}, divisors
    )
    return plan.layers[0].attention.rope


def test_gguf_kinds():
    assert gguf_rope() == RopePlan(500000.0)
    assert gguf_rope(rope__scaling__type="none") == RopePlan(500000.0)
    linear = gguf_rope(rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert linear == RopePlan(500000.0, "linear", 8.0)
    yarn = gguf_rope(
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=32768,
    )
    assert (yarn.kind, yarn.original_ctx, yarn.beta_fast) == ("yarn", 32768, 32.0)
    assert yarn.attention_factor == pytest.approx(yarn_factor(4.0))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"rope__freq_base": None}, ConfigError, r"llama\.rope\.freq_base is missing"),
        ({"rope__dimension_count": 64}, ConfigError, "rope.dimension_count"),
        ({"rope__scaling__type": "longrope"}, UnsupportedError, "longrope"),
        ({"rope__scaling__type": "yarn"}, ConfigError, "factor is missing"),
        ({"rope__scaling__factor": 4.0}, UnsupportedError, "rope.scaling.factor"),
        ({"rope__scaling__alpha": 4.0}, UnsupportedError, "rope.scaling.alpha"),
    ],
)
def test_gguf_refusals(changes, error, text):
    with pytest.raises(error, match=text):
        gguf_rope(**changes)


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor", "low", "high", "original"),
    [
        (500000.0, 128, 8.0, 1.0, 4.0, 8192),
        (500000.0, 64, 32.0, 1.0, 4.0, 8192),
        (500000.0, 128, 16.0, 1.0, 2.0, 8192),
        (1e6, 128, 4.0, 2.0, 8.0, 16384),
    ],
)
def test_llama3_is_rebuilt_from_its_divisors(theta, head_dim, factor, low, high, original):
    plan = RopePlan(theta, "llama3", factor, original, low, high)
    divisors = llama3_divisors(plan, head_dim)
    assert min(divisors) == 1 and max(divisors) == factor
    found = llama3_from_divisors(theta, head_dim, divisors, 8192)
    assert found.kind == "llama3" and found.original_ctx == 8192
    assert llama3_divisors(found, head_dim) == pytest.approx(divisors, rel=1e-4)
    # Only the ratios matter: another original length gives the same curve.
    assert found.low_freq_factor / found.original_ctx == pytest.approx(low / original, rel=1e-3)


def test_llama3_in_a_gguf():
    expected = RopePlan(500000.0, "llama3", 8.0, 8192, 1.0, 4.0)
    divisors = llama3_divisors(expected, 128)
    assert gguf_rope(divisors) == expected
    assert gguf_rope([1.0] * 64) == RopePlan(500000.0)


@pytest.mark.parametrize(
    ("divisors", "error", "text"),
    [
        ([1.0] * 63, ConfigError, "expected 64 values, found 63"),
        ([math.nan] * 64, ConfigError, "finite"),
        ([0.0] * 64, ConfigError, "finite values in 1"),
        ([1.0 + i for i in range(64)], UnsupportedError, "not a llama3 scaling"),
    ],
)
def test_divisors_refused(divisors, error, text):
    with pytest.raises(error, match=text):
        gguf_rope(divisors)


def test_divisors_beside_another_scaling():
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        gguf_rope([1.0] * 64, rope__scaling__type="yarn", rope__scaling__factor=4.0)
