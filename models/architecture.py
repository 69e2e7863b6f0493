"""Architecture: one family of checkpoints as data, and what its two configuration readers share.

An architecture file states the keys it reads, the names of its tensors in both source formats and
a TINY configuration. Roles and shapes follow from the plan alone (`plan.tensor_roles`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .keys import Keys
from .names import Transform
from .plan import (
    AttentionPlan,
    ConfigError,
    LayerPlan,
    ModelPlan,
    RopePlan,
    UnsupportedError,
)

# Say nothing about the forward pass: training, generation, bookkeeping, labels.
_HF_IGNORED: Final = (
    *("model_type", "architectures", "torch_dtype", "dtype", "transformers_version"),
    *("_name_or_path", "_commit_hash", "_attn_implementation", "attn_implementation"),
    *("use_cache", "initializer_range", "attention_dropout", "cache_implementation"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict"),
    *("id2label", "label2id", "problem_type", "chunk_size_feed_forward", "tokenizer_class"),
    *("unsloth_fixed", "unsloth_version", "transformers.js_config"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "pruned_heads", "tie_encoder_decoder"),
    *("is_decoder", "remove_invalid_values", "return_dict_in_generate", "output_scores"),
    # Defaults of generation, which old versions wrote here; generation_config.json counts.
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("num_return_sequences",),
)
_GGUF_IGNORED: Final = ("context_length_train", "tensor_data_layout")


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF says outside its metadata: tensor shapes in numpy order (rows first; experts,
    rows, columns for stacked experts) and the values of rope_freqs.weight, if it is there."""

    shapes: Mapping[str, tuple[int, ...]]
    rope_divisors: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: how its configurations are read and how its tensors are called.

    `tiny` is a complete config.json of a model small enough for tests. Transforms are per role
    template; templates not named are copied as they are.
    """

    name: str
    model_types: tuple[str, ...]
    gguf_name: str
    read_hf: Callable[[Keys], ModelPlan]
    read_gguf: Callable[[Keys, GgufFacts], ModelPlan]
    hf_names: Mapping[str, str]
    gguf_names: Mapping[str, str]
    tiny: Mapping[str, object]
    hf_transforms: Mapping[str, Transform] = field(default_factory=dict)
    gguf_transforms: Mapping[str, Transform] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes every architecture states."""

    vocab: int
    hidden: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ctx: int
    eps: float

    def checked(self, origin: str) -> "Sizes":
        """Itself, or ConfigError / UnsupportedError for shapes the kernels cannot take."""
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"{origin}: {self.n_heads} query heads do not divide over "
                f"{self.n_kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{origin}: head_dim {self.head_dim} is odd; RoPE needs pairs")
        for what, size in (("hidden size", self.hidden), ("heads", self.n_heads * self.head_dim)):
            check_width(what, size, origin)
        return self

    def attention(
        self,
        rope: RopePlan,
        *,
        scale: float = 0.0,
        window: int = 0,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = False,
    ) -> AttentionPlan:
        """Attention of these sizes; a scale of 0 stands for 1 / sqrt(head_dim)."""
        return AttentionPlan(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            scale=scale or self.head_dim**-0.5,
            window=window,
            rope=rope,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
        )

    def model(
        self, name: str, layers: Sequence[LayerPlan], *, tied: bool, embed_scale: float = 1.0
    ) -> ModelPlan:
        """The whole plan: these sizes and those layers. YaRN states the context it was made for,
        which the plain maximum in such files often is not."""
        ctx = self.ctx
        for layer in layers:
            rope = layer.attention.rope
            if rope.kind == "yarn":
                ctx = max(ctx, int(rope.original_ctx * rope.factor))
        return ModelPlan(
            architecture=name,
            vocab_size=self.vocab,
            hidden=self.hidden,
            ctx_train=ctx,
            norm_eps=self.eps,
            embed_scale=embed_scale,
            tied_head=tied,
            layers=tuple(layers),
        )


def check_width(what: str, size: int, origin: str) -> None:
    """Raise UnsupportedError unless `size` is a multiple of 32, the width of a weight tile."""
    if size % 32:
        raise UnsupportedError(
            f"{origin}: {what}: {size} columns; supported: multiples of 32 (a weight tile)"
        )


def hf_sizes(keys: Keys) -> Sizes:
    """The common sizes of a config.json; marks the harmless keys as read."""
    keys.ignore(*_HF_IGNORED)
    keys.expect("add_cross_attention", False)
    hidden = keys.integer("hidden_size", 32, 1 << 20)
    n_heads = keys.integer("num_attention_heads", 1, 4096)
    head_dim = 0 if keys.has("head_dim") else divided(keys, "hidden_size", hidden, n_heads)
    return Sizes(
        keys.integer("vocab_size", 1, 1 << 24),
        hidden,
        keys.integer("num_hidden_layers", 1, 1000),
        n_heads,
        keys.integer("num_key_value_heads", 1, 4096),
        keys.integer("head_dim", 2, 1024, head_dim or None),
        keys.integer("max_position_embeddings", 1, 1 << 31),
        keys.number("rms_norm_eps", 1e-12, 1e-1),
    ).checked(keys.origin)


def gguf_sizes(keys: Keys, facts: GgufFacts) -> Sizes:
    """The common sizes of GGUF metadata; the vocabulary is token_embd's first dimension."""
    keys.ignore(*_GGUF_IGNORED)
    shape = facts.shapes.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ConfigError(
            f"{keys.origin}: token_embd.weight: expected a matrix, found {shape or 'no tensor'}"
        )
    hidden = keys.integer("embedding_length", 32, 1 << 20)
    n_heads = keys.integer("attention.head_count", 1, 4096)
    explicit = keys.has("attention.key_length")
    head_dim = 0 if explicit else divided(keys, "embedding_length", hidden, n_heads)
    head_dim = keys.integer("attention.key_length", 2, 1024, head_dim or None)
    keys.integer("attention.value_length", head_dim, head_dim, head_dim)
    return Sizes(
        keys.integer("vocab_size", shape[0], shape[0], shape[0]),
        hidden,
        keys.integer("block_count", 1, 1000),
        n_heads,
        keys.integer("attention.head_count_kv", 1, 4096, n_heads),
        head_dim,
        keys.integer("context_length", 1, 1 << 31),
        keys.number("attention.layer_norm_rms_epsilon", 1e-12, 1e-1),
    ).checked(keys.origin)


def divided(keys: Keys, name: str, total: int, parts: int) -> int:
    """total / parts, or ConfigError if that leaves a rest."""
    if total % parts:
        raise keys.wrong(name, f"a multiple of the {parts} heads, as head_dim is not given", total)
    return total // parts


def mlp_width(keys: Keys, name: str) -> int:
    """The width of a feed-forward block: a multiple of 32, since `down` has that many columns."""
    width = keys.integer(name, 32, 1 << 24)
    check_width(keys.prefix + name, width, keys.origin)
    return width


def full_attention_only(keys: Keys, n_layers: int) -> None:
    """Refuse sliding windows in the configurations that may ask for them (Qwen)."""
    keys.expect("use_sliding_window", False)
    keys.ignore("sliding_window", "max_window_layers")
    kinds = keys.raw("layer_types", ["full_attention"] * n_layers)
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise keys.wrong("layer_types", f"a list of {n_layers} names", kinds)
    for kind in kinds:
        if kind != "full_attention":
            raise keys.unsupported("layer_types", "full_attention", kind)
