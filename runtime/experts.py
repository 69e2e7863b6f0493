"""ExpertCache: bounded memory for the experts of a model whose experts lie on disk.

One allocation of equal slots serves all layers; the kernels decide which expert lies where
(kernels/cpu/expert_cache.py) and read what is missing through the engine's reader, past the page
cache and compared with the packed file's checksums. Which experts are resident, how many slots
there are and what is guessed about the next layer changes no result.
"""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hga.kernels.cpu.params import EXPERTS
from hga.kvstore.errors import StoreError
from hga.kvstore.memory import aligned_zeros
from hga.kvstore.reader import Reader
from hga.models.plan import ModelPlan, MoePlan

from .container import ContainerError, ModelFile
from .container_index import PAGE_BYTES, align
from .expert_reads import ExpertReads
from .hint_switch import HintSwitch
from .weights import Weights

# Mirrors of kernel constants (kernels/cpu/expert_cache.py, io_read.py), checked by a test.
COUNTERS = 8
_DAMAGED = (-10001, -10002)
# Shorter blobs have another kind of XXH3, which no kernel knows.
_SHORT_BYTES = 240
# A use counts half as much so many tokens later. Within four points of the best hit rate at every
# size, on a trained and on the synthetic model; recency alone loses up to 17 (docs/log.md).
_HALF_LIFE_TOKENS = 16.0
_NEVER = -1e300
# Of the experts that a guess names, the likeliest are read ahead.
_HINTED_RANKS = 6


def blob_bytes(model: ModelFile) -> int:
    """Bytes of the largest expert's blob, in whole pages; 0 for a model without experts."""
    sizes = (
        model.segment(f"layers.{i}.experts.0").nbytes
        for i, layer in enumerate(model.plan.layers)
        if isinstance(layer.mlp, MoePlan)
    )
    return align(max(sizes, default=0), PAGE_BYTES)


def n_experts(plan: ModelPlan) -> int:
    """Experts of all layers."""
    return sum(x.mlp.n_experts for x in plan.layers if isinstance(x.mlp, MoePlan))


def most_used(plan: ModelPlan) -> int:
    """Experts of a layer that a token uses, the most of all layers."""
    return max((x.mlp.n_experts_used for x in plan.layers if isinstance(x.mlp, MoePlan)), default=0)


