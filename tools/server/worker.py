"""ModelWorker: the one thread that runs the model, and the queue before it.

A job is answered whole before the next begins, in the order of arrival. Its events reach the
asyncio loop through the callback of the job; a job that was cancelled stops within a block of its
prompt, or a token of its reply. Invariant: every job that was accepted ends in exactly one event
`Done` or `ApiError`, a cancelled one too.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hga.runtime.grammar import ConstrainedSampler
from hga.runtime.sampler import Sampler
from hga.tools.errors import message
from hga.tools.server.counts import Counts
from hga.tools.server.problems import ApiError
from hga.tools.server.stops import StopFilter
from hga.tools.server.timelines import Timelines
from hga.tools.server.wire import Wanted

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session


Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a reply ended and what it cost, in tokens and seconds."""

    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    reply_tokens: int
    prefill_s: float
    decode_s: float


Event = str | Done | ApiError
"""A piece of the reply's text, or its end."""


@dataclass(slots=True, eq=False)
class Job:
    """One reply to be made. `emit` is called from the worker's thread; `until`: a time of
    time.monotonic after which it is given up."""

    wanted: Wanted
    emit: Callable[[Event], None]
    until: float
    cancelled: threading.Event = field(default_factory=threading.Event)

    def given_up(self) -> ApiError | None:
        """Why nobody waits for the reply any more, if nobody does."""
        if time.monotonic() >= self.until:
            return ApiError(
                504, "the reply took longer than --timeout allows", kind="timeout", code="timeout"
            )
        if self.cancelled.is_set():
            return ApiError(499, "the client has gone", kind="cancelled", code="cancelled")
        return None

    def check(self) -> None:
        """Raise what `given_up` says."""
        if (error := self.given_up()) is not None:
            raise error


class ModelWorker:
    """Started by the constructor, stopped by `close`; the engine stays the caller's."""

    def __init__(self, engine: "Engine", most_waiting: int) -> None:
        self._engine, self._most = engine, most_waiting
        self.counts = Counts()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="hga-model", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue that somebody waits for."""
        with self._wake:
            return sum(job.given_up() is None for job in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a reply is being made."""
        return self._running is not None

    def submit(self, job: Job) -> None:
        """Queue a job; ApiError where the queue is full or the server is stopping."""
        with self._wake:
            self._require_room()
            self._waiting.append(job)
            self._wake.notify()

    def require_room(self) -> None:
        """Raise what `submit` would."""
        with self._wake:
            self._require_room()

    def _require_room(self) -> None:
        if self._closed:
            raise ApiError(503, "the server is stopping", kind="server_error")
        # Whoever has gone keeps no place.
        for job in list(self._waiting):
            if (error := job.given_up()) is not None:
                self._waiting.remove(job)
                self._tell(job, error)
        if len(self._waiting) >= self._most:
            raise ApiError(
                429,
                f"{len(self._waiting)} requests are waiting already: try again later",
                kind="rate_limit_error",
                code="queue_full",
            )

    def close(self) -> None:
        """Cancel everything, wait for the thread to end."""
        with self._wake:
            self._closed = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.cancelled.set()
            self._wake.notify()
        self._thread.join()

    def _serve(self) -> None:
        with closing(Timelines(self._engine)) as timelines:
            while True:
                with self._wake:
                    while not self._waiting and not self._closed:
                        self._wake.wait()
                    if not self._waiting:
                        return
                    job = self._running = self._waiting.popleft()
                outcome = self._outcome(job, timelines)
                self._running = None
                self._tell(job, outcome)

    def _tell(self, job: Job, outcome: Done | ApiError) -> None:
        self.counts.add(outcome)
        if isinstance(outcome, ApiError):
            outcome.counted = True
        job.emit(outcome)

    def _outcome(self, job: Job, timelines: Timelines) -> Done | ApiError:
        try:
            job.check()
            return self._answer(job, timelines)
        except ApiError as error:
            return error
        except ValueError as error:
            # A schema that admits nothing more, logits that cannot be sampled from.
            return ApiError(500, message(error), kind="server_error")
        except Exception as error:
            # One request's trouble must not end the thread that serves all others.
            timelines.close()
            return ApiError(500, message(error), kind="server_error")

    def _answer(self, job: Job, timelines: Timelines) -> Done:
        wanted, begin = job.wanted, time.perf_counter()
        room = self._engine.ctx - len(wanted.ids)
        most = room if wanted.most is None else min(wanted.most, room)
        session = timelines.best(wanted.ids, most)
        cached = len(session.tokens)

        def progress(done: int, total: int) -> None:
            job.check()

        session.feed(wanted.ids[cached:], progress)
        prefill_s, begin = time.perf_counter() - begin, time.perf_counter()
        n, finish = self._reply(job, session, most)
        return Done(finish, len(wanted.ids), cached, n, prefill_s, time.perf_counter() - begin)

    def _reply(self, job: Job, session: "Session", most: int) -> tuple[int, Finish]:
        wanted, tokenizer = job.wanted, self._engine.tokenizer
        free = Sampler(wanted.sampling)
        sampler: Sampler | ConstrainedSampler = free
        if wanted.grammar is not None:
            sampler = ConstrainedSampler(free, wanted.grammar.start())
        decoder, shown, n = tokenizer.decoder(), StopFilter(wanted.stops), 0
        for token in session.generate(sampler, most, tokenizer.eos):
            n += 1
            self._emit(job, shown.push(decoder.push(token)))
            if shown.stopped:
                return n, "stop"
            job.check()
        self._emit(job, shown.push(decoder.flush()))
        if shown.stopped:
            return n, "stop"
        self._emit(job, shown.flush())
        return n, "stop" if session.stop_reason == "eos" else "length"

    @staticmethod
    def _emit(job: Job, piece: str) -> None:
        if piece:
            job.emit(piece)
