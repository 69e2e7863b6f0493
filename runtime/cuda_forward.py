"""CudaForward: what ForwardPass is (runtime/forward.py), on a card.

A single token is a recorded graph of kernels, replayed at any position; a prompt runs in blocks.
One pass serves all sessions of an engine, one call at a time.
"""

import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hga.kernels.triton.bank import Bank, BankShape
from hga.kernels.triton.decode import decode, record
from hga.kernels.triton.model import PARAMS, Buffers
from hga.kernels.triton.prefill import prefill
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import GROUP_TOKENS, Geometry
from hga.kvstore.route import EVERYTHING, NO_UNITS, Limits, Route, Units

from .cuda_plan import PREFILL_TOKENS
from .cuda_weights import CudaWeights
from .rope import RopeTables


class CudaArena:
    """A sequence's keys and values as a Session sees them: a Bank of the whole context."""

    def __init__(self, bank: Bank, ctx: int) -> None:
        self.bank, self.ctx = bank, ctx

    @property
    def allocated_bytes(self) -> int:
        """Bytes of keys and values, on the card or pinned."""
        return self.bank.nbytes

    def reserve(self, n_tokens: int) -> None:
        """Room is there for the whole context; StoreError beyond it."""
        if n_tokens > self.ctx:
            raise StoreError(f"{n_tokens} tokens do not fit in a context of {self.ctx}")

    def shrink(self, n_tokens: int) -> None:
        """Nothing: what lies beyond the tokens of a sequence is never read."""

    def close(self) -> None:
        """Free everything."""
        self.bank.close()


