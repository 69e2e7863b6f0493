"""`hga eval`: perplexity, the loss gap of routed against dense attention, retrieval cases.

Checks what was asked, opens the engine, prints the result as one JSON object on standard output.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from hga.tools.errors import OK, UsageError
from hga.tools.losses import Arm, loss_gap, perplexity
from hga.tools.retrieval import retrieval
from hga.tools.run import decode, engine_options, open_engine, read_text
from hga.tools.status import Status
from hga.tools.token_files import check_ids, encode_document, load_cases, load_ids

_DEFAULT_CTX = 2048


def evaluate(task: str, model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command `hga eval TASK`; prints the JSON object and returns the exit code."""
    run = {"ppl": _ppl_task, "gap": _gap_task, "cases": _cases_task}[task]
    result = run(model, values, status)
    sys.stdout.write(json.dumps(result) + "\n")
    return OK


def _ppl_task(model: str | None, values: argparse.Namespace, status: Status) -> dict[str, object]:
    if values.file is None:
        raise UsageError("--file TEXT is needed: the text to score")
    text = _text(values.file)
    values.ctx = values.ctx or _DEFAULT_CTX
    with open_engine(model, engine_options(values), values, status) as engine:
        ids = encode_document(engine, text)
        arm = Arm(values.attention, None if values.attention == "dense" else values.budget)
        return perplexity(engine, ids, values.ctx, values.chunks, values.score, arm, status)


def _gap_task(model: str | None, values: argparse.Namespace, status: Status) -> dict[str, object]:
    if values.ctx is None:
        raise UsageError("--ctx N is needed: the length at which the gap is measured")
    if (values.file is None) == (values.token_ids is None):
        raise UsageError("give --file TEXT or --token-ids FILE.npy")
    ctx, tail = values.ctx, values.tail
    if not 2 <= tail < ctx:
        raise UsageError(f"--tail {tail:,} does not lie between 2 and --ctx {ctx:,}")
    stored = load_ids(values.token_ids) if values.token_ids is not None else None
    text = _text(values.file) if stored is None else ""
    with open_engine(model, engine_options(values), values, status) as engine:
        ids = encode_document(engine, text) if stored is None else stored
        check_ids(ids, engine.plan.vocab_size, "the input")
        if len(ids) < ctx:
            raise UsageError(f"the input holds {len(ids):,} tokens, --ctx asks for {ctx:,}")
        return loss_gap(engine, ids[: ctx + 1], ctx, tail, arms_of(values), status)


def _cases_task(model: str | None, values: argparse.Namespace, status: Status) -> dict[str, object]:
    if values.cases is None:
        raise UsageError("--cases FILE.npz is needed")
    cases = load_cases(values.cases)
    longest = max(len(case.ids) for case in cases)
    if values.ctx is None:
        values.ctx = longest
    if values.ctx < longest:
        raise UsageError(f"the longest case has {longest:,} tokens, --ctx is {values.ctx:,}")
    with open_engine(model, engine_options(values), values, status) as engine:
        for case in cases:
            check_ids(case.ids, engine.plan.vocab_size, f"needle_{case.name}")
        return retrieval(engine, cases, list(arms_of(values)), status)


def arms_of(values: argparse.Namespace) -> Iterable[Arm]:
    """Every rule at every budget; dense has no budget and appears once."""
    for attention in values.attention:
        for budget in (None,) if attention == "dense" else values.budget:
            yield Arm(attention, budget)


def _text(file: str) -> str:
    if file == "-":
        return decode(sys.stdin.buffer.read(), "standard input")
    return read_text(Path(file))
