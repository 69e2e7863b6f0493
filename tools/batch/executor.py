"""What answers the documents of a batch: an engine in this process, or workers of a cluster."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hga.runtime.grammar import GrammarError
from hga.runtime.sampler import SamplerError
from hga.runtime.tokenizer_spec import TokenizerError
from hga.tools.batch.inputs import Input
from hga.tools.batch.task import Task
from hga.tools.batch.worker import Answer, AnswerError, Stopped, TokenIds, Worker
from hga.tools.interrupt import Interrupt
from hga.tools.run import engine_options, open_engine, sampling_from
from hga.tools.status import Status

if TYPE_CHECKING:
    from hga.runtime.engine import Engine

FAILURES = (AnswerError, GrammarError, SamplerError, TokenizerError, MemoryError)
"""What may go wrong with one document and leaves the others as they are."""


@dataclass(frozen=True, slots=True)
class Job:
    """A document to answer: its text, or its tokens where the executor made them ahead."""

    input: Input
    content: str
    note: str
    text: str
    ids: TokenIds | None


Outcome = Answer | Exception
Advance = Callable[[Job, float], None]


class Executor(Protocol):
    """Answers jobs."""

    def settings(self) -> dict[str, Any]:
        """What shapes answers, of the model, its engine and how tokens are chosen."""
        ...

    def encode(self, text: str) -> TokenIds | None:
        """The tokens of a document, None where a worker makes them later. On any thread; raises
        one of FAILURES."""
        ...

    def run(
        self, jobs: Iterator[Job], advance: Advance, stop: Interrupt
    ) -> Iterator[tuple[Job, Outcome]]:
        """Answer jobs, in any order; the outcome may be one of FAILURES. Ends after an interrupt,
        with what was being answered left."""
        ...


class LocalExecutor:
    """The engine of this process."""

    def __init__(self, engine: "Engine", worker: Worker) -> None:
        self._engine = engine
        self._worker = worker

    def settings(self) -> dict[str, Any]:
        """See Executor."""
        return worker_settings(self._engine, self._worker)

    def encode(self, text: str) -> TokenIds | None:
        """See Executor."""
        return self._worker.encode(text)

    def answer_text(self, text: str) -> Answer:
        """The answer to one document."""
        return self._worker.answer(self._worker.encode(text))

    def run(
        self, jobs: Iterator[Job], advance: Advance, stop: Interrupt
    ) -> Iterator[tuple[Job, Outcome]]:
        """See Executor."""
        for job in jobs:
            try:
                yield job, self._answer(job, advance, stop)
            except Stopped:
                return

    def _answer(self, job: Job, advance: Advance, stop: Interrupt) -> Outcome:
        assert job.ids is not None, "tokens are made ahead"
        try:
            return self._worker.answer(job.ids, lambda share: advance(job, share), stop)
        except FAILURES as error:
            return error


@contextmanager
def open_local(
    model: str | None, task: Task, values: argparse.Namespace, status: Status
) -> Iterator[LocalExecutor]:
    """Open the model in this process."""
    with (
        open_engine(model, engine_options(values), values, status) as engine,
        closing(make_worker(engine, task, values)) as worker,
    ):
        if engine.template is None and not values.no_chat:
            status.notice("base model without a chat template: it continues plain text")
        yield LocalExecutor(engine, worker)


def make_worker(engine: "Engine", task: Task, values: argparse.Namespace) -> Worker:
    """A worker as the flags ask for it."""
    return Worker(
        engine,
        task,
        sampling_from(values, engine.generation),
        predict=values.predict,
        chat=not values.no_chat,
        reduce=values.long == "reduce",
    )


def worker_settings(engine: "Engine", worker: Worker) -> dict[str, Any]:
    """What of an engine and its worker shapes answers."""
    options = engine.options
    return {
        "model": engine.model.digest,
        "ctx": engine.ctx,
        "attention": options.attention,
        "budget": options.budget,
        "prefill": options.prefill,
        "sketch_bits": options.sketch_bits,
        "kv_type": options.kv_type,
        **asdict(worker.sampling),
    }
