"""The plan inside a packed file: strict decoding and sane ranges.

A packed file is not trusted: a plan with an unknown, missing or out-of-range field is refused
before anything is sized from it. The tensors it implies are models.plan.tensor_roles.
"""

import dataclasses
from typing import Any, TypeVar, get_type_hints

import msgspec

from hga.models.plan import AttentionPlan, LayerPlan, MlpPlan, ModelPlan, MoePlan, RopePlan

MAX_LAYERS = 1000
T = TypeVar("T")
_TYPES: dict[type, dict[str, Any]] = {
    cls: get_type_hints(cls)
    for cls in (ModelPlan, LayerPlan, AttentionPlan, RopePlan, MlpPlan, MoePlan)
}


class ContainerError(ValueError):
    """A packed file is damaged, was written by another version, or contradicts itself."""


def encode_plan(plan: ModelPlan) -> dict[str, Any]:
    """The plan as plain JSON values; decode_plan gives it back."""
    encoded: dict[str, Any] = msgspec.to_builtins(plan)
    return encoded


def decode_plan(raw: object) -> ModelPlan:
    """A ModelPlan from decoded JSON; ContainerError names the field that is wrong."""
    fields = _fields(ModelPlan, raw, "plan")
    raw_layers = fields["layers"]
    if not isinstance(raw_layers, list | tuple) or not 1 <= len(raw_layers) <= MAX_LAYERS:
        raise ContainerError(f"plan.layers needs to be a list of 1 to {MAX_LAYERS} layers")
    layers = tuple(_layer(layer, f"plan.layers[{i}]") for i, layer in enumerate(raw_layers))
    plan = _build(ModelPlan, fields, "plan", layers=layers)
    _check(plan)
    return plan


def _layer(raw: object, path: str) -> LayerPlan:
    fields = _fields(LayerPlan, raw, path)
    attention = _fields(AttentionPlan, fields["attention"], f"{path}.attention")
    rope_fields = _fields(RopePlan, attention["rope"], f"{path}.attention.rope")
    rope = _build(RopePlan, rope_fields, f"{path}.attention.rope")
    mlp = fields["mlp"]
    kind: type[MoePlan | MlpPlan] = MlpPlan
    if isinstance(mlp, dict) and "n_experts" in mlp:
        kind = MoePlan
    return _build(
        LayerPlan,
        fields,
        path,
        attention=_build(AttentionPlan, attention, f"{path}.attention", rope=rope),
        mlp=_build(kind, _fields(kind, mlp, f"{path}.mlp"), f"{path}.mlp"),
    )


def _fields(cls: type, raw: object, path: str) -> dict[str, Any]:
    """A JSON object as it is, if it has exactly the fields of a dataclass; else ContainerError."""
    if not isinstance(raw, dict):
        raise ContainerError(f"{path} needs to be an object, found {type(raw).__name__}")
    expected = {field.name for field in dataclasses.fields(cls)}
    if raw.keys() != expected:
        missing = ", ".join(sorted(expected - raw.keys())) or "none"
        unknown = ", ".join(sorted(str(k)[:40] for k in raw.keys() - expected)) or "none"
        raise ContainerError(f"{path}: fields missing: {missing}; unknown: {unknown[:200]}")
    return raw


def _build(cls: type[T], fields: dict[str, Any], path: str, **nested: object) -> T:
    """The dataclass of these fields, each of exactly its declared type; `nested` are built."""
    values = dict(nested)
    for name, kind in _TYPES[cls].items():
        if name not in nested:
            try:
                values[name] = msgspec.convert(fields[name], kind, strict=True)
            except (ValueError, RecursionError) as error:
                raise ContainerError(f"{path}.{name}: {error}") from None
    return cls(**values)


def _within(path: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        # An integer of 400 digits has no float to be formatted as.
        raise ContainerError(f"{path} needs to be within {low:g} and {high:g}, found {value!r:.40}")


def _check(plan: ModelPlan) -> None:
    if not 0 < len(plan.architecture) <= 64:
        raise ContainerError("plan.architecture needs a name of 1 to 64 characters")
    _within("plan.vocab_size", plan.vocab_size, 1, 1 << 24)
    _within("plan.hidden", plan.hidden, 1, 1 << 20)
    _within("plan.ctx_train", plan.ctx_train, 1, 1 << 40)
    _within("plan.norm_eps", plan.norm_eps, 0, 1)
    _within("plan.embed_scale", plan.embed_scale, 1e-6, 1e6)
    for i, layer in enumerate(plan.layers):
        _check_attention(layer.attention, f"plan.layers[{i}].attention")
        _check_mlp(layer.mlp, f"plan.layers[{i}].mlp")


def _check_attention(plan: AttentionPlan, path: str) -> None:
    _within(f"{path}.n_heads", plan.n_heads, 1, 4096)
    _within(f"{path}.n_kv_heads", plan.n_kv_heads, 1, plan.n_heads)
    if plan.n_heads % plan.n_kv_heads:
        raise ContainerError(
            f"{path}.n_heads needs to be a multiple of n_kv_heads {plan.n_kv_heads}, "
            f"found {plan.n_heads}"
        )
    _within(f"{path}.head_dim", plan.head_dim, 2, 4096)
    if plan.head_dim % 2:
        raise ContainerError(f"{path}.head_dim needs to be even, found {plan.head_dim}")
    _within(f"{path}.scale", plan.scale, 1e-9, 1e6)
    _within(f"{path}.window", plan.window, 0, 1 << 40)
    for field in dataclasses.fields(RopePlan):
        value = getattr(plan.rope, field.name)
        if not isinstance(value, str):
            positive = field.name in ("theta", "factor", "attention_factor")
            _within(f"{path}.rope.{field.name}", value, 1e-6 if positive else 0, 1e15)


def _check_mlp(plan: MlpPlan | MoePlan, path: str) -> None:
    _within(f"{path}.width", plan.width, 1, 1 << 24)
    if isinstance(plan, MoePlan):
        _within(f"{path}.n_experts", plan.n_experts, 1, 1 << 16)
        _within(f"{path}.n_experts_used", plan.n_experts_used, 1, plan.n_experts)
