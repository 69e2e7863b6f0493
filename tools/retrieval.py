"""Retrieval cases: does an attention rule still find the answer that dense attention finds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hga.tools.losses import Arm, set_arm
from hga.tools.status import Status
from hga.tools.token_files import CASE_TAIL, Case

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session


def retrieval(
    engine: "Engine", cases: Sequence[Case], arms: Sequence[Arm], status: Status
) -> dict[str, object]:
    """Each case prefilled densely up to its last 64 tokens, those decoded through each arm; a
    hit has the right arg-max at every answer token."""
    missed: dict[Arm, list[str]] = {arm: [] for arm in arms}
    with engine.session() as session, status.bar("cases", "steps") as report:
        for number, case in enumerate(cases):
            prefix = len(case.ids) - CASE_TAIL
            session.truncate(0)
            session.attention = "dense"
            session.feed(case.ids[:prefix], None)
            for arm in arms:
                session.truncate(prefix)
                set_arm(session, arm)
                if not _answers(session, case):
                    missed[arm].append(case.name)
            report(number + 1, len(cases))
    return {
        "rows": [
            {
                "attention": arm.attention,
                "budget": arm.budget,
                "hits": len(cases) - len(missed[arm]),
                "total": len(cases),
                "missed": missed[arm],
            }
            for arm in arms
        ]
    }


def _answers(session: "Session", case: Case) -> bool:
    begin = len(case.ids) - case.n_answer
    for position in range(len(case.ids) - CASE_TAIL, len(case.ids) - 1):
        logits = session.step(case.ids[position])
        following = position + 1
        if following >= begin and int(np.argmax(logits)) != case.ids[following]:
            return False
    return True
