"""What a cache of experts counts."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class ExpertReads:
    """Uses of experts by how they were found: in a slot, read ahead because the layer before had
    foreseen them, read when they were needed; hints read or dropped in time; of the uses that were
    guessed about (`guessed`), those that the guess had named; of the foreseen those that had been
    read by then; seconds that the first thread waited.
    """

    hits: int = 0
    foreseen: int = 0
    reads: int = 0
    hints: int = 0
    foretold: int = 0
    guessed: int = 0
    withdrawn: int = 0
    landed: int = 0
    read_bytes: int = 0
    stall_s: float = 0.0

    def __add__(self, other: "ExpertReads") -> "ExpertReads":
        return ExpertReads(*(x + y for x, y in zip(astuple(self), astuple(other))))

    def __sub__(self, other: "ExpertReads") -> "ExpertReads":
        return ExpertReads(*(x - y for x, y in zip(astuple(self), astuple(other))))

    @property
    def hit_rate(self) -> float | None:
        """Share of the uses that cost no read; None before the first."""
        uses = self.hits + self.foreseen + self.reads
        return self.hits / uses if uses else None

    @property
    def recall(self) -> float | None:
        """Share of the experts used that the layer before foretold; None without guesses."""
        return self.foretold / self.guessed if self.guessed else None

    @property
    def precision(self) -> float | None:
        """Share of the hints read that were used at once; None without any."""
        read = self.hints - self.withdrawn
        return self.foreseen / read if read else None
