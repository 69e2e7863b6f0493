"""Retrieval: does an attention rule still find the answer that dense attention finds.

Answers are teacher-forced: a question is answered if the model's arg-max is right at every token
of the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """Tokens to decode after the document, and those that must follow."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens decoded where the answer is right: its last one is not."""
        return len(self.prompt) + len(self.answer) - 1


def answers(session: "Session", question: Question) -> bool:
    """Whether every token of the answer is the arg-max; the session grows by what was decoded, up
    to the first wrong token."""
    logits = None
    for token in question.prompt:
        logits = session.step(token)
    for i, token in enumerate(question.answer):
        if i:
            logits = session.step(question.answer[i - 1])
        if logits is None or int(np.argmax(logits)) != token:
            return False
    return True


def retrieval(
    engine: "Engine",
    cases: Sequence[Case],
    arms: Sequence[Arm],
    status: Status,
    *,
    recall: bool = False,
) -> dict[str, Any]:
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
                tuple(case.ids[-CASE_TAIL : -case.n_answer]), tuple(case.ids[-case.n_answer :])
            )
            for arm in arms:
                with prefix.arm(arm, costs[arm]):
                    if not answers(session, question):
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
