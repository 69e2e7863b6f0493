"""The architectures, one line each, and the way from a configuration to plan and tensors."""

from collections.abc import Mapping, Sequence
from typing import Final

from .architecture import Architecture, GgufFacts
from .gemma3 import GEMMA3
from .keys import Keys, shown
from .llama import LLAMA
from .names import tensor_specs
from .plan import ConfigError, ModelPlan, MoePlan, TensorSpec, UnsupportedError
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE

ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    GEMMA3,
)

# Three tensors each: beyond what any checkpoint has (23,040 of the largest), and short of tables
# that take gigabytes before the first tensor is looked for.
_MOST_EXPERTS: Final = 1 << 17

# Beside text_config in a multimodal Gemma 3: the parts that only images use.
_GEMMA3_OUTER: Final = (
    *("architectures", "boi_token_index", "eoi_token_index", "image_token_index"),
    *("boi_token_id", "eoi_token_id", "image_token_id"),
    *("mm_tokens_per_image", "vision_config", "torch_dtype", "dtype", "transformers_version"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "initializer_range", "model_type"),
)


def plan_from_hf(config: Mapping[str, object]) -> tuple[ModelPlan, tuple[TensorSpec, ...]]:
    """Plan and tensors of a parsed config.json (without quantization_config, which says how
    tensors are stored and belongs to the reader of the files).

    Raises ConfigError for a missing or wrong value, UnsupportedError for an architecture, key or
    value that is not supported.
    """
    keys = Keys(config, "config.json")
    name = keys.text("model_type")
    found = next((a for a in ARCHITECTURES if name in a.model_types), None)
    if found is None:
        known = ", ".join(a.model_types[0] for a in ARCHITECTURES)
        raise keys.unsupported("model_type", known, name)
    if keys.has("text_config"):
        outer, keys = keys, keys.section("text_config")
        outer.ignore(*_GEMMA3_OUTER)
        outer.expect("tie_word_embeddings", True)
        outer.finish()
        keys.expect("model_type", *found.model_types)
    plan = found.read_hf(keys)
    keys.finish()
    _check_experts(plan, "config.json")
    return plan, tuple(tensor_specs(plan, found.hf_names, found.hf_transforms))


def plan_from_gguf(
    metadata: Mapping[str, object],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    rope_divisors: Sequence[float] | None = None,
) -> tuple[ModelPlan, tuple[TensorSpec, ...]]:
    """Plan and tensors of GGUF metadata.

    `tensor_shapes` are in numpy order (rows, columns), stacked experts first; `rope_divisors` is
    the content of rope_freqs.weight where the file has that tensor. Raises as plan_from_hf.
    """
    name = metadata.get("general.architecture")
    if name is None:
        raise ConfigError("GGUF metadata: general.architecture is missing")
    found = next((a for a in ARCHITECTURES if name == a.gguf_name), None)
    if found is None:
        known = ", ".join(a.gguf_name for a in ARCHITECTURES)
        raise UnsupportedError(
            f"GGUF metadata: general.architecture is {shown(name)}; supported: {known}"
        )
    general = Keys(metadata, "GGUF metadata")
    general.expect("split.count", 0, 1)
    general.expect("general.type", "model")
    keys = Keys(metadata, "GGUF metadata", prefix=f"{found.gguf_name}.")
    plan = found.read_gguf(keys, GgufFacts(tensor_shapes, rope_divisors))
    keys.finish()
    _check_experts(plan, "GGUF metadata")
    return plan, tuple(tensor_specs(plan, found.gguf_names, found.gguf_transforms))


def _check_experts(plan: ModelPlan, origin: str) -> None:
    n = sum(layer.mlp.n_experts for layer in plan.layers if isinstance(layer.mlp, MoePlan))
    if n > _MOST_EXPERTS:
        raise UnsupportedError(f"{origin}: {n} experts in all layers; supported: {_MOST_EXPERTS}")
