"""What a batch comes to: counts, speeds, and the report at its end."""

from dataclasses import dataclass, field

from hga.tools.batch.journal import Record
from hga.tools.status import rate, span

_LISTED = 20


@dataclass(slots=True)
class Tally:
    """Grows record by record. `kept`: inputs that an earlier run had done. `redone`: those done
    again, with why."""

    total: int
    records: list[Record] = field(default_factory=list)
    kept: int = 0
    redone: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Count what became of an input in this run."""
        self.records.append(record)

    @property
    def done(self) -> list[Record]:
        """Inputs answered in this run."""
        return [record for record in self.records if record.done]

    @property
    def failed(self) -> list[Record]:
        """Inputs that failed in this run."""
        return [record for record in self.records if not record.done]

    @property
    def left(self) -> int:
        """Inputs that nothing has become of yet."""
        return self.total - self.kept - len(self.records)

    def speed(self) -> str:
        """Tokens a second so far, prompts and replies together."""
        done = self.done
        new = sum(r.prompt_tokens - r.reused_tokens + r.reply_tokens for r in done)
        speed = rate(new, sum(r.prefill_s + r.decode_s for r in done))
        return "" if speed is None else f"{speed:,.0f} tok/s"

    def lines(self, seconds: float) -> list[str]:
        """The report for people."""
        done, failed = self.done, self.failed
        counts = [f"{len(done):,} done"]
        counts += [f"{self.kept:,} done earlier"] * (self.kept > 0)
        counts += [f"{len(failed):,} failed"] * (len(failed) > 0)
        counts += [f"{self.left:,} left"] * (self.left > 0)
        lines = [f"{self.total:,} inputs: {', '.join(counts)}, in {span(seconds)}"]
        if done:
            lines.append(_speeds(done))
        lines += _listed("done again", [f"{name}: {why}" for name, why in self.redone.items()])
        reduced = [f"{r.input}: {r.n_parts} parts" for r in done if r.n_parts > 1]
        lines += _listed("longer than the context, answered in parts and merged", reduced)
        lines += _listed("cut where the reply reached -n", [r.input for r in done if r.cut])
        lines += _listed("not plain UTF-8", [f"{r.input}: {r.note}" for r in done if r.note])
        return lines + _listed("failed", [f"{r.input}: {r.reason}" for r in failed])

    def json(self, seconds: float, stop: str) -> dict[str, object]:
        """The object of --json."""
        done, failed = self.done, self.failed
        new = sum(r.prompt_tokens - r.reused_tokens for r in done)
        written = sum(r.reply_tokens for r in done)
        return {
            "inputs": self.total,
            "done": len(done),
            "done_earlier": self.kept,
            "failed": [{"input": r.input, "reason": r.reason} for r in failed],
            "left": self.left,
            "redone": self.redone,
            "reduced": {r.input: r.n_parts for r in done if r.n_parts > 1},
            "cut": [r.input for r in done if r.cut],
            "prompt_tokens": sum(r.prompt_tokens for r in done),
            "reused_tokens": sum(r.reused_tokens for r in done),
            "reply_tokens": written,
            "prefill_tps": _rounded(rate(new, sum(r.prefill_s for r in done))),
            "decode_tps": _rounded(rate(written, sum(r.decode_s for r in done))),
            "seconds": round(seconds, 3),
            "stop": stop,
        }


def _speeds(done: list[Record]) -> str:
    prompt, reused = sum(r.prompt_tokens for r in done), sum(r.reused_tokens for r in done)
    written = sum(r.reply_tokens for r in done)
    prefill = rate(prompt - reused, sum(r.prefill_s for r in done))
    decode = rate(written, sum(r.decode_s for r in done))
    text = f"prompts {prompt:,} tokens, {reused:,} of them reused"
    text += "" if prefill is None else f", prefill {prefill:,.0f} tok/s"
    text += f"; replies {written:,} tokens"
    return text + ("" if decode is None else f", decode {decode:,.1f} tok/s")


def _listed(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    lines = [f"{title}:", *(f"  {item}" for item in items[:_LISTED])]
    more = len(items) - _LISTED
    return [*lines, f"  and {more:,} more, in the journal"] if more > 0 else lines


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
