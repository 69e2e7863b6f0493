"""Losses in nats: perplexity of a text, and of tokens decoded one by one.

From float64 log-sum-exp over the model's float32 logits. Convention: llama-perplexity's chunks.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hga.tools.arms import Arm, set_arm
from hga.tools.errors import UsageError
from hga.tools.status import Report, Status

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

# Logits that are widened to float64 at once: 32 MiB of them.
_BLOCK_VALUES = 1 << 22

Floats = npt.NDArray[np.float64]


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
