"""A model on the device: weights by layer, and the buffers that its decode step and prefill use."""

from dataclasses import dataclass

import torch

from .attention import SplitBuffers
from .experts import Mlp
from .heads import padded_width, turn_matrix
from .layouts import Matrix
from .routing import RouteBuffers

# Words of `Buffers.params` before the angles.
PARAMS = 8
# Elements of the room for widened weights: slices of a dozen experts of a 30B model.
LEAST_SCRATCH = 96 << 20


def wide_type(device: str) -> torch.dtype:
    """What a prompt's activations and widened weights are: float32 for Triton's interpreter, which
    cannot multiply bfloat16."""
    return torch.float32 if device == "cpu" else torch.bfloat16


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights and shape of a layer; vectors are float32, None where the layer has none.

    qkv: one matrix of the rows of q, k and v, or the three; qk_norms: of q and k [true_dim].
    head_dim: true_dim rounded up to 32. Layers with a window are not routed.
    """

    qkv: tuple[Matrix, ...]
    o: Matrix
    attn_norm: torch.Tensor
    mlp_norm: torch.Tensor
    post_attn_norm: torch.Tensor | None
    post_mlp_norm: torch.Tensor | None
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None
    qkv_bias: torch.Tensor | None
    o_bias: torch.Tensor | None
    router: Matrix | None
    mlp: Mlp
    n_heads: int
    n_kv_heads: int
    true_dim: int
    head_dim: int
    window: int
    scale: float
    rope_index: int

    @property
    def qkv_rows(self) -> int:
        """Rows of q, k and v together."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.true_dim


@dataclass(frozen=True, slots=True)
class Model:
    """All weights of a model."""

    layers: tuple[Layer, ...]
    embed: Matrix
    head: Matrix
    final_norm: torch.Tensor
    eps: float
    embed_scale: float
    n_ropes: int

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.embed.cols


class Buffers:
    """What a decode step writes; made once, so that its addresses can be recorded.

    params: int32 [PARAMS] token, position, limits (kernels/triton/routing.py) and a number that
    grows from token to token, then float32
    cosines and sines [n_ropes, 2, half] of the position in the same tensor. counts: int32 [L, G]
    groups that a token's routed layers read. host: pinned copies of params, logits and counts.
    """

    def __init__(self, model: Model, ctx: int, device: str) -> None:
        layers, hidden = model.layers, model.hidden

        def floats(n: int) -> torch.Tensor:
            return torch.zeros(n, dtype=torch.float32, device=device)

        def halves(n: int) -> torch.Tensor:
            return torch.zeros(n, dtype=torch.float16, device=device)

        self.half = max(x.head_dim for x in layers) // 2
        n_params = PARAMS + 2 * model.n_ropes * self.half
        self.params = torch.zeros(n_params, dtype=torch.int32, device=device)
        angles = self.params[PARAMS:].view(torch.float32)
        self.angles = angles.view(model.n_ropes, 2, 1, self.half)
        self.residual, self.proj = floats(hidden), floats(hidden)
        self.qkv = floats(max(x.qkv_rows for x in layers))
        self.q = halves(max(x.n_heads * x.head_dim for x in layers))
        self.turned = halves(max(x.n_heads * padded_width(x.head_dim) for x in layers))
        self.mixed = floats(max(x.n_heads * x.true_dim for x in layers))
        self.act = floats(max(x.mlp.n_used * x.mlp.width for x in layers))
        self.router_logits = floats(max(x.mlp.n_experts for x in layers))
        used = max(x.mlp.n_used for x in layers)
        self.chosen = torch.zeros(used, dtype=torch.int32, device=device)
        self.weights = floats(used)
        # The choice of a dense layer.
        self.first = torch.zeros(1, dtype=torch.int32, device=device)
        self.one = torch.ones(1, dtype=torch.float32, device=device)
        self.logits = floats(model.head.rows)
        n_kv = max(x.n_kv_heads for x in layers)
        self.counts = torch.zeros((len(layers), n_kv), dtype=torch.int32, device=device)
        shapes = {(x.n_heads, x.n_kv_heads, x.head_dim) for x in layers}
        self.splits = {shape: SplitBuffers(*shape, device) for shape in shapes}
        routed = {(x.n_heads, x.n_kv_heads) for x in layers if x.window == 0}
        self.routes = {shape: RouteBuffers(*shape, ctx, device) for shape in routed}
        dims = {x.head_dim for x in layers}
        self.turns = {head_dim: turn_matrix(head_dim, device) for head_dim in dims}
        pin = device != "cpu"
        self.host_params = torch.zeros(n_params, dtype=torch.int32, pin_memory=pin)
        self.host_logits = torch.zeros(model.head.rows, dtype=torch.float32, pin_memory=pin)
        self.host_counts = torch.zeros(self.counts.shape, dtype=torch.int32, pin_memory=pin)
        # Parts of matrices, widened for prompts: a slice of one expert at least.
        least = max(3 * x.mlp.hidden * x.mlp.width for x in layers)
        size = least if device == "cpu" else max(least, LEAST_SCRATCH)
        self.scratch = torch.empty(size, dtype=wide_type(device), device=device)