class CudaForward:
    """Runs tokens through the model; the caller says whose keys and values they join."""

    # Rows of logits of one call.
    logit_rows = 256

    def __init__(
        self, weights: CudaWeights, geometry: Geometry, ctx: int, device: str, kv_on_host: bool
    ) -> None:
        self._model, self._device, self._on_host = weights.model, device, kv_on_host
        self._geometry, self._ctx = geometry, ctx
        self.block_tokens = min(PREFILL_TOKENS, -(-ctx // 16) * 16)
        self.hidden = self._model.hidden
        self._buffers = Buffers(self._model, ctx, device)
        self._ropes = RopeTables(weights.ropes, self.block_tokens)
        layers = self._model.layers
        self._windows = np.array([x.window for x in layers], np.int64)
        self._n_kv = np.array([x.n_kv_heads for x in layers], np.int64)
        self._record_bytes = np.array([geometry.record_bytes(i) for i in range(len(layers))])
        self._warm: set[int] = set()
        self._routed, self._position, self._limits = False, 0, EVERYTHING
        self.io_problem = 0

    def new_arena(self) -> CudaArena:
        """An arena of the engine's context. Raises StoreError where memory is short."""
        shapes = tuple(BankShape(s.n_kv_heads, s.head_dim, s.routed) for s in self._geometry.layers)
        try:
            return CudaArena(Bank(shapes, self._ctx, self._device, self._on_host), self._ctx)
        except (torch.OutOfMemoryError, MemoryError) as error:
            where = "host" if self._on_host else "GPU"
            raise StoreError(
                f"no {where} memory for {self._geometry.kv_bytes(self._ctx)} bytes of keys and"
                f" values of {self._ctx} tokens (a smaller --ctx needs less): {error}"
            ) from None

    def run(
        self,
        bank: Bank,
        tokens: NDArray[np.int64],
        position: int,
        n_logits: int,
        limits: Limits = EVERYTHING,
        summed_chunks: int = 0,
        units: Units = NO_UNITS,
    ) -> NDArray[np.float32]:
        """Run tokens [T] at positions position…; returns logits [n_logits, V] of the last ones,
        overwritten by the next call. limits: what a single token reads."""
        assert summed_chunks == 0 and units == NO_UNITS
        n, b = len(tokens), self._buffers
        self._ropes.fill(position, n)
        host = b.host_params.numpy()
        share = struct.unpack("<i", struct.pack("<f", limits.least_share))[0]
        host[:7] = (
            int(tokens[0]), position, limits.sinks, limits.window, limits.least, limits.most, share,
        )  # fmt: skip
        self._position, self._limits, self._routed = position, limits, n == 1 and limits.rule != 0
        if n == 1:
            return self._step(bank, host, n_logits)
        b.params.copy_(b.host_params, non_blocking=True)
        angles = np.stack([self._ropes.cos[:, :n], self._ropes.sin[:, :n]], 1)
        logits = prefill(
            self._model,
            bank,
            b,
            torch.from_numpy(np.asarray(tokens, np.int32)).to(self._device),
            torch.from_numpy(angles).to(self._device),
            position,
            n_logits,
        )
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _step(self, bank: Bank, host: NDArray[Any], n_logits: int) -> NDArray[np.float32]:
        b, shape = self._buffers, 0
        if self._routed:
            # Programs are shaped for the next power of two of groups: a graph for each.
            shape = 1 << (self._position // GROUP_TOKENS).bit_length()
        angles = host[PARAMS:].view(np.float32).reshape(-1, 2, b.half)
        angles[:, 0], angles[:, 1] = self._ropes.cos[:, 0], self._ropes.sin[:, 0]
        b.params.copy_(b.host_params, non_blocking=True)
        if self._device == "cpu" or shape not in self._warm:
            # The first run compiles the kernels, which a recording cannot.
            decode(self._model, bank, b, shape)
            self._warm.add(shape)
        else:
            if shape not in bank.graphs:
                torch.cuda.synchronize()
                bank.graphs[shape] = record(self._model, bank, b, shape)
            bank.graphs[shape].replay()
        b.host_counts.copy_(b.counts, non_blocking=True)
        b.host_logits.copy_(b.logits, non_blocking=True)
        if self._device != "cpu":
            torch.cuda.synchronize()
        return b.host_logits.numpy()[None][:n_logits]

    @property
    def _routed_rows(self) -> NDArray[np.bool_]:
        """Which layers the last single-token call routed."""
        limits, n_groups = self._limits, self._position // GROUP_TOKENS + 1
        short = n_groups <= limits.sinks + limits.window + limits.least
        return (self._windows == 0) & (self._routed and not short)

    def _read_groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per layer the groups that the last token read, over all KV heads, and unread tokens of
        the first and last."""
        n_groups = self._position // GROUP_TOKENS + 1
        unfilled = GROUP_TOKENS - 1 - self._position % GROUP_TOKENS
        below = np.where(self._windows > 0, self._position + 1 - self._windows, 0)
        low = np.maximum(below, 0)
        everything = self._n_kv * (n_groups - low // GROUP_TOKENS)
        # Columns beyond a layer's KV heads stay 0.
        counted = self._buffers.host_counts.numpy().sum(1)
        return np.where(self._routed_rows, counted, everything), unfilled + low % GROUP_TOKENS

    @property
    def attended(self) -> float:
        """Tokens attended by the last single-token call, summed over layers, mean over heads."""
        groups, unread = self._read_groups()
        return float((groups * GROUP_TOKENS / self._n_kv - unread).sum())

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values read by the last single-token call."""
        return int((self._read_groups()[0] * self._record_bytes).sum())

    @property
    def routed_layers(self) -> int:
        """Layers that the last single-token call routed."""
        return int(self._routed_rows.sum())

    def last_route(self, n_lists: int) -> Route | None:
        """Groups chosen in the last routed layer of the last call, by KV head; None if it did not
        route."""
        routed = np.flatnonzero(self._routed_rows)
        if not len(routed):
            return None
        layer, counts = self._model.layers[routed[-1]], self._buffers.host_counts[routed[-1]]
        groups = self._buffers.routes[layer.n_heads, layer.n_kv_heads].groups.cpu()
        rows = (groups[h, : int(counts[h])].tolist() for h in range(n_lists))
        return Route(tuple(tuple(row) for row in rows))
