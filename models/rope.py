"""RoPE settings of checkpoints -> RopePlan: none, linear, llama3, yarn.

Sources: transformers `modeling_rope_utils.py` (rope_scaling, and rope_parameters since version 5),
llama.cpp's GGUF keys `{arch}.rope.*` and its tensor `rope_freqs.weight`, which holds Llama 3.1
scaling as one divisor per frequency.
"""

import math
from collections.abc import Sequence

from .keys import Keys
from .plan import ConfigError, RopePlan, UnsupportedError

_CTX_MAX = 1 << 31
_THETA = (1.0, 1e12)
_FACTOR = (1.0, 1e4)
_KINDS = "none, linear, llama3, yarn"


def rope_from_hf(keys: Keys, layer_type: str = "full_attention") -> RopePlan:
    """RoPE of config.json: `rope_theta` with `rope_scaling`, or `rope_parameters`.

    `layer_type` picks the entry where rope_parameters holds one object per layer type.
    """
    keys.expect("partial_rotary_factor", 1.0, 1)
    if not keys.has("rope_parameters"):
        theta = keys.number("rope_theta", *_THETA)
        if not keys.has("rope_scaling"):
            keys.ignore("rope_scaling")
            return RopePlan(theta)
        scaling = keys.section("rope_scaling")
        plan = _scaled(scaling, theta)
        scaling.finish()
        return plan
    keys.expect_null("rope_scaling")
    parameters = keys.section("rope_parameters")
    if parameters.has(layer_type):
        nested = parameters.section(layer_type)
        plan = _scaled(nested, nested.number("rope_theta", *_THETA))
        nested.finish()
        parameters.ignore("full_attention", "sliding_attention")
        parameters.finish()
        return plan
    plan = _scaled(parameters, parameters.number("rope_theta", *_THETA))
    parameters.finish()
    keys.expect("rope_theta", plan.theta, int(plan.theta))
    return plan


def _scaled(keys: Keys, theta: float) -> RopePlan:
    kind = keys.text("rope_type", "" if keys.has("type") else "default")
    legacy = keys.text("type", kind)
    if kind and legacy != kind:
        raise keys.wrong("type", f"the same as rope_type, {kind!r}", legacy)
    kind = kind or legacy
    keys.expect("partial_rotary_factor", 1.0, 1)
    if kind == "default":
        return RopePlan(theta)
    if kind == "linear":
        return RopePlan(theta, "linear", keys.number("factor", *_FACTOR))
    if kind == "llama3":
        return RopePlan(
            theta,
            "llama3",
            keys.number("factor", *_FACTOR),
            keys.integer("original_max_position_embeddings", 1, _CTX_MAX),
            *_llama3_range(keys),
        )
    if kind == "yarn":
        factor = keys.number("factor", *_FACTOR)
        keys.expect("truncate", True)
        keys.expect_null("mscale", "mscale_all_dim")
        return RopePlan(
            theta,
            "yarn",
            factor,
            keys.integer("original_max_position_embeddings", 1, _CTX_MAX),
            beta_fast=keys.number("beta_fast", 1e-3, 1e6, 32.0),
            beta_slow=keys.number("beta_slow", 1e-3, 1e6, 1.0),
            attention_factor=keys.number("attention_factor", 1e-3, 1e3, yarn_factor(factor)),
        )
    raise keys.unsupported("rope_type", _KINDS, kind)


def _llama3_range(keys: Keys) -> tuple[float, float]:
    low = keys.number("low_freq_factor", 1e-3, 1e6)
    high = keys.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise keys.wrong("high_freq_factor", f"more than low_freq_factor {low:g}", high)
    return low, high


