"""Answers from workers on an existing Ray cluster, one actor each with the model open.

Invariant: this process alone reads files, writes outputs and keeps the journal, so an input is
settled once, whatever becomes of workers. A job whose worker dies is handed to another one; after
three deaths it is a failure. A worker whose answers would differ is not used.
"""

import argparse
import socket
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Final

from hga.tools.batch.executor import (
    FAILURES,
    Advance,
    Job,
    LocalExecutor,
    Outcome,
    open_local,
)
from hga.tools.batch.task import Task
from hga.tools.batch.worker import Answer, AnswerError, TokenIds
from hga.tools.errors import UsageError, message
from hga.tools.folders import expand
from hga.tools.interrupt import Interrupt
from hga.tools.status import Status

_POLL_S: Final = 0.2
_MOST_DEATHS: Final = 3
_CONNECT_S: Final = 10.0


class ClusterError(RuntimeError):
    """The cluster cannot be reached, or no worker on it can open the model."""


class RemoteWorker:
    """The actor: an engine on some node."""

    def __init__(self, model: str | None, task: Task, values: argparse.Namespace) -> None:
        self._given = (model, task, values)
        self._kept_open = ExitStack()
        self._executor: LocalExecutor | None = None

    def open(self) -> dict[str, Any] | str:
        """Open the model: what shapes this worker's answers, or why it cannot be opened."""
        try:
            opened = open_local(*self._given, Status(quiet=True))
            self._executor = self._kept_open.enter_context(opened)
            return self._executor.settings()
        except Exception as error:
            return message(error)

    def answer(self, text: str) -> Answer | str:
        """The answer to a document, or why there is none."""
        assert self._executor is not None, "open comes first"
        try:
            return self._executor.answer_text(text)
        except FAILURES as error:
            return message(error)


class ClusterExecutor:
    """Hands jobs to workers; an Executor."""

    def __init__(self, ray: Any, workers: list[Any], status: Status) -> None:
        self._ray = ray
        self._status = status
        self._idle: deque[Any] = deque()
        # Workers that open the model, by what tells that they have.
        self._opening = {worker.open.remote(): worker for worker in workers}
        self._deaths: Counter[Any] = Counter()
        self._settings: dict[str, Any] | None = None
        self._reason = ""
        # Jobs that are being answered, and those whose worker died.
        self._running: dict[Any, tuple[Any, Job]] = {}
        self._again: deque[Job] = deque()

    def settings(self) -> dict[str, Any]:
        """See Executor; waits for the first worker. Raises ClusterError where none can work."""
        while self._settings is None:
            self._require_workers()
            for reference in self._ready():
                self._take_opened(reference)
        return self._settings

    def encode(self, text: str) -> TokenIds | None:
        """See Executor: the workers do."""
        return None

    def run(
        self, jobs: Iterator[Job], advance: Advance, stop: Interrupt
    ) -> Iterator[tuple[Job, Outcome]]:
        """See Executor."""
        while not stop.requested:
            while self._idle and (job := self._next(jobs)) is not None:
                worker = self._idle.popleft()
                self._running[worker.answer.remote(job.text)] = worker, job
                advance(job, 0.0)
            if self._idle and not self._running:
                return
            self._require_workers()
            for reference in self._ready():
                if reference in self._opening:
                    self._take_opened(reference)
                else:
                    yield from self._take_answer(reference)

    def _next(self, jobs: Iterator[Job]) -> Job | None:
        return self._again.popleft() if self._again else next(jobs, None)

    def _ready(self) -> list[Any]:
        """References of which something has come, after a moment at most."""
        waited = [*self._running, *self._opening]
        ready: list[Any] = self._ray.wait(waited, timeout=_POLL_S)[0]
        return ready

    def _take_answer(self, reference: Any) -> Iterator[tuple[Job, Outcome]]:
        worker, job = self._running.pop(reference)
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            # The cluster starts it again: it is asked to open the model once more.
            self._opening[worker.open.remote()] = worker
            self._deaths[job.input.name] += 1
            if self._deaths[job.input.name] == _MOST_DEATHS:
                reason = f"its worker died {_MOST_DEATHS} times: {_first_line(error)}"
                yield job, AnswerError(reason)
            else:
                self._again.append(job)
                self._status.notice(f"{job.input.name}: its worker died, another one takes it")
        else:
            self._idle.append(worker)
            yield job, AnswerError(found) if isinstance(found, str) else found

    def _take_opened(self, reference: Any) -> None:
        """Take a worker that has opened the model, or try one again that died over it."""
        worker = self._opening.pop(reference)
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._reason = _first_line(error)
            self._deaths[worker] += 1
            if self._deaths[worker] < _MOST_DEATHS:
                self._opening[worker.open.remote()] = worker
            return
        if isinstance(found, str):
            self._reason = found
            return
        if self._settings is None:
            self._settings = found
        if found == self._settings:
            self._deaths[worker] = 0
            self._idle.append(worker)
            return
        names = sorted(name for name in found if found[name] != self._settings.get(name))
        self._reason = f"its {', '.join(names)} differ from those of the first"
        self._status.notice(f"a worker is not used: {self._reason}")

    def _require_workers(self) -> None:
        if not (self._opening or self._idle or self._running):
            raise ClusterError(f"no worker of the cluster can answer: {self._reason}")


@contextmanager
def open_cluster(
    task: Task, values: argparse.Namespace, status: Status
) -> Iterator[ClusterExecutor]:
    """Connect to the cluster at --ray and start workers; ends them when the block does. Raises
    UsageError without Ray, ClusterError where no cluster answers."""
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise UsageError("--ray needs the package ray: pip install 'hga[cluster]'") from None
    _require_answer(values.ray)
    try:
        ray.init(address=values.ray, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterError(f"--ray {values.ray}: no cluster: {_first_line(error)}") from None
    try:
        n_cpus = values.threads or 1
        nodes = [node for node in ray.nodes() if node["Resources"].get("CPU", 0) >= n_cpus]
        n_workers = values.ray_workers or len(nodes)
        if not nodes:
            raise ClusterError(f"--ray {values.ray}: no node has {n_cpus} free processors (-t)")
        status.notice(f"opening the model on {n_workers} workers, {len(nodes)} nodes")
        # Spread, so that workers share a node's memory bandwidth only where nodes run out.
        actor = ray.remote(
            num_cpus=n_cpus, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )(RemoteWorker)
        model = values.model
        if model is not None and expand(model).exists():
            model = str(expand(model).resolve())
        workers = [actor.remote(model, task, values) for _ in range(n_workers)]
        try:
            yield ClusterExecutor(ray, workers, status)
        finally:
            for worker in workers:
                ray.kill(worker)
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """ClusterError where nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        # `auto` and the like, which Ray looks up.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClusterError(f"--ray {address}: no cluster: {reason}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
