"""What a session counts from one reset to the next."""

from dataclasses import dataclass, field

from hga.kvstore.disk_arena import ReadCounts

from .expert_reads import ExpertReads


@dataclass(slots=True)
class TurnStats:
    """Counters since the last `reset_stats`; times in seconds."""

    reused_tokens: int = 0
    prompt_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    attended: float = 0.0
    kv_bytes: int = 0
    # Read by decoded tokens: keys and values, and what routing scanned to choose them.
    read_bytes: int = 0
    index_bytes: int = 0
    # Cells of keys and values on disk that decoded tokens found in memory, and those that they
    # had to read; what all reads of the turn brought, and how long kernel threads waited for them.
    cell_hits: int = 0
    cell_reads: int = 0
    disk_bytes: int = 0
    stall_s: float = 0.0
    # Of prompts and decoded tokens, where experts lie on disk.
    experts: ExpertReads = field(default_factory=ExpertReads)
    recalled: float = 0.0
    recall_tokens: int = 0

    def count_experts(self, reads: ExpertReads, alone: bool) -> None:
        """Add what experts cost; alone: nothing else is read, so that no one counts the disk."""
        self.experts += reads
        if alone:
            self.disk_bytes += reads.read_bytes
            self.stall_s += reads.stall_s

    def count_disk(self, before: ReadCounts, now: ReadCounts) -> None:
        """Add the reads between two counts."""
        self.cell_hits += now.hits - before.hits
        self.cell_reads += now.reads - before.reads
        self.disk_bytes += now.disk_bytes - before.disk_bytes
        self.stall_s += (now.stall_ns - before.stall_ns) / 1e9

    @property
    def attended_mean(self) -> float | None:
        """Tokens attended per decoded token, mean over layers; None before the first."""
        return self.attended / self.decode_tokens if self.decode_tokens else None

    @property
    def kv_hit_rate(self) -> float | None:
        """Share of the cells of decoded tokens that lay in memory; None where all of them do."""
        asked = self.cell_hits + self.cell_reads
        return self.cell_hits / asked if asked else None

    @property
    def expert_hit_rate(self) -> float | None:
        """Share of the uses of experts that cost no read; None where all lie in memory."""
        return self.experts.hit_rate

    @property
    def mass_recall(self) -> float | None:
        """Share of the true attention mass on the tokens attended, mean over full-attention layers
        and query heads; None unless `Session.measure_recall` was on."""
        return self.recalled / self.recall_tokens if self.recall_tokens else None

    @property
    def prefill_tps(self) -> float | None:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tps(self) -> float | None:
        """Generated tokens per second."""
        return self.decode_tokens / self.decode_s if self.decode_s else None
