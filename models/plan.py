"""ModelPlan: everything the runtime knows of a model, as plain values.

An architecture module turns a checkpoint's configuration into a plan; the packed file stores the
plan; the engine executes it and never sees an architecture. No arrays, no I/O, no defaults that
would hide a missing configuration key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


class ConfigError(ValueError):
    """A configuration value is missing, contradictory or out of range."""


class UnsupportedError(NotImplementedError):
    """A configuration asks for something that this runtime does not do."""


@dataclass(frozen=True, slots=True)
class RopePlan:
    """Rotary position embedding over all of head_dim, half-split pairs (i, i + D/2).

    `kind` none, linear, llama3 (Llama 3.1 reference) or yarn (arXiv 2309.00071). Fields that a
    kind does not use are 0.
    """

    theta: float
    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_ctx: int = 0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Grouped-query attention: H query heads share G KV heads of D dimensions.

    `scale` multiplies q.k; `window` is the number of visible tokens, itself included, 0 for all.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    window: int
    rope: RopePlan
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False


@dataclass(frozen=True, slots=True)
class MlpPlan:
    """Gated MLP: down(act(gate x) * (up x))."""

    width: int
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class MoePlan:
    """Router softmax over all experts, the best `n_experts_used` run, weights renormalised to one
    when `norm_topk`."""

    n_experts: int
    n_experts_used: int
    width: int
    activation: Literal["silu", "gelu_tanh"]
    norm_topk: bool


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Pre-norm transformer layer; `post_norms` adds a norm on each branch before the residual sum
    (Gemma 3)."""

    attention: AttentionPlan
    mlp: MlpPlan | MoePlan
    post_norms: bool = False


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A whole decoder-only model. `embed_scale` multiplies the token embedding."""

    architecture: str
    vocab_size: int
    hidden: int
    ctx_train: int
    norm_eps: float
    embed_scale: float
    tied_head: bool
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the packed file and where its values come from.

    `role` is the name in the packed file, `source` the name in the checkpoint, `shape`
    (rows, columns) of a matrix or (n,) of a vector as the runtime wants it. `transform`:
    "unrope" undoes the pairwise row interleaving that GGUF conversion applies to q and k of Llama
    models (n_heads heads), "add_one" adds one to a norm weight (Gemma 3 in safetensors).
    """

    role: str
    source: str
    shape: tuple[int, ...]
    transform: Literal["none", "unrope", "add_one"] = "none"
    n_heads: int = 0
    expert: int = -1


def tensor_roles(plan: ModelPlan) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Role and shape of every tensor that the plan needs: (rows, columns) or (n,), trunk first,
    then layer by layer with each expert's gate, up and down adjacent."""
    hidden = plan.hidden
    yield "embed", (plan.vocab_size, hidden)
    if not plan.tied_head:
        yield "head", (plan.vocab_size, hidden)
    yield "final_norm", (hidden,)
    for i, layer in enumerate(plan.layers):
        at = f"layers.{i}."
        attention, mlp = layer.attention, layer.mlp
        q_rows = attention.n_heads * attention.head_dim
        kv_rows = attention.n_kv_heads * attention.head_dim
        yield at + "attn_norm", (hidden,)
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            yield at + name, (rows, hidden)
            if attention.qkv_bias:
                yield f"{at}{name}_bias", (rows,)
        if attention.qk_norm:
            yield at + "q_norm", (attention.head_dim,)
            yield at + "k_norm", (attention.head_dim,)
        yield at + "o", (hidden, q_rows)
        if attention.o_bias:
            yield at + "o_bias", (hidden,)
        if layer.post_norms:
            yield at + "post_attn_norm", (hidden,)
        yield at + "mlp_norm", (hidden,)
        if isinstance(mlp, MoePlan):
            yield at + "router", (mlp.n_experts, hidden)
            blocks = [f"{at}experts.{e}." for e in range(mlp.n_experts)]
        else:
            blocks = [at]
        for block in blocks:
            yield block + "gate", (mlp.width, hidden)
            yield block + "up", (mlp.width, hidden)
            yield block + "down", (hidden, mlp.width)
        if layer.post_norms:
            yield at + "post_mlp_norm", (hidden,)
