"""Session: one mutable timeline of tokens with its keys and values.

Invariant: `tokens` and the KV store always describe the same prefix; a call that fails or is
interrupted leaves them at the last block that was completed.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hga.kvstore.arena import RamArena
from hga.kvstore.disk_arena import DiskArena, ReadCounts
from hga.kvstore.geometry import CHUNK_TOKENS
from hga.kvstore.route import EVERYTHING, PREFILLS, RULES, Budget, Route, Router

from .marks import DECODED, FIRST_OF_A_CALL, cuts
from .prompt import Residual, open_stage, parts_of, pass_layers, residual_memory
from .session_types import ContextError, Logits, StopReason, TokenSampler, check_ids
from .turn_stats import TurnStats

if TYPE_CHECKING:
    from .engine import Engine
    from .saved import SavedSession


class Session:
    """Made by `Engine.session`; close it to free its keys and values."""

    def __init__(
        self, engine: "Engine", arena: RamArena | DiskArena, attention: str, budget: str
    ) -> None:
        self._engine = engine
        self._forward, self._on_card = engine.forward_pass, engine.on_card
        self.ctx = engine.ctx
        self.tokens: list[int] = []
        # How each token was run (marks.py); how many are as the last save has them.
        self.marks, self.n_unchanged = bytearray(), 0
        self.saved: SavedSession | None = None
        self.stats = TurnStats()
        self.stop_reason: StopReason | None = None
        self._arena = arena
        self._layers = engine.layers_of(arena)
        self._disk = arena.reads if isinstance(arena, DiskArena) else ReadCounts()
        self._expert_reads = engine.expert_reads
        # So that a layer's pages, or experts, that are not in memory are read once a prompt.
        self._by_layers = self.on_disk or engine.experts is not None
        self._logits: Logits = np.zeros(0, np.float32)
        # Chunks whose summaries, of the published rule, are up to date.
        self._summed_chunks = 0
        shapes = engine.geometry.layers
        self._routed = [i for i, shape in enumerate(shapes) if shape.routed]
        n_heads = max(layer.attention.n_heads for layer in engine.plan.layers)
        self._recalls = np.ones((len(shapes), n_heads), np.float32)
        self.attention = attention
        self.budget = budget
        self.prefill = engine.options.prefill

    @property
    def on_disk(self) -> bool:
        """Whether keys and values lie on disk, and in memory only in part."""
        return isinstance(self._arena, DiskArena)

    def _require_host(self, needed: bool, what: str) -> None:
        if needed and self._on_card:
            raise ValueError(f"{what} runs on the CPU alone: --device cpu")

    @property
    def measure_recall(self) -> bool:
        """Whether `step` also measures the true attention mass that it attends (slow)."""
        return not self._on_card and bool(self._layers["recall"].any())

    @measure_recall.setter
    def measure_recall(self, value: bool) -> None:
        self._require_host(value, "recall")
        if value and self.on_disk:
            raise ValueError("to measure recall every key is read: --kv ram holds them")
        for i in () if self._on_card else self._routed:
            self._layers[i]["recall"] = self._recalls[i].ctypes.data if value else 0

    @property
    def attention(self) -> str:
        """How single tokens attend, one of kvstore.route.RULES; a prompt is always exact."""
        return self._attention

    @attention.setter
    def attention(self, value: str) -> None:
        if value not in RULES:
            raise ValueError(f"unknown attention {value!r}: expected one of {', '.join(RULES)}")
        self._require_host(value in ("hga-paper", "oracle"), f"attention {value!r}")
        if self.on_disk and value in ("hga-paper", "oracle"):
            raise ValueError(f"attention {value!r} reads every key: --kv ram holds them")
        if value == "hga-paper":
            for i in self._routed:
                summaries = self._arena.summaries(i)
                self._layers[i]["summaries"] = summaries.ctypes.data
                self._layers[i]["summary_bytes"] = summaries.strides[0]
        self._attention = value

    @property
    def budget(self) -> str:
        """Tokens that a routed token attends: auto, a number, or a percentage."""
        return self._budget

    @budget.setter
    def budget(self, value: str) -> None:
        self._parsed_budget = Budget.parse(value)
        self._budget = value

    @property
    def prefill(self) -> str:
        """How prompts attend: "exact", or "hga": routed by units of 64 tokens."""
        return self._prefill

    @prefill.setter
    def prefill(self, value: str) -> None:
        if value not in PREFILLS:
            raise ValueError(f"unknown prefill {value!r}: expected one of {', '.join(PREFILLS)}")
        self._require_host(value != "exact", f"prefill {value!r}")
        self._prefill = value

    @property
    def logits(self) -> Logits:
        """float32 [V] after the last token (a copy of its own); ValueError before the first."""
        if not len(self._logits):
            raise ValueError("there are no logits before the first token")
        return self._logits

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values."""
        return self._arena.allocated_bytes

    def reset_stats(self) -> None:
        """Start counting anew."""
        self.stats = TurnStats()

    def _check_room(self, n_tokens: int) -> None:
        if len(self.tokens) + n_tokens > self.ctx:
            raise ContextError(
                f"{len(self.tokens)} + {n_tokens} tokens do not fit in a context of {self.ctx}"
                " (--ctx sets it)"
            )

    def _run(self, ids: Sequence[int], n_logits: int, routed: bool = False) -> Logits:
        """One call of the kernel; the timeline grows by ids."""
        position = len(self.tokens)
        router = Router(self._attention, self._parsed_budget)
        limits = router.limits(position + 1) if routed else EVERYTHING
        self._arena.reserve(position + len(ids), limits)
        logits = self._forward.run(
            self._layers,
            np.asarray(ids, np.int64),
            position,
            n_logits,
            limits,
            self._summed_chunks,
            PREFILLS[self._prefill],
        )
        if isinstance(self._arena, DiskArena) and self._forward.io_problem:
            self._arena.check_reads()
        self._extend(ids, DECODED if routed else FIRST_OF_A_CALL)
        self.stats.kv_bytes = self._arena.allocated_bytes
        return logits

    def _extend(self, ids: Sequence[int], mark: int) -> None:
        self.tokens.extend(int(i) for i in ids)
        self.marks += bytes((mark,)).ljust(len(ids), b"\0")

    def _pass_layers(
        self,
        ids: Sequence[int],
        memory: Residual,
        advance: Callable[[float], None] = lambda share: None,
        rows: int = 0,
    ) -> Residual:
        """Append tokens, one layer after the other; their residual stream, float32 [T, hidden], in
        `memory` of as many tokens or more. rows: see `pass_layers`."""
        position, arena = len(self.tokens), self._arena
        stage = open_stage(arena, position, position + len(ids))
        try:
            units, residual = PREFILLS[self._prefill], memory[: len(ids)]
            where = self._forward, self._layers
            pass_layers(*where, ids, position, stage, units, advance, residual, rows)
            stage.finish()
        except BaseException:
            stage.abandon()
            raise
        self._extend(ids, FIRST_OF_A_CALL)
        self.stats.kv_bytes = arena.allocated_bytes
        self._count_disk()
        return residual

    def _logits_by_layers(self, ids: Sequence[int]) -> Logits:
        """Append tokens; logits [1, V] of the last."""
        with residual_memory(self._forward, len(ids)) as memory:
            return self._forward.head(self._layers, self._pass_layers(ids, memory)[-1:])

    def feed(
        self, token_ids: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Append tokens, attending as `prefill` says; afterwards `logits` are those of the last.

        progress(done, total) is called after each block. Raises ContextError, with nothing
        changed, if they do not fit.
        """
        self._check_room(len(token_ids))
        check_ids(token_ids, self._engine.plan.vocab_size)
        if self._by_layers:
            self._feed_by_layers(token_ids, progress)
            return
        start, total = time.perf_counter(), len(token_ids)
        for first, end in cuts(len(self.tokens), total, self._forward.block_tokens):
            logits = self._run(token_ids[first:end], int(end == total))
            self.stats.prompt_tokens += end - first
            self.stats.prefill_s, start = (
                self.stats.prefill_s + time.perf_counter() - start,
                time.perf_counter(),
            )
            if end == total:
                self._logits = logits[0].copy()
            if progress is not None:
                progress(end, total)

    def _feed_by_layers(
        self, token_ids: Sequence[int], progress: Callable[[int, int], None] | None
    ) -> None:
        total, forward = len(token_ids), self._forward
        with residual_memory(forward, total, self._engine.experts) as memory:
            for first, end in parts_of(forward, len(self.tokens), total, memory):
                part, start = token_ids[first:end], time.perf_counter()

                def advance(share: float, first: int = first, n: int = len(part)) -> None:
                    if progress is not None and share < 1:
                        progress(first + int(share * n), total)

                residual = self._pass_layers(part, memory, advance)
                self.stats.prompt_tokens += len(part)
                if end == total:
                    self._logits = self._forward.head(self._layers, residual[-1:])[0].copy()
                self.stats.prefill_s += time.perf_counter() - start
                if progress is not None:
                    progress(end, total)

    def step(self, token: int) -> Logits:
        """Append one token as decoding does (routed unless attention is dense); its logits [V]."""
        self._check_room(1)
        check_ids((token,), self._engine.plan.vocab_size)
        start = time.perf_counter()
        self._recalls[:] = 1
        if self.on_disk and self._attention == "dense" and not self._on_card:
            logits = self._logits_by_layers((token,))
        else:
            logits = self._run((token,), 1, self._attention != "dense")
        self._logits = logits[0].copy()
        self.stats.decode_s += time.perf_counter() - start
        self.stats.decode_tokens += 1
        self._count_reads()
        return self._logits

    def _count_reads(self) -> None:
        """Add what the token just decoded read to the counters."""
        stats, forward, geometry = self.stats, self._forward, self._engine.geometry
        self._count_disk()
        stats.attended += forward.attended / len(geometry.layers)
        stats.read_bytes += forward.read_bytes
        if forward.routed_layers and self._attention == "hga-paper":
            self._summed_chunks = n_closed = len(self.tokens) // CHUNK_TOKENS
            stats.index_bytes += geometry.summary_bytes(n_closed * CHUNK_TOKENS)
        elif forward.routed_layers and self._attention == "hga":
            stats.index_bytes += geometry.sketch_bytes(len(self.tokens))
        if self.measure_recall:
            shapes = self._engine.plan.layers
            rows = [self._recalls[i, : shapes[i].attention.n_heads] for i in self._routed]
            stats.recalled += float(np.concatenate(rows).mean())
            stats.recall_tokens += 1

    def _count_disk(self) -> None:
        if isinstance(self._arena, DiskArena):
            before, self._disk = self._disk, self._arena.reads
            self.stats.count_disk(before, self._disk)
        earlier, self._expert_reads = self._expert_reads, self._engine.expert_reads
        self.stats.count_experts(self._expert_reads - earlier, alone=not self.on_disk)

    def generate(
        self, sampler: TokenSampler, max_tokens: int, stop_ids: Collection[int]
    ) -> Iterator[int]:
        """Sample and append tokens, yielding each, until a stop id, max_tokens or a full context.

        A stop token joins the timeline but is not yielded. `stop_reason` says why it ended;
        "interrupt" where the caller stopped asking.
        """
        self.stop_reason = "interrupt"
        for _ in range(max_tokens):
            if len(self.tokens) >= self.ctx:
                self.stop_reason = "ctx"
                return
            token = sampler.sample(self.logits, self.tokens)
            self.step(token)
            if token in stop_ids:
                self.stop_reason = "eos"
                return
            yield token
        self.stop_reason = "length"

    def score(self, token_ids: Sequence[int]) -> Iterator[Logits]:
        """Append tokens, yielding the logits [n, V] after each, in order, by blocks.

        Unless attention is dense every token is decoded on its own. A yielded array is overwritten
        by the next.
        """
        self._check_room(len(token_ids))
        if self._attention != "dense":
            for token in token_ids:
                yield self.step(token)[None]
            return
        check_ids(token_ids, self._engine.plan.vocab_size)
        rows = self._forward.logit_rows
        if self._by_layers:
            forward, n = self._forward, len(token_ids)
            with residual_memory(forward, n) as memory:
                for first, end in parts_of(forward, len(self.tokens), n, memory, rows):
                    residual = self._pass_layers(token_ids[first:end], memory, rows=rows)
                    for at in range(0, len(residual), rows):
                        logits = self._forward.head(self._layers, residual[at : at + rows])
                        self._logits = logits[-1].copy()
                        yield logits
            return
        for first in range(0, len(token_ids), rows):
            block = token_ids[first : first + rows]
            logits = self._run(block, len(block))
            self._logits = logits[-1].copy()
            yield logits

    def fork_point(self, token_ids: Sequence[int]) -> int:
        """Length of the longest common prefix of token_ids and the timeline."""
        n = min(len(token_ids), len(self.tokens))
        return next((i for i in range(n) if token_ids[i] != self.tokens[i]), n)

    def truncate(self, n_tokens: int) -> None:
        """Forget everything after the first n_tokens; logits are gone until the next token."""
        if not 0 <= n_tokens <= len(self.tokens):
            raise ValueError(f"cannot keep {n_tokens} of {len(self.tokens)} tokens")
        if n_tokens < len(self.tokens):
            del self.tokens[n_tokens:], self.marks[n_tokens:]
            self.n_unchanged = min(self.n_unchanged, n_tokens)
            self._arena.shrink(n_tokens)
            self._summed_chunks = min(self._summed_chunks, n_tokens // CHUNK_TOKENS)
            self._logits = np.zeros(0, np.float32)

    def last_route(self) -> Route | None:
        """What the last `step` read in the last routed layer; None if it read everything."""
        if not self._routed:
            return None
        attention = self._engine.plan.layers[self._routed[-1]].attention
        by_query = self._attention == "hga-paper"
        return self._forward.last_route(attention.n_heads if by_query else attention.n_kv_heads)

    @property
    def arena(self) -> RamArena | DiskArena:
        """Keys, values and sketches (for saving)."""
        return self._arena

    @property
    def has_logits(self) -> bool:
        """Whether `logits` has any."""
        return bool(len(self._logits))

    def save(self, note: str | None = None) -> None:
        """Make a named session durable with a text of the caller's (see SavedSession.save)."""
        if self.saved is None:
            raise ValueError("the session has no name to be saved under: Engine.session(name)")
        self.saved.save(note)

    def resume(self, tokens: list[int], marks: bytearray, first: int) -> None:
        """Take over a timeline that the arena holds, and run what begins at `first`, a decoded
        token or part of a prompt, once more for the logits of the last token."""
        self.tokens, self.marks, ids = tokens, marks, tokens[first:]
        if ids:
            decoded = marks[first] == DECODED
            self.truncate(first)
            if self._by_layers and not decoded:
                logits = self._logits_by_layers(ids)
            else:
                logits = self._run(ids, 1, decoded)
            self._logits = logits[0].copy()

    def close(self) -> None:
        """Free keys and values; the session cannot be used afterwards."""
        self._arena.close()
        if self.saved is not None:
            self.saved.close()
        self.tokens.clear()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