class ExpertCache:
    """Slots and tables; model, weights and reader stay the caller's and must outlive it."""

    def __init__(
        self,
        model: ModelFile,
        weights: Weights,
        n_slots: int,
        reader: Reader,
        hints: Literal["on", "off", "auto"] = "auto",
    ) -> None:
        """n_slots: at least one; hints: whether the next layer's experts are read ahead. Fills the
        records of the layers in `weights`."""
        plan = model.plan
        self._model, self._reader = model, reader
        self.slot_bytes = blob_bytes(model)
        self._n_experts = n_experts(plan)
        self.n_slots = max(1, min(n_slots, self._n_experts))
        self._stride = max(x.mlp.n_experts for x in plan.layers if isinstance(x.mlp, MoePlan))
        n, ids = self.n_slots, len(plan.layers) * self._stride
        self._slots = slots = aligned_zeros(n * self.slot_bytes)
        self._keep: list[NDArray[Any]] = []
        self._record: NDArray[Any] = np.zeros(1, EXPERTS)
        r = self._record[0]
        r["n_slots"], r["slots"], r["slot_bytes"] = n, slots.ctypes.data, self.slot_bytes
        self._file = reader.add_file(model.fileno)
        r["file"], r["n_experts"] = self._file, self._stride
        self._stamps, self._owners = self._int64("stamps", n), self._int64("owners", n)
        self._stamps[:], self._owners[:] = -1, -1
        self._tickets, self._table = self._int64("tickets", n), self._int64("table", ids)
        self._places = self._int64("places", ids, 2)
        self._counters = self._int64("counters", len(plan.layers), COUNTERS)
        self._scores = np.full(ids, _NEVER)
        self._keep.append(self._scores)
        r["scores"], r["last_layer"] = self._scores.ctypes.data, -1
        addresses = self._int64("addresses", self._stride, 3)
        for name in ("landings", "hinted"):
            self._int64(name, self._stride)
        self._int64("ends", 2)
        self._allocate_guess(plan.hidden)
        for i, layer in enumerate(plan.layers):
            if isinstance(layer.mlp, MoePlan):
                self._place(weights, i, layer.mlp, addresses)
        # With fewer slots than this a hint would take them from what is needed now; with all of
        # them nothing is left to be read.
        useful = 4 * most_used(plan) <= self.n_slots < self._n_experts
        self._switch = HintSwitch() if useful and hints == "auto" else None
        r["hints"] = _HINTED_RANKS if useful and hints != "off" else 0
        self._tokens, self._missed, self._settled = 0, 0, False
        self._rate = math.log(2) / _HALF_LIFE_TOKENS

    def _int64(self, name: str, *shape: int) -> NDArray[np.int64]:
        array = np.zeros(shape, np.int64)
        self._keep.append(array)
        self._record[0][name] = array.ctypes.data
        return array

    def _allocate_guess(self, hidden: int) -> None:
        sizes = (4 * hidden, hidden, hidden // 8, hidden // 4)
        for name, size in zip(("values", "codes", "scales", "sums"), sizes, strict=True):
            self._record[0]["guess"][name] = self._line(size)
        for name in ("guess_logits", "guess_weights", "expected"):
            self._record[0][name] = self._line(4 * (self._stride + 16))

    def _line(self, n_bytes: int) -> int:
        """Address of zeroed memory that begins at a multiple of 64 bytes."""
        array = np.zeros(n_bytes + 64, np.uint8)
        self._keep.append(array)
        return -(-int(array.ctypes.data) // 64) * 64

    def _place(self, weights: Weights, i: int, moe: MoePlan, addresses: NDArray[np.int64]) -> None:
        record, model = weights.layers[i], self._model
        record["cache"], record["layer_number"] = self._record.ctypes.data, i
        record["experts"] = addresses.ctypes.data
        for name in ("gate", "up", "down"):
            record[f"{name}_at"] = model.record(f"layers.{i}.experts.0.{name}").offset
        for e in range(moe.n_experts):
            blob = model.segment(f"layers.{i}.experts.{e}")
            xxh3 = np.uint64(int(blob.xxh3, 16)).astype(np.int64)
            self._places[i * self._stride + e] = blob.offset, xxh3
        record["blob_bytes"] = n_bytes = model.segment(f"layers.{i}.experts.0").nbytes
        assert n_bytes > _SHORT_BYTES

    @property
    def hints(self) -> int:
        """How many of the next layer's experts are asked for ahead, at most; 0: none."""
        return int(self._record[0]["hints"])

    @property
    def spare_bytes(self) -> int:
        """Memory of the slots that a prompt can do without: all but one layer's, or none where
        every expert has a slot."""
        if self.n_slots == self._n_experts:
            return 0
        return max(0, self.n_slots - self._stride) * self.slot_bytes

    @contextmanager
    def lend(self, n_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Memory of slots, uint8 [n_bytes] that begins at a page, for something else than experts
        until the context ends; at most spare_bytes. A long prompt leaves few experts of use behind
        anyway. What the slots held is read again when it is needed."""
        assert n_bytes <= self.spare_bytes
        kept = self.n_slots - -(-n_bytes // self.slot_bytes)
        self._reader.settle(self._tickets[kept:])
        # A failed read has its owner's entry undone by `check`; here it goes with the others.
        owners = self._owners[kept:]
        self._table[owners[owners >= 0]] = 0
        self._owners[kept:], self._stamps[kept:], self._tickets[kept:] = -1, -1, 0
        self._record[0]["n_slots"], self._record[0]["n_hinted"] = kept, 0
        try:
            yield self._slots[kept * self.slot_bytes :][:n_bytes]
        finally:
            self._record[0]["n_slots"] = self.n_slots

    def begin(self, n_tokens: int) -> None:
        """Note that n_tokens are about to pass the layers."""
        self._tokens += n_tokens
        self._missed = self._misses
        r = self._record[0]
        r["time"] = self._tokens * self._rate
        # A long prompt counts as much as so many tokens just before the next would.
        r["weight"] = min(1.0, 1 / (self._rate * n_tokens))

    def end(self, seconds: float) -> None:
        """Note that a single token took so long."""
        # Until every slot has been filled tokens read what later ones find there.
        self._settled = self._settled or self.resident == self.n_slots
        if self._switch is not None and self._settled:
            self._switch.note(seconds, self._misses - self._missed)
            self._record[0]["hints"] = _HINTED_RANKS if self._switch.on else 0

    @property
    def _misses(self) -> int:
        """Uses of experts that were not in a slot."""
        return int(self._counters[:, 1:3].sum())

    def check(self) -> None:
        """Raise the error of a read that failed since the last call, and forget what it brought:
        ContainerError for a damaged file, else StoreError."""
        if not self._record[0]["problem"]:
            return
        self._record[0]["problem"] = 0
        failed = np.flatnonzero(self._tickets < 0)
        tickets, owners = self._tickets[failed].tolist(), self._owners[failed].tolist()
        self._table[owners], self._owners[failed], self._tickets[failed] = 0, -1, 0
        for ticket, owner in zip(tickets, owners):
            layer, expert = divmod(owner, self._stride)
            blob = self._model.segment(f"layers.{layer}.experts.{expert}")
            error = self._reader.error(ticket, self._file, blob.offset, blob.nbytes)
            reason = str(error).rpartition(": ")[2]
            text = (
                f"{self._model.path}: expert {expert} of layer {layer}, {blob.nbytes} bytes at"
                f" offset {blob.offset}, not read: {reason}"
            )
            if ticket in _DAMAGED:
                raise ContainerError(f"{text} (hga verify names every damaged part)")
            problem = StoreError(text)
            problem.errno = error.errno or errno.EIO
            raise problem

    @property
    def reads(self) -> ExpertReads:
        """Counts since the engine was opened."""
        names = (
            *("hits", "foreseen", "reads", "hints"),
            *("foretold", "guessed", "withdrawn", "landed"),
        )
        total = dict(zip(names, self._counters.sum(0).tolist()))
        read = total["reads"] + total["hints"] - total["withdrawn"]
        stall = int(self._record[0]["stall_ns"]) / 1e9
        return ExpertReads(**total, read_bytes=read * self.slot_bytes, stall_s=stall)

    @property
    def layer_hit_rates(self) -> list[float | None]:
        """Of every layer; None for one without experts or uses."""
        rates = []
        for hits, foreseen, reads in self._counters[:, :3].tolist():
            uses = hits + foreseen + reads
            rates.append(hits / uses if uses else None)
        return rates

    @property
    def resident(self) -> int:
        """Slots that hold an expert."""
        return int((self._owners >= 0).sum())

    def close(self) -> None:
        """Give the file back to the reader; no kernel may run afterwards."""
        self._reader.remove_file(self._file)
