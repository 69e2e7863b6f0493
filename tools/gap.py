"""The loss gap of attention rules against dense attention, on the same tokens of a text.

A segment is a stretch of the text. Its first tokens are prefilled densely once, whatever the
number of lengths and arms, and the tail is decoded teacher-forced through every arm; differences
are paired, token by token, so what is hard about the text itself cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hga.tools.arms import DENSE, Arm, Costs
from hga.tools.errors import UsageError
from hga.tools.intervals import over_batches, over_segments
from hga.tools.losses import Floats, decode_losses
from hga.tools.prefill import SharedPrefix, Work
from hga.tools.status import Status

if TYPE_CHECKING:
    from hga.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class GapPlan:
    """`lengths` tokens of context (ascending), the last `tail` of them decoded, at `segments`
    places of the text."""

    lengths: tuple[int, ...]
    tail: int
    segments: int


def segment_starts(n_tokens: int, plan: GapPlan) -> list[int]:
    """Evenly spaced first tokens of the segments, the first at 0 and the last as late as fits.

    Raises UsageError where the text is too short, or tails would overlap.
    """
    longest = plan.lengths[-1]
    if n_tokens < longest:
        raise UsageError(f"the input holds {n_tokens:,} tokens, --ctx asks for {longest:,}")
    if plan.segments == 1:
        return [0]
    free = n_tokens - longest
    fit = 1 + free // plan.tail
    if plan.segments > fit:
        raise UsageError(
            f"--segments {plan.segments}: {n_tokens:,} tokens hold {fit} of --ctx {longest:,} "
            f"whose tails of {plan.tail:,} do not overlap"
        )
    return [i * free // (plan.segments - 1) for i in range(plan.segments)]


class _Cell:
    """What one arm gathered at one length: differences to dense per segment, and costs."""

    def __init__(self) -> None:
        self.differences: list[Floats] = []
        self.costs = Costs()

    def row(self, arm: Arm) -> dict[str, object]:
        means = [float(part.mean()) for part in self.differences]
        several = len(means) > 1
        return {
            **arm.row(),
            "gap": float(np.mean(means)),
            "gap_ci": over_segments(means) if several else over_batches(self.differences[0]),
            **self.costs.row(),
            "gap_segments": means,
        }


Losses = dict[tuple[int, int], Floats]
"""Of the tail's tokens, by number of the segment and length of the context."""


def dense_losses(engine: "Engine", ids: Sequence[int], plan: GapPlan, status: Status) -> Losses:
    """What every tail loses by dense attention, with the engine's own keys and values."""
    starts = segment_starts(len(ids), plan)
    n_tokens = sum(plan.lengths) + plan.tail * len(plan.lengths)
    found: Losses = {}
    with engine.session() as session, status.bar("dense", "tokens") as report:
        prefix = SharedPrefix(session, Work(report, n_tokens * len(starts)))
        for number, start in enumerate(starts):
            segment = _segment(engine, ids, start, plan.lengths[-1])
            for length in plan.lengths:
                prefix.fill(segment[: length - plan.tail], "exact")
                found[number, length] = _tail(prefix, segment, length, DENSE, Costs())
    return found


def loss_gaps(
    engine: "Engine",
    ids: Sequence[int],
    plan: GapPlan,
    arms: Sequence[Arm],
    status: Status,
    *,
    recall: bool = False,
    prefill: str = "exact",
    baseline: Losses | None = None,
) -> dict[str, Any]:
    """The JSON object of `hga eval gap`: that of the one length, or all under `depths`.

    Every tail token is a query; the last one is scored where a token follows it in `ids`. Where
    the text begins with BOS every segment does. `gap` is the mean difference to dense in nats,
    `gap_ci` the half width of its 95 % interval: over segments (Student's t), or with a single one
    over batches of the tail. With prefill "hga" the arms, dense among them, go on from a routed
    prompt; what they are compared with never does. baseline: compare with these losses instead
    of those of the engine's dense attention.
    """
    starts = segment_starts(len(ids), plan)
    longest = plan.lengths[-1]
    if starts[-1] and starts[1] < longest:
        status.notice(f"segments of {longest:,} tokens overlap; their tails do not")
    cells = {(length, arm): _Cell() for length in plan.lengths for arm in (DENSE, *arms)}
    dense_nll: dict[int, list[float]] = {length: [] for length in plan.lengths}
    routed = prefill != "exact"
    others = [arm for arm in arms if routed or baseline is not None or arm != DENSE]
    n_decoded = len(others) - (baseline is not None)
    per_segment = sum(plan.lengths) + plan.tail * len(plan.lengths) * n_decoded
    with engine.session() as session, status.bar("gap", "tokens") as report:
        session.measure_recall = recall
        prefix = SharedPrefix(session, Work(report, per_segment * len(starts)))
        for number, start in enumerate(starts):
            segment = _segment(engine, ids, start, longest)
            for length in plan.lengths:
                prefix.fill(segment[: length - plan.tail], "exact")
                if baseline is None:
                    dense = _tail(prefix, segment, length, DENSE, cells[length, DENSE].costs)
                else:
                    dense = baseline[number, length]
                dense_nll[length].append(float(dense.mean()))
                if routed:
                    prefix.fill(segment[: length - plan.tail], prefill)
                elif baseline is None:
                    cells[length, DENSE].differences.append(np.zeros_like(dense))
                for arm in others:
                    cell = cells[length, arm]
                    losses = _tail(prefix, segment, length, arm, cell.costs)
                    cell.differences.append(losses - dense)
                    status.detail(
                        f"segment {number + 1} of {len(starts)}, {length:,} tokens, {arm.label}: "
                        f"{float((losses - dense).mean()):+.4f} nats"
                    )
    depths: list[dict[str, Any]] = [
        {
            "ctx": length,
            "tail": plan.tail,
            "prefill": prefill,
            "kv_type": engine.options.kv_type,
            "dense_nll": float(np.mean(dense_nll[length])),
            "segments": len(starts),
            "ci_over": "segments" if len(starts) > 1 else "batches",
            "rows": [cells[length, arm].row(arm) for arm in arms],
        }
        for length in plan.lengths
    ]
    return depths[0] if len(depths) == 1 else {"depths": depths}


def _segment(engine: "Engine", ids: Sequence[int], start: int, longest: int) -> list[int]:
    """The segment's tokens and the one that follows, if there is one."""
    if start and ids[0] == engine.tokenizer.bos:
        return [ids[0], *ids[start + 1 : start + longest + 1]]
    return list(ids[start : start + longest + 1])


def _tail(
    prefix: SharedPrefix, segment: Sequence[int], length: int, arm: Arm, costs: Costs
) -> Floats:
    """Losses of the tail decoded through an arm."""
    queries = segment[prefix.n_dense : length]
    targets = segment[prefix.n_dense + 1 : length + 1]
    with prefix.arm(arm, costs) as session:
        return decode_losses(session, queries, targets, lambda *_: prefix.work.advance())
