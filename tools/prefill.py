"""One prefill that several arms go on from, and the progress bar over all of it.

Invariant: the first `n_dense` tokens of the session were processed as a prompt, exactly or routed
as `fill` was told, whatever was decoded after them, so nothing that an arm decoded is ever reused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hga.tools.arms import Arm, Costs, set_arm
from hga.tools.status import Report

if TYPE_CHECKING:
    from hga.runtime.session import Session


class Work:
    """A bar over many stretches of tokens: prefilled and decoded ones count alike."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = max(1, total)
        self._done = 0

    def advance(self, n_tokens: int = 1) -> None:
        """Count tokens; an estimate that proves too small never shows more than all."""
        self._done += n_tokens
        # A full bar is taken off the screen, so it is full only when the caller has ended.
        self._report(min(self._done, self._total - 1), self._total)

    def reach(self, n_tokens: int) -> None:
        """Set the count, where a stretch took fewer or more tokens than planned."""
        self._done = n_tokens
        self.advance(0)


class SharedPrefix:
    """The prefilled beginning of a session's timeline."""

    def __init__(self, session: "Session", work: Work) -> None:
        self.session = session
        self.work = work
        self.n_dense = 0

    def fill(self, ids: Sequence[int], prefill: str | None = None) -> None:
        """Make `ids` the prefix; only what differs from the present one is processed.

        prefill: how (`Session.prefill`); None: as the session does already.
        """
        session = self.session
        keep = min(session.fork_point(ids), self.n_dense)
        if prefill is not None and prefill != session.prefill:
            session.prefill, keep = prefill, 0
        session.truncate(keep)
        self.n_dense = keep
        session.attention = "dense"
        rest = list(ids[keep:])
        self.work.advance(keep)
        if rest:
            reported = 0

            def report(done: int, _: int) -> None:
                nonlocal reported
                self.work.advance(done - reported)
                reported = done

            session.feed(rest, report)
            report(len(rest), len(rest))
        self.n_dense = len(ids)

    @contextmanager
    def arm(self, arm: Arm, costs: Costs) -> Iterator["Session"]:
        """The session at the end of the prefix, attending as `arm` says; what the block decodes
        is added to `costs` and forgotten afterwards."""
        session = self.session
        set_arm(session, arm)
        session.reset_stats()
        yield session
        costs.add(session.stats)
        session.truncate(self.n_dense)