def yarn_factor(factor: float) -> float:
    """YaRN's default attention factor (it multiplies cos and sin): 0.1 ln(factor) + 1."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_from_gguf(keys: Keys, head_dim: int, divisors: Sequence[float] | None) -> RopePlan:
    """RoPE of GGUF metadata; `divisors` is the content of rope_freqs.weight, None if absent."""
    theta = keys.number("rope.freq_base", *_THETA)
    keys.integer("rope.dimension_count", head_dim, head_dim, head_dim)
    keys.ignore("rope.scaling.finetuned")
    keys.expect("rope.scale_linear", 1.0)
    kind = keys.text("rope.scaling.type", "none")
    if divisors is not None:
        if kind != "none":
            raise keys.unsupported("rope.scaling.type", "none beside rope_freqs.weight", kind)
        original = keys.integer("rope.scaling.original_context_length", 1, _CTX_MAX, 8192)
        keys.expect("rope.scaling.factor", 1.0, 0.0)
        return llama3_from_divisors(theta, head_dim, divisors, original)
    if kind == "none":
        keys.expect("rope.scaling.factor", 1.0, 0.0)
        keys.ignore("rope.scaling.original_context_length")
        keys.expect("rope.scaling.attn_factor", 1.0)
        return RopePlan(theta)
    if kind not in ("linear", "yarn"):
        raise keys.unsupported("rope.scaling.type", _KINDS, kind)
    factor = keys.number("rope.scaling.factor", *_FACTOR)
    if kind == "linear":
        keys.ignore("rope.scaling.original_context_length")
        keys.expect("rope.scaling.attn_factor", 1.0)
        return RopePlan(theta, "linear", factor)
    keys.expect("rope.scaling.yarn_ext_factor", 1.0)
    extra = keys.number("rope.scaling.attn_factor", 1e-3, 1e3, 1.0)
    extra *= keys.number("rope.scaling.yarn_attn_factor", 1e-3, 1e3, 1.0)
    return RopePlan(
        theta,
        "yarn",
        factor,
        keys.integer("rope.scaling.original_context_length", 1, _CTX_MAX),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        attention_factor=extra * yarn_factor(factor),
    )


def llama3_divisors(rope: RopePlan, head_dim: int) -> list[float]:
    """What a llama3 plan divides each of the head_dim / 2 inverse frequencies by."""
    out = []
    for wave in _wavelengths(rope.theta, head_dim):
        smooth = (rope.original_ctx / wave - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        smooth = min(1.0, max(0.0, smooth))
        out.append(1.0 / ((1.0 - smooth) / rope.factor + smooth))
    return out


def llama3_from_divisors(
    theta: float, head_dim: int, divisors: Sequence[float], original_ctx: int
) -> RopePlan:
    """The llama3 plan whose divisors are these, or UnsupportedError.

    The usual parameters (1, 4) are tried first. Otherwise two divisors between the ends give
    the line smooth = a / wavelength - b, which fixes the rest for the given original_ctx. Every
    divisor is then compared, to a relative 1e-4 (the tensor is float32).
    """
    name = "rope_freqs.weight"
    if len(divisors) != head_dim // 2:
        raise ConfigError(f"{name}: expected {head_dim // 2} values, found {len(divisors)}")
    if not all(math.isfinite(d) and _FACTOR[0] - 1e-4 <= d <= _FACTOR[1] for d in divisors):
        raise ConfigError(f"{name}: expected finite values in {_FACTOR[0]:g}..{_FACTOR[1]:g}")
    if all(abs(d - 1) < 1e-6 for d in divisors):
        return RopePlan(theta)
    factor = max(divisors)
    plans = [RopePlan(theta, "llama3", factor, original_ctx, 1.0, 4.0)]
    line = [
        (1 / wave, (1 / d - 1 / factor) / (1 - 1 / factor))
        for wave, d in zip(_wavelengths(theta, head_dim), divisors)
        if 1.001 < d < factor * 0.999
    ]
    if len(line) >= 2 and line[0][1] != line[-1][1]:
        slope = (line[-1][1] - line[0][1]) / (line[-1][0] - line[0][0])
        offset = slope * line[0][0] - line[0][1]
        width = original_ctx / slope
        low, high = offset * width, (offset + 1) * width
        if 0 < low < high:
            plans.append(RopePlan(theta, "llama3", factor, original_ctx, low, high))
    for plan in plans:
        if all(abs(a - b) <= 1e-4 * b for a, b in zip(llama3_divisors(plan, head_dim), divisors)):
            return plan
    raise UnsupportedError(
        f"{name}: these frequency divisors are not a llama3 scaling; supported: {_KINDS}"
    )


def _wavelengths(theta: float, head_dim: int) -> list[float]:
    return [2 * math.pi * theta ** (2 * i / head_dim) for i in range(head_dim // 2)]
