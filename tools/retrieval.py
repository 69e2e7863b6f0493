"""Retrieval: does an attention rule still find the answer that dense attention finds.

Answers are teacher-forced: a value counts if the model's arg-max is right at every token of it.
Where several values are asked for, they may come in any order; the separator between them is
given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hga.tools.arms import Arm, Costs
from hga.tools.prefill import SharedPrefix, Work
from hga.tools.status import Status
from hga.tools.token_files import CASE_TAIL, Case

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Question:
    """Tokens to decode after the document, and the values that must follow, in any order."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    separator: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens decoded where every answer is right."""
        between = len(self.separator) * (len(self.answers) - 1)
        return len(self.prompt) + sum(map(len, self.answers)) + between - 1


def values_found(session: "Session", question: Question) -> int:
    """How many of the values the model produces before its first wrong token; the session grows
    by what was decoded."""
    logits = None
    for token in question.prompt:
        logits = session.step(token)
    left = list(question.answers)
    while True:
        value: list[int] = []
        while tuple(value) not in left:
            token = int(np.argmax(logits))
            value.append(token)
            if not any(answer[: len(value)] == tuple(value) for answer in left):
                return len(question.answers) - len(left)
            if tuple(value) not in left:
                logits = session.step(token)
        left.remove(tuple(value))
        if not left:
            return len(question.answers)
        for token in (value[-1], *question.separator):
            logits = session.step(token)


def retrieval(
    engine: "Engine",
    cases: Sequence[Case],
    arms: Sequence[Arm],
    status: Status,
    *,
    recall: bool = False,
) -> dict[str, object]:
    """The JSON object of `hga eval cases`: each case prefilled densely up to its last 64 tokens,
    those decoded through each arm; a hit has the right arg-max at every answer token."""
    missed: dict[Arm, list[str]] = {arm: [] for arm in arms}
    costs = {arm: Costs() for arm in arms}
    total = sum(len(case.ids) - CASE_TAIL + CASE_TAIL * len(arms) for case in cases)
    with engine.session() as session, status.bar("cases", "tokens") as report:
        session.measure_recall = recall
        prefix = SharedPrefix(session, Work(report, total))
        for case in cases:
            prefix.fill(case.ids[:-CASE_TAIL])
            question = Question(
                tuple(case.ids[-CASE_TAIL : -case.n_answer]), (tuple(case.ids[-case.n_answer :]),)
            )
            for arm in arms:
                with prefix.arm(arm, costs[arm]):
                    if not values_found(session, question):
                        missed[arm].append(case.name)
                prefix.work.advance(CASE_TAIL)
    return {
        "rows": [
            {
                **arm.row(),
                "hits": len(cases) - len(missed[arm]),
                "total": len(cases),
                "missed": missed[arm],
                **costs[arm].row(),
            }
            for arm in arms
        ]
    }
