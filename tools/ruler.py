"""RULER's way of asking: greedy answers about a generated document, scored by string recall.

A document is prefilled densely once; each of its questions is decoded through every arm from
there. Tasks and scoring follow RULER (arXiv 2404.06654); ruler_tasks.py writes the documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hga.tools.arms import Arm, Costs
from hga.tools.haystack import Haystack
from hga.tools.prefill import SharedPrefix, Work
from hga.tools.prompts import Prompter
from hga.tools.ruler_tasks import Enquiry, write_documents
from hga.tools.status import Status

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

# Of the progress bar, per document.
_STEPS = 100


@dataclass(frozen=True, slots=True)
class RulerPlan:
    """Every task and length with `samples` documents; `n_facts` are stated in one of extract."""

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    samples: int
    seed: int
    n_facts: int


class _Score:
    """What one arm achieved at one task and length."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.shares: list[float] = []

    def row(self) -> dict[str, object]:
        return {
            "score": float(np.mean(self.shares)),
            "complete": sum(share == 1 for share in self.shares),
            "questions": len(self.shares),
            **self.costs.row(),
        }


def run_ruler(
    engine: "Engine",
    plan: RulerPlan,
    haystacks: Sequence[Haystack],
    prompter: Prompter,
    arms: Sequence[Arm],
    status: Status,
    *,
    recall: bool = False,
) -> dict[str, Any]:
    """The JSON object of `hga eval ruler`: per task, length and arm the mean share of expected
    strings that occur in the answers, and the number of answers that hold all of them."""
    documents = write_documents(plan, prompter, haystacks)
    n_documents = len(plan.tasks) * plan.samples * len(plan.lengths)
    scores: dict[tuple[Arm, str, int], _Score] = {}
    with engine.session() as session, status.bar("ruler", "steps") as report:
        session.measure_recall = recall
        # In steps of whole documents and parts of them: how long an answer gets is not known.
        work = Work(report, n_documents * _STEPS)
        for number, document in enumerate(documents):
            prefix = SharedPrefix(session, Work(_ignore, 1))
            prefix.fill(document.ids)
            got = dict.fromkeys(arms, 0.0)
            for asked, enquiry in enumerate(document.enquiries):
                for arm in arms:
                    score = scores.setdefault((arm, document.task, document.length), _Score())
                    with prefix.arm(arm, score.costs):
                        text = _answer(engine, session, enquiry)
                    score.shares.append(_recall(text, enquiry.expected))
                    got[arm] += score.shares[-1]
                    if status.verbose > 1:
                        status.detail(f"{document.task}, {arm.label}: {' '.join(text.split())}")
                work.reach(number * _STEPS + _STEPS * (asked + 1) // len(document.enquiries))
            status.detail(
                f"{document.task}, {document.length:,} tokens: "
                + ", ".join(
                    f"{arm.label} {100 * total / len(document.enquiries):.0f} %"
                    for arm, total in got.items()
                )
            )
    return {
        "ctx": list(plan.lengths),
        "tasks": list(plan.tasks),
        "samples": plan.samples,
        "seed": plan.seed,
        "chat": prompter.chat,
        "haystacks": [haystack.name for haystack in haystacks],
        "rows": [
            {**arm.row(), "task": task, "ctx": length, **scores[arm, task, length].row()}
            for arm in arms
            for task in plan.tasks
            for length in plan.lengths
        ],
    }


def _answer(engine: "Engine", session: "Session", enquiry: Enquiry) -> str:
    """The greedy answer, ended early once it holds all that is expected: more text cannot change
    its score."""
    tokenizer = engine.tokenizer
    logits = None
    for token in enquiry.prompt:
        logits = session.step(token)
    assert logits is not None
    ids: list[int] = []
    text = ""
    while len(ids) < enquiry.max_tokens:
        token = int(np.argmax(logits))
        if token in tokenizer.eos:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        if _recall(text, enquiry.expected) == 1:
            break
        if len(ids) < enquiry.max_tokens:
            logits = session.step(token)
    return text


def _recall(text: str, expected: Sequence[str]) -> float:
    """The share of the expected strings that occur in the text, whatever their case."""
    text = text.lower()
    return sum(word.lower() in text for word in expected) / len(expected)


def _ignore(done: int, total: int) -> None:
    pass
