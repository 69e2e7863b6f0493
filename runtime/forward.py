"""ForwardPass: the buffers of the forward kernel, and one method that runs it.

One pass serves all sessions of an engine, one call at a time. Nothing is allocated per token.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hga.kernels.cpu import scratch
from hga.kernels.cpu.params import CALL
from hga.kernels.ops import Backend
from hga.kvstore.geometry import GROUP_TOKENS, GROUPS_PER_BLOCK, padded_head_dim
from hga.kvstore.route import EVERYTHING, NO_UNITS, Limits, Route, Units
from hga.models.plan import MoePlan

from .experts import ExpertCache
from .rope import RopeTables
from .thread_switch import ThreadSwitch
from .weights import Weights

# Tokens of a prefill call: enough that weights are read from cache, little enough scratch.
PREFILL_TOKENS = 512
# Rows of logits of one call.
LOGIT_ROWS = 32

# Mirror of a kernel constant (kernels/cpu/layer_experts.py), checked by a test.
_GATHER_TOKENS = 64
_LINE = 64


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


class _Buffers:
    """Zeroed, 64-byte aligned arrays that live as long as this object."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.uint8]] = []
        self.nbytes = 0

    def take(self, n_bytes: int) -> int:
        """Address of a new buffer."""
        array = np.zeros(n_bytes + _LINE, np.uint8)
        self._arrays.append(array)
        self.nbytes += array.nbytes
        return int(_round_up(array.ctypes.data, _LINE))

    def view(self, address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """float32 view of the buffer at an address from `take`."""
        for array in self._arrays:
            start = address - array.ctypes.data
            if 0 <= start < array.nbytes:
                size = 4 * int(np.prod(shape))
                return array[start : start + size].view(np.float32).reshape(shape)
        raise KeyError(address)


class ForwardPass:
    """Runs tokens through the model; the caller says where their keys and values go."""

    logit_rows = LOGIT_ROWS
    on_card = False

    def __init__(
        self,
        weights: Weights,
        backend: Backend,
        ctx: int,
        sketch_bits: int = 2,
        switch: ThreadSwitch | None = None,
    ) -> None:
        """switch: how many threads run a single token; None: always all."""
        self._backend, self._switch = backend, switch
        self._weights = weights
        plan = weights.plan
        self.block_tokens = min(PREFILL_TOKENS, _round_up(ctx, 16))
        self._vocab16 = _round_up(plan.vocab_size, 16)
        self._vocab = plan.vocab_size
        self.hidden = plan.hidden
        self._ropes = RopeTables(weights.ropes, self.block_tokens)
        self._tokens = np.zeros(self.block_tokens, np.int64)
        self._counters = np.zeros(24, np.int64)
        self._buffers = _Buffers()
        self._logit_rows = 1
        self._experts: ExpertCache | None = None
        # Tokens embedded since the last layer ran.
        self._embedded = 0
        self._call: NDArray[Any] = np.zeros(1, CALL)
        self._allocate(ctx)
        self._call[0]["sketch_bits"] = sketch_bits

    def connect(self, io_queue: int) -> None:
        """Say where single tokens ask for cells on disk: the address of a reader's queue."""
        self._call[0]["io_queue"] = io_queue

    def use_cache(self, experts: ExpertCache) -> None:
        """Say where the experts are that are not in memory."""
        self._experts = experts

    @property
    def io_problem(self) -> int:
        """What a read of the last call failed by, below 0 (kvstore/reader.py); 0: nothing did."""
        return int(self._call[0]["io_problem"])

    @property
    def scratch_bytes(self) -> int:
        """Memory of all buffers; what depends on the context is touched only as it grows."""
        return self._buffers.nbytes

    def _allocate(self, ctx: int) -> None:
        plan, c, take, t = self._weights.plan, self._call[0], self._buffers.take, self.block_tokens
        attention = [layer.attention for layer in plan.layers]
        n_heads, n_kv = max(a.n_heads for a in attention), max(a.n_kv_heads for a in attention)
        rows = max(a.n_heads // a.n_kv_heads for a in attention)
        widest = max(padded_head_dim(a.head_dim) for a in attention)
        heads_dim, kv_dim = n_heads * widest, n_kv * widest
        # Rows of activations and experts per layer: a dense layer is one slot.
        act = max(
            layer.mlp.width * (layer.mlp.n_experts_used if isinstance(layer.mlp, MoePlan) else 1)
            for layer in plan.layers
        )
        moes = [layer.mlp for layer in plan.layers if isinstance(layer.mlp, MoePlan)]
        used = max((m.n_experts_used for m in moes), default=1)
        experts = max((m.n_experts for m in moes), default=1)
        width = max((m.width for m in moes), default=0)
        for name, columns in (
            ("normed", plan.hidden),
            ("mixed", heads_dim),
            ("hidden_act", act),
        ):
            c[name]["values"] = take(4 * t * columns)
            c[name]["codes"] = take(t * columns)
            c[name]["scales"], c[name]["sums"] = take(t * columns // 8), take(t * columns // 4)
        self._residual = take(4 * t * plan.hidden)
        c["proj"] = take(4 * t * plan.hidden)
        for name, columns in (("q", heads_dim), ("k", kv_dim), ("v", kv_dim)):
            c[name] = take(4 * t * columns)
            if any(a.head_dim != padded_head_dim(a.head_dim) for a in attention):
                c["raw_" + name] = take(4 * t * columns)
        c["up"], c["router_logits"] = take(4 * t * act), take(4 * t * _round_up(experts, 16))
        c["chosen"], c["weights"] = take(4 * t * used), take(4 * t * used)
        c["starts"], c["order"] = take(4 * (experts + 1)), take(4 * t * used)
        groups = _round_up(-(-ctx // GROUP_TOKENS), GROUPS_PER_BLOCK)
        spans = -(-ctx // scratch.SPAN_TOKENS) + 1
        c["score_bytes"], c["group_bytes"] = 4 * groups, 4 * groups
        c["scores"] = take(4 * groups * (n_heads + n_kv))
        c["groups"] = take(4 * groups * n_heads)
        c["counts"] = take(8 * n_heads)
        # As kernels/cpu/sketch.py query_bytes.
        c["query_bytes"] = 8 * widest + _LINE
        c["queries"] = take(n_heads * int(c["query_bytes"]))
        # Four rows at a time, of a KV head's query heads or of one query head's.
        lists = max(n_kv * _round_up(rows, 4), 4 * n_heads)
        c["partials"] = take(lists * spans * scratch.partial_bytes(widest))
        tile = max(
            scratch.attention_bytes(a.n_heads // a.n_kv_heads, padded_head_dim(a.head_dim))
            for a in attention
        )
        tile = _round_up(tile, _LINE)
        # Groups, queries, then rows of shares (kernels/cpu/block_route.py).
        unit = 4 * groups + rows * int(c["query_bytes"]) + 4 * groups * (rows + 2) + 4096
        c["unit_private"], tile = tile, tile + unit
        gather = _GATHER_TOKENS * 4 * max(plan.hidden, width) if moes else 0
        # Behind what is gathered: the experts that a thread waits for.
        c["list_private"] = gather
        c["private_bytes"] = _round_up(max(tile, gather + 4 * experts), 4096)
        c["private"] = take(self._backend.n_threads * int(c["private_bytes"]))
        c["logits"] = take(4 * self._vocab16)
        c["embed"], c["head"] = self._weights.embed, self._weights.head
        c["final_norm"], c["hidden"] = self._weights.final_norm, plan.hidden
        c["eps"], c["embed_scale"] = plan.norm_eps, plan.embed_scale
        c["tokens"] = self._tokens.ctypes.data
        c["cos"], c["sin"] = self._ropes.cos.ctypes.data, self._ropes.sin.ctypes.data
        c["rope_bytes"], c["half_bytes"] = self._ropes.cos.strides[0], self._ropes.cos.strides[1]
        c["turn_cos"] = self._ropes.turn_cos.ctypes.data
        c["turn_sin"] = self._ropes.turn_sin.ctypes.data
        c["turn_bytes"] = self._ropes.turn_cos.strides[0]
        # Each counter has a cache line to itself.
        base = _round_up(self._counters.ctypes.data, _LINE)
        c["barrier"], c["next_item"] = base, base + _LINE

    def run(
        self,
        layers: NDArray[Any],
        tokens: NDArray[np.int64],
        position: int,
        n_logits: int,
        limits: Limits = EVERYTHING,
        summed_chunks: int = 0,
        units: Units = NO_UNITS,
    ) -> NDArray[np.float32]:
        """Run tokens [T] at positions position…; returns logits [n_logits, V] of the last ones.

        layers: LAYER records with the session's pages. limits: what a single token reads.
        summed_chunks: chunks that have summaries, for the published rule. units: what the tokens
        of a prompt read. The returned view is overwritten by the next call. ContainerError where
        a mapped model changed on the disk.
        """
        n = len(tokens)
        self._tokens[:n] = tokens
        c = self._call[0]
        c["embed_first"], c["first_layer"], c["last_layer"] = 1, 0, len(layers)
        c["residual"] = self._residual
        c["rule"], c["n_sinks"], c["n_window"] = limits.rule, limits.sinks, limits.window
        c["n_least"], c["n_most"] = limits.least, limits.most
        c["least_share"] = limits.least_share
        c["n_chunks"], c["summed_chunks"] = limits.chunks, summed_chunks
        self._set_units(units)
        if self._experts is not None:
            self._experts.begin(n)
        start = time.perf_counter()
        logits = self._launch(layers, n, position, n_logits)
        if n == 1:
            seconds = time.perf_counter() - start
            if self._experts is not None:
                self._experts.end(seconds)
            if self._switch is not None:
                self._switch.note(seconds)
        return logits

    def _set_units(self, units: Units) -> None:
        c = self._call[0]
        c["unit_sinks"], c["unit_window"] = units.sinks, units.window_tokens
        c["unit_least"], c["unit_share"] = units.least, units.share
        c["unit_exact"] = units.exact_tokens

    def _launch(
        self, layers: NDArray[Any], n: int, position: int, n_logits: int
    ) -> NDArray[np.float32]:
        assert 0 < n <= self.block_tokens and n_logits <= min(n, LOGIT_ROWS)
        if n_logits > self._logit_rows:
            self._logit_rows = LOGIT_ROWS
            self._call["logits"] = self._buffers.take(4 * LOGIT_ROWS * self._vocab16)
        self._ropes.fill(position, n)
        self._counters[:] = 0
        c = self._call[0]
        c["layers"], c["n_tokens"], c["position"] = layers.ctypes.data, n, position
        c["n_logits"] = n_logits
        c["n_attended"], c["n_read_groups"], c["n_read_bytes"], c["n_routed"] = 0, 0, 0, 0
        c["io_problem"], c["now"] = 0, c["now"] + 1
        n_active = self._switch.n if self._switch is not None and n == 1 else None
        self._backend.forward(self._call.ctypes.data, n_active)
        self._weights.check()
        if self._experts is not None:
            self._experts.check()
        return self._buffers.view(int(c["logits"]), (n_logits, self._vocab16))[:, : self._vocab]

    def _run_part(
        self,
        layers: NDArray[Any],
        first: int,
        last: int,
        residual: NDArray[np.float32],
        position: int,
        n_logits: int = 0,
    ) -> NDArray[np.float32]:
        c = self._call[0]
        c["first_layer"], c["last_layer"], c["rule"] = first, last, 0
        c["residual"] = residual.ctypes.data
        return self._launch(layers, len(residual), position, n_logits)

    def embed(
        self, layers: NDArray[Any], tokens: NDArray[np.int64], residual: NDArray[np.float32]
    ) -> None:
        """Embed tokens [T] into the residual stream, float32 [T, hidden], at most block_tokens."""
        self._tokens[: len(tokens)] = tokens
        self._embedded += len(tokens)
        self._call[0]["embed_first"] = 1
        self._run_part(layers, 0, 0, residual, 0)

    def run_layer(
        self,
        layers: NDArray[Any],
        layer: int,
        residual: NDArray[np.float32],
        position: int,
        units: Units = NO_UNITS,
    ) -> None:
        """Take T tokens of a prompt at positions position… through one layer, in place."""
        self._call[0]["embed_first"] = 0
        if self._experts is not None and self._embedded:
            self._experts.begin(self._embedded)
        self._embedded = 0
        self._set_units(units)
        self._run_part(layers, layer, layer + 1, residual, position)

    def head(self, layers: NDArray[Any], residual: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [T, V] of the tokens of a residual stream that is through all layers."""
        self._call[0]["embed_first"] = 0
        n = len(layers)
        return self._run_part(layers, n, n, residual, 0, len(residual))

    @property
    def attended(self) -> float:
        """Tokens attended by the last single-token call, summed over layers, mean over heads."""
        return float(self._call[0]["n_attended"])

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values read by the last single-token call."""
        return int(self._call[0]["n_read_bytes"])

    @property
    def routed_layers(self) -> int:
        """Layers that the last single-token call routed."""
        return int(self._call[0]["n_routed"])

    def last_route(self, n_lists: int) -> Route | None:
        """Groups chosen in the last routed layer of the last call, by KV head or query head; None
        if it did not route."""
        c = self._call[0]
        if c["n_routed"] == 0:
            return None
        n = self._buffers.view(int(c["counts"]), (2 * n_lists,)).view(np.int64)
        rows = [
            self._buffers.view(int(c["groups"] + h * c["group_bytes"]), (int(n[h]),)).view(np.int32)
            for h in range(n_lists)
        ]
        return Route(tuple(tuple(int(g) for g in row) for row in rows))
