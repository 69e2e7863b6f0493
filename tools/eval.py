"""`hga eval`: perplexity, the loss gap of routed against dense attention, retrieval, RULER's tasks.

Checks what was asked, opens the engine, shows a table on standard error and prints the result as
one JSON object, the last line of standard output.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hga.tools import plots
from hga.tools.arms import Arm, arms_of
from hga.tools.errors import OK, UsageError
from hga.tools.gap import GapPlan, dense_losses, loss_gaps, segment_starts
from hga.tools.haystack import Haystack, load_haystacks
from hga.tools.losses import perplexity
from hga.tools.needle import NeedlePlan, find_needles
from hga.tools.prompts import Prompter
from hga.tools.retrieval import retrieval
from hga.tools.ruler import RulerPlan, run_ruler
from hga.tools.run import open_engine
from hga.tools.status import Status
from hga.tools.table import COSTS, Column, Row, share, table, text
from hga.tools.texts import decode, read_text
from hga.tools.token_files import check_ids, encode_document, load_cases, load_ids

if TYPE_CHECKING:
    from hga.runtime.engine import Engine

Result = dict[str, Any]

_DEFAULT_CTX = 2048
_ARM_COLUMNS: tuple[Column, ...] = (("attention", text("attention")), ("budget", text("budget")))


def evaluate(task: str, model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command `hga eval TASK`; prints the JSON object and returns the exit code."""
    tasks: dict[str, Callable[[str | None, argparse.Namespace, Status], Result]] = {
        "ppl": _ppl_task,
        "gap": _gap_task,
        "cases": _cases_task,
        "needle": _needle_task,
        "ruler": _ruler_task,
    }
    result = tasks[task](model, values, status)
    sys.stdout.write(json.dumps(result) + "\n")
    return OK


def _ppl_task(model: str | None, values: argparse.Namespace, status: Status) -> Result:
    if values.file is None:
        raise UsageError("--file TEXT is needed: the text to score")
    document = _text(values.file)
    values.ctx = values.ctx or _DEFAULT_CTX
    arm = Arm(values.attention, None if values.attention == "dense" else values.budget)
    with _open(model, values, status) as engine:
        ids = encode_document(engine, document)
        return perplexity(engine, ids, values.ctx, values.chunks, values.score, arm, status)


def _gap_task(model: str | None, values: argparse.Namespace, status: Status) -> Result:
    lengths = _lengths(values, "the length at which the gap is measured")
    if (values.file is None) == (values.token_ids is None):
        raise UsageError("give --file TEXT or --token-ids FILE.npy")
    plan = GapPlan(lengths, values.tail, values.segments)
    if not 2 <= plan.tail < lengths[0]:
        raise UsageError(f"--tail {plan.tail:,} does not lie between 2 and --ctx {lengths[0]:,}")
    plots.check(values.plot)
    arms = arms_of(values)
    stored = load_ids(values.token_ids) if values.token_ids is not None else None
    document = _text(values.file) if stored is None else ""
    baseline = None
    if values.kv_type != "bf16":
        # What is stored at full width is compared with, as exact prompts are.
        full = argparse.Namespace(**{**vars(values), "kv_type": "bf16"})
        with _open(model, full, status) as engine:
            ids = _gap_ids(engine, document, stored, plan)
            baseline = dense_losses(engine, ids, plan, status)
    with _open(model, values, status) as engine:
        ids = _gap_ids(engine, document, stored, plan)
        status.notice(
            f"gap: {plan.segments} segment(s), contexts of {_listed(lengths)} tokens, tail "
            f"{plan.tail:,}: {plan.segments * lengths[-1]:,} tokens to prefill, "
            f"{plan.segments * len(lengths) * plan.tail:,} to decode for each of {len(arms)} arms"
        )
        found = loss_gaps(
            engine,
            ids,
            plan,
            arms,
            status,
            recall=values.recall,
            prefill=values.prefill,
            baseline=baseline,
        )
    objects = found.get("depths", [found])
    _show(_gap_rows(objects), (("ctx", text("ctx")), *_ARM_COLUMNS, ("gap", _gap_text)), status)
    if values.plot is not None:
        plots.gap(objects, values.plot)
    return found


def _gap_ids(
    engine: "Engine", document: str, stored: Sequence[int] | None, plan: GapPlan
) -> Sequence[int]:
    ids = encode_document(engine, document) if stored is None else stored
    check_ids(ids, engine.plan.vocab_size, "the input")
    segment_starts(len(ids), plan)
    return ids


def _cases_task(model: str | None, values: argparse.Namespace, status: Status) -> Result:
    if values.cases is None:
        raise UsageError("--cases FILE.npz is needed")
    cases = load_cases(values.cases)
    longest = max(len(case.ids) for case in cases)
    if values.ctx is None:
        values.ctx = longest
    if values.ctx < longest:
        raise UsageError(f"the longest case has {longest:,} tokens, --ctx is {values.ctx:,}")
    with _open(model, values, status) as engine:
        for case in cases:
            check_ids(case.ids, engine.plan.vocab_size, f"needle_{case.name}")
        found = retrieval(engine, cases, arms_of(values), status, recall=values.recall)
    rows = found["rows"]
    _show(rows, (*_ARM_COLUMNS, ("hits", text("hits")), ("of", text("total"))), status)
    return found


