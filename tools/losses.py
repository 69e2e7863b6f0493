"""Losses in nats: perplexity of a text, and of a tail decoded through several attention rules.

From float64 log-sum-exp over the model's float32 logits. Conventions: llama-perplexity's chunks;
a dense prefill and a teacher-forced tail for the gap.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hga.tools.errors import UsageError
from hga.tools.figures import attended_bytes
from hga.tools.status import Report, Status

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

# Logits that are widened to float64 at once: 32 MiB of them.
_BLOCK_VALUES = 1 << 22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to attend: a rule and its budget (None for dense, which has none)."""

    attention: str
    budget: str | None


def perplexity(
    engine: "Engine",
    ids: Sequence[int],
    ctx: int,
    max_chunks: int | None,
    score: str,
    arm: Arm,
    status: Status,
) -> dict[str, object]:
    """llama-perplexity's figure: chunks of `ctx` tokens, each from an empty context and with BOS
    in place of its first token where the model wants one; position i predicts token i + 1.

    `score` half scores positions ctx/2 to ctx-2, all scores 0 to ctx-2. Dense scores in blocks;
    a routed arm prefills what is not scored and decodes the rest token by token.
    """
    n_chunks = len(ids) // ctx
    if n_chunks == 0:
        raise UsageError(f"the text makes {len(ids):,} tokens, less than one chunk of {ctx:,}")
    if max_chunks is not None and max_chunks > n_chunks:
        status.notice(f"the text holds {n_chunks} chunks of {ctx:,} tokens; {max_chunks} asked")
    n_chunks = min(n_chunks, max_chunks or n_chunks)
    first = ctx // 2 if score == "half" else 0
    bos = engine.tokenizer.bos
    losses: list[Floats] = []
    with engine.session() as session, status.bar("scoring", "tokens") as report:
        for chunk in range(n_chunks):
            window = list(ids[chunk * ctx : (chunk + 1) * ctx])
            if bos is not None:
                window[0] = bos
            session.truncate(0)
            set_arm(session, arm)
            done = chunk * ctx
            if first:
                session.feed(window[:first], _shifted(report, done, n_chunks * ctx))
            losses.append(
                _scored(
                    session, window[first:], arm, _shifted(report, done + first, n_chunks * ctx)
                )
            )
            running = math.exp(float(np.concatenate(losses).mean()))
            status.detail(f"[{chunk + 1}] {running:.4f}")
    nll = float(np.concatenate(losses).mean())
    return {
        "ppl": math.exp(nll),
        "nll": nll,
        "tokens_scored": sum(len(chunk) for chunk in losses),
        "chunks": [float(chunk.mean()) for chunk in losses],
    }


def _scored(session: "Session", ids: Sequence[int], arm: Arm, report: Report) -> Floats:
    """The losses of ids[1:], each predicted from everything before it."""
    if arm.attention != "dense":
        return decode_losses(session, ids[:-1], ids[1:], report)
    parts: list[Floats] = []
    done = 0
    for logits in session.score(list(ids[:-1])):
        parts.append(nll_of(logits, ids[done + 1 : done + 1 + len(logits)]))
        done += len(logits)
        report(done, len(ids))
    return np.concatenate(parts)


def loss_gap(
    engine: "Engine", ids: Sequence[int], ctx: int, tail: int, arms: Iterable[Arm], status: Status
) -> dict[str, object]:
    """Prefill ctx - tail tokens densely, then decode the tail once per arm on the same tokens.

    Every tail token is a query; the last one is scored where `ids` holds one more token than
    `ctx`. `gap` is the mean difference to dense in nats, `gap_ci` the half width of its 95 %
    interval as if tokens were independent. Bytes are keys and values, and summaries, that one
    decoded token reads; what the engine does not measure is null.
    """
    with engine.session() as session:
        return _gap_rows(engine, session, ids, ctx, tail, arms, status)


def _gap_rows(
    engine: "Engine",
    session: "Session",
    ids: Sequence[int],
    ctx: int,
    tail: int,
    arms: Iterable[Arm],
    status: Status,
) -> dict[str, object]:
    prefix = ctx - tail
    session.attention = "dense"
    with status.bar("prefill", "tokens") as report:
        session.feed(list(ids[:prefix]), report)
    queries, targets = ids[prefix:ctx], ids[prefix + 1 : ctx + 1]
    dense = _decode_arm(session, prefix, queries, targets, Arm("dense", None), status)
    rows = []
    for arm in arms:
        losses = _decode_arm(session, prefix, queries, targets, arm, status)
        difference = losses - dense
        attended = session.stats.attended_mean
        rows.append(
            {
                "attention": arm.attention,
                "budget": arm.budget,
                "gap": float(difference.mean()),
                "gap_ci": 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference)),
                "attended_mean": attended,
                "bytes_per_token": attended_bytes(engine, attended),
                "index_bytes_per_token": _index_bytes(engine, session, ctx - tail // 2),
                "mass_recall": None,
            }
        )
    return {"ctx": ctx, "tail": tail, "dense_nll": float(dense.mean()), "rows": rows}


def _index_bytes(engine: "Engine", session: "Session", n_tokens: int) -> int:
    """Summaries that routing scans; none where the last token read everything."""
    return 0 if session.last_route() is None else engine.geometry.sketch_bytes(n_tokens)


def _decode_arm(
    session: "Session",
    prefix: int,
    queries: Sequence[int],
    targets: Sequence[int],
    arm: Arm,
    status: Status,
) -> Floats:
    session.truncate(prefix)
    set_arm(session, arm)
    session.reset_stats()
    label = arm.attention if arm.budget is None else f"{arm.attention} {arm.budget}"
    with status.bar(label, "tokens") as report:
        return decode_losses(session, queries, targets, report)


def set_arm(session: "Session", arm: Arm) -> None:
    """Let the session's next steps attend as the arm says."""
    session.attention = arm.attention
    if arm.budget is not None:
        session.budget = arm.budget


def decode_losses(
    session: "Session", queries: Sequence[int], targets: Sequence[int], report: Report
) -> Floats:
    """Decode `queries` one by one; the loss of each target after its query. A last query without
    a target is not run."""
    losses = np.empty(len(targets), np.float64)
    for i, target in enumerate(targets):
        logits = session.step(queries[i])
        losses[i] = nll_of(logits[None], [target])[0]
        report(i + 1, len(targets))
    return losses


def nll_of(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> Floats:
    """-log softmax(logits [n, V])[targets [n]] in nats, computed in float64."""
    wanted = np.asarray(targets, np.int64)
    losses = np.empty(len(wanted), np.float64)
    step = max(1, _BLOCK_VALUES // logits.shape[1])
    for begin in range(0, len(wanted), step):
        block = logits[begin : begin + step].astype(np.float64)
        peak = block.max(axis=1)
        total = np.log(np.exp(block - peak[:, None]).sum(axis=1)) + peak
        chosen = wanted[begin : begin + step]
        losses[begin : begin + step] = total - block[np.arange(len(block)), chosen]
    return losses


def _shifted(report: Report, before: int, total: int) -> Report:
    return lambda done, _: report(before + done, total)
