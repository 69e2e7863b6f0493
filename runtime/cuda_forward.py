"""CudaForward: what ForwardPass is (runtime/forward.py), on a card.

A single token is a recorded graph of kernels, replayed at any position; a prompt runs in blocks.
One pass serves all sessions of an engine, one call at a time.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hga.kernels.triton.bank import Bank
from hga.kernels.triton.decode import decode, record
from hga.kernels.triton.model import PARAMS, Buffers
from hga.kernels.triton.prefill import Block, embedded, logits_of, pass_layer, prefill
from hga.kernels.triton.sketches import BankShape
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import GROUP_TOKENS, Geometry
from hga.kvstore.plain_reader import PlainReader
from hga.kvstore.route import EVERYTHING, NO_UNITS, Limits, Route, Units
from hga.kvstore.stage import Stage
from hga.kvstore.store import SessionStore

from .cuda_arena import CudaArena
from .cuda_pages import Pages, synchronize
from .cuda_plan import PREFILL_TOKENS
from .cuda_weights import CudaWeights
from .rope import RopeTables


class CudaForward:
    """Runs tokens through the model; the caller says whose keys and values they join."""

    # Rows of logits of one call.
    logit_rows = 256
    on_card = True

    def __init__(
        self,
        weights: CudaWeights,
        geometry: Geometry,
        ctx: int,
        device: str,
        kv_on_host: bool,
        part_tokens: int,
    ) -> None:
        """kv_on_host: keys and values in memory lie in the host's; part_tokens: of a prompt, pass
        a layer together where they lie on disk."""
        self._part_tokens = part_tokens
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
        self._warm: set[tuple[type, int]] = set()
        # Single tokens so far.
        self._now = 0
        self._routed, self._position, self._limits = False, 0, EVERYTHING
        self.io_problem = 0

    def new_arena(self) -> CudaArena:
        """An arena of the engine's context. Raises StoreError where memory is short."""
        try:
            bank = Bank(self._shapes, self._ctx, self._device, self._on_host)
            return CudaArena(bank, self._geometry, self._ctx)
        except (torch.OutOfMemoryError, MemoryError) as error:
            where = "host" if self._on_host else "GPU"
            raise StoreError(
                f"no {where} memory for {self._geometry.kv_bytes(self._ctx)} bytes of keys and"
                f" values of {self._ctx} tokens (a smaller --ctx needs less): {error}"
            ) from None

    @property
    def _shapes(self) -> tuple[BankShape, ...]:
        layers = self._geometry.layers
        return tuple(BankShape(s.n_kv_heads, s.head_dim, s.routed) for s in layers)

    def new_disk_arena(
        self,
        windows: Sequence[int],
        store: SessionStore,
        reader: PlainReader,
        frame_bytes: int,
        overflow_cells: int,
        on_close: Callable[[], None],
    ) -> DiskArena:
        """An arena on disk; its `kept` are the Pages that `run` takes. Arguments as of DiskArena.
        Raises StoreError where memory is short."""
        pages = None

        def closed() -> None:
            if pages is not None:
                pages.close()
            on_close()

        try:
            pages = Pages(self._shapes, self._ctx, self._device)
            arena = DiskArena(
                self._geometry, self._ctx, windows, store, reader, frame_bytes, overflow_cells,
                closed, pages.memory, pages,
            )  # fmt: skip
            pages.bind(arena, reader)
        except BaseException as error:
            if pages is not None:
                pages.close()
            if not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                raise
            raise StoreError(
                f"no memory for the sketches, frames and tables of {self._ctx} tokens (a smaller"
                f" --ctx needs less): {error}"
            ) from None
        return arena

    def run(
        self,
        bank: Bank | Pages,
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
        self._position, self._limits, self._routed = position, limits, n == 1 and limits.rule != 0
        if n == 1:
            self._now += 1
            self._ropes.fill(position, n)
            host = b.host_params.numpy()
            share = struct.unpack("<i", struct.pack("<f", limits.least_share))[0]
            host[:PARAMS] = (
                int(tokens[0]), position, limits.sinks, limits.window, limits.least, limits.most,
                share, self._now,
            )  # fmt: skip
            return self._step(bank, host, n_logits)
        assert isinstance(bank, Bank)
        logits = prefill(self._model, bank, b, self._block(tokens, position), n_logits)
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _block(self, tokens: NDArray[np.int64], position: int) -> Block:
        n = len(tokens)
        self._ropes.fill(position, n)
        angles = np.stack([self._ropes.cos[:, :n], self._ropes.sin[:, :n]], 1)
        params = np.zeros(PARAMS, np.int32)
        params[1] = position
        made = (np.asarray(tokens, np.int32), angles, params)
        ids, turns, state = (torch.from_numpy(x).to(self._device) for x in made)
        return Block(ids, turns, state, position)

    def residual(self, n_tokens: int) -> torch.Tensor:
        """Room for the residual stream of a prompt of n_tokens, or of a part of it: float32 [t,
        hidden] on the card; a part, cut as `cuts` does, ends where blocks of all of it do."""
        # Up to 63 tokens more: a part ends at a multiple of 64 positions.
        size = min(n_tokens + 63, self._part_tokens)
        return torch.empty((size, self.hidden), dtype=torch.float32, device=self._device)

    def pass_layers(
        self,
        pages: Pages,
        tokens: NDArray[np.int64],
        ranges: Sequence[tuple[int, int]],
        position: int,
        stage: Stage,
        advance: Callable[[float], None],
        residual: torch.Tensor,
    ) -> None:
        """Take tokens [T] at positions position… through all layers, one after the other.

        ranges: blocks of them, of block_tokens at most; advance hears the share done; residual:
        float32 [T, hidden], written: the residual stream behind the last layer.
        """
        blocks = [self._block(tokens[a:b], position + a) for a, b in ranges]
        n_layers, end = len(self._model.layers), position + len(tokens)
        try:
            for (a, b), block in zip(ranges, blocks):
                residual[a:b] = embedded(self._model, block.tokens)
            for i in range(n_layers):
                room = stage.pages(i)
                pages.begin_layer(i, room, position)
                for (a, b), block in zip(ranges, blocks):
                    pass_layer(self._model, i, pages, self._buffers, block, residual[a:b])
                    advance((i + b / len(tokens)) / n_layers)
                pages.end_layer(i, room, position, end)
                stage.end_layer(i)
        finally:
            # Whatever happens: the stage's memory is the card's until then.
            synchronize(self._device)

    def head(self, pages: Pages, residual: torch.Tensor) -> NDArray[np.float32]:
        """Logits [T, V] of the tokens of a residual stream that is through all layers."""
        logits = logits_of(self._model, self._buffers, residual)
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _step(self, bank: Bank | Pages, host: NDArray[Any], n_logits: int) -> NDArray[np.float32]:
        b, shape = self._buffers, 0
        if self._routed:
            # Programs are shaped for the next power of two of groups: a graph for each.
            shape = 1 << (self._position // GROUP_TOKENS).bit_length()
        angles = host[PARAMS:].view(np.float32).reshape(-1, 2, b.half)
        angles[:, 0], angles[:, 1] = self._ropes.cos[:, 0], self._ropes.sin[:, 0]
        try:
            b.params.copy_(b.host_params, non_blocking=True)
            if isinstance(bank, Pages):
                bank.begin()
            self._run_parts(bank, shape)
            b.host_counts.copy_(b.counts, non_blocking=True)
            b.host_logits.copy_(b.logits, non_blocking=True)
        finally:
            # Where it was interrupted too: what kernels read is changed by whoever comes next.
            synchronize(self._device)
        if isinstance(bank, Pages):
            bank.end()
        return b.host_logits.numpy()[None][:n_logits]

    def _run_parts(self, bank: Bank | Pages, shape: int) -> None:
        """Run the kernels of a token; between them the host brings what lies on disk."""
        warm = (type(bank), shape)
        if self._device != "cpu" and warm in self._warm and shape not in bank.graphs:
            synchronize(self._device)
            parts = range(len(bank.cuts) + 1)
            bank.graphs[shape] = [record(self._model, bank, self._buffers, shape, p) for p in parts]
        graphs = bank.graphs.get(shape)
        for part in range(len(bank.cuts) + 1):
            if part > 0 and isinstance(bank, Pages):
                # Tables and frames are the host's while no kernel runs.
                synchronize(self._device)
                bank.bring(bank.cuts[part - 1], shape, self._position, self._now)
            if graphs is not None:
                graphs[part].replay()
            else:
                # The first run compiles the kernels, which a recording cannot.
                decode(self._model, bank, self._buffers, shape, part)
        self._warm.add(warm)

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