def _needle_task(model: str | None, values: argparse.Namespace, status: Status) -> Result:
    lengths = _lengths(values, "the lengths of the context")
    plots.check(values.plot)
    arms = arms_of(values)
    plan = NeedlePlan(lengths, values.kind, values.depths, values.samples, values.seed)
    with _open(model, values, status) as engine:
        prompter = Prompter(engine, chat=not values.no_chat)
        haystacks = load_haystacks(values.haystack, engine.tokenizer)
        status.notice(
            f"needle: {', '.join(plan.kinds)} at {plan.n_depths} depths of {_listed(lengths)} "
            f"tokens ({_style(prompter)}): {len(lengths) * plan.n_texts} texts, "
            f"{plan.n_texts * sum(lengths):,} tokens to prefill, "
            f"{len(lengths) * plan.n_questions} questions for each of {len(arms)} arms"
        )
        _warn_of_repeats(haystacks, lengths, status)
        found = find_needles(engine, plan, haystacks, prompter, arms, status, recall=values.recall)
    columns = (
        *_ARM_COLUMNS, ("kind", text("kind")), ("ctx", text("ctx")),
        ("hits", text("hits")), ("of", text("total")), ("values", share("found")),
    )  # fmt: skip
    _show(found["totals"], columns, status)
    if values.plot is not None:
        plots.needle(found, values.plot)
    return found


def _ruler_task(model: str | None, values: argparse.Namespace, status: Status) -> Result:
    lengths = _lengths(values, "the lengths of the context")
    plots.check(values.plot)
    arms = arms_of(values)
    plan = RulerPlan(lengths, values.task, values.samples, values.seed, values.facts)
    with _open(model, values, status) as engine:
        prompter = Prompter(engine, chat=not values.no_chat)
        haystacks = load_haystacks(values.haystack, engine.tokenizer)
        n = plan.samples * len(plan.tasks)
        status.notice(
            f"ruler: {', '.join(plan.tasks)} in {_listed(lengths)} tokens ({_style(prompter)}): "
            f"{n * len(lengths)} documents, {n * sum(lengths):,} tokens to prefill, every question "
            f"for each of {len(arms)} arms"
        )
        _warn_of_repeats(haystacks, lengths, status)
        found = run_ruler(engine, plan, haystacks, prompter, arms, status, recall=values.recall)
    columns = (
        *_ARM_COLUMNS, ("task", text("task")), ("ctx", text("ctx")), ("score", share("score")),
        ("complete", text("complete")), ("of", text("questions")),
    )  # fmt: skip
    _show(found["rows"], columns, status)
    if values.plot is not None:
        plots.ruler(found, values.plot)
    return found


def _lengths(values: argparse.Namespace, what: str) -> tuple[int, ...]:
    """The lengths asked for, ascending, each once; the engine is opened for the longest."""
    if values.ctx is None:
        raise UsageError(f"--ctx LIST is needed: {what}")
    lengths = tuple(sorted(set(values.ctx)))
    values.ctx = lengths[-1]
    return lengths


def _open(
    model: str | None, values: argparse.Namespace, status: Status
) -> "AbstractContextManager[Engine]":
    """The engine; every arm sets its own attention."""
    from hga.runtime.options import Options

    options = Options(
        ctx=values.ctx,
        threads=values.threads,
        attention="dense",
        mem=values.mem,
        device=values.device,
        gpu_mem=getattr(values, "gpu_mem", None),
        sketch_bits=values.sketch_bits,
        kv_type=values.kv_type,
    )
    return open_engine(model, options, values, status)


def _show(rows: Sequence[Row], columns: Sequence[Column], status: Status) -> None:
    for line in table(rows, (*columns, *COSTS)):
        status.notice(line)


def _gap_rows(objects: Sequence[Result]) -> list[Row]:
    return [{"ctx": found["ctx"], **row} for found in objects for row in found["rows"]]


def _gap_text(row: Row) -> str:
    return f"{row['gap']:+.4f} ± {row['gap_ci']:.4f}"


def _warn_of_repeats(haystacks: Sequence[Haystack], lengths: Sequence[int], status: Status) -> None:
    for haystack in haystacks:
        if len(haystack) < lengths[-1]:
            status.notice(
                f"haystack {haystack.name}: {len(haystack):,} tokens, repeated to fill "
                f"{lengths[-1]:,}"
            )


def _style(prompter: Prompter) -> str:
    return "chat template" if prompter.chat else "plain text"


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(f"{length:,}" for length in lengths)


def _text(file: str) -> str:
    if file == "-":
        return decode(sys.stdin.buffer.read(), "standard input")
    return read_text(Path(file))
