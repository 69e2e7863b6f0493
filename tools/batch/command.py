"""The command `hga batch`: find the inputs, have them answered, report.

Invariant: every input becomes a line of the journal, done or failed with its reason, or is left
for --resume; what goes wrong with one input does not stop the others.
"""

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

from hga.tools.batch.documents import DocumentError, read_document
from hga.tools.batch.executor import FAILURES, Executor, Job, Outcome, open_local
from hga.tools.batch.inputs import Found, Input, find_inputs
from hga.tools.batch.journal import JOURNAL_NAME, Journal, Record, Settings, content_hash
from hga.tools.batch.outputs import Outputs
from hga.tools.batch.pipeline import Pipeline, Unread
from hga.tools.batch.tally import Tally
from hga.tools.batch.task import Task, load_task
from hga.tools.batch.worker import Answer
from hga.tools.errors import INTERRUPTED, OK, SOME_FAILED, UsageError, message
from hga.tools.folders import expand
from hga.tools.interrupt import Interrupt
from hga.tools.status import Figures, Status


def batch(operands: list[str], values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    if values.output is None:
        raise UsageError("-o OUTDIR is missing: the folder for the outputs and the journal")
    out = expand(values.output)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder, as -o expects", str(out))
    task = load_task(values.task, values.json_schema)
    found = find_inputs(operands, out, hidden=values.hidden)
    for notice in found.notices:
        status.notice(notice)
    outputs = Outputs(out, values.out, json=task.schema is not None)
    if not values.overwrite and not (out / JOURNAL_NAME).exists():
        outputs.refuse_existing(each.name for each in found.inputs)
    journal = Journal.open(out, resume=values.resume, overwrite=values.overwrite)
    with closing(journal):
        for notice in journal.notices:
            status.notice(notice)
        outputs.prepare()
        try:
            with _executor(task, values, status) as executor:
                return _Batch(found, task, values, outputs, journal, executor, status).run()
        finally:
            outputs.tidy()


def _executor(
    task: Task, values: argparse.Namespace, status: Status
) -> AbstractContextManager[Executor]:
    if values.ray is None:
        return open_local(values.model, task, values, status)
    from hga.tools.batch.cluster import open_cluster

    return open_cluster(task, values, status)


@dataclass(frozen=True, slots=True)
class _Read:
    """What reading a file came to: a job (`again` says why it is done once more), an earlier
    answer that stands, or a reason why there is neither."""

    input: Input
    content: str
    job: Job | None = None
    again: str = ""
    kept: bool = False
    reason: str = ""


class _Batch:
    """One run over the inputs."""

    def __init__(
        self,
        found: Found,
        task: Task,
        values: argparse.Namespace,
        outputs: Outputs,
        journal: Journal,
        executor: Executor,
        status: Status,
    ) -> None:
        self._found = found
        self._outputs = outputs
        self._journal = journal
        self._executor = executor
        self._status = status
        self._json = values.json
        self._settings = Settings.of(
            executor.settings()
            | {
                "before": task.before, "after": task.after, "lead": task.lead,
                "schema": task.schema, "predict": values.predict, "chat": not values.no_chat,
                "long": values.long, "out": values.out,
            }
        )  # fmt: skip
        self._tally = Tally(len(found.inputs) + len(found.unreadable))
        self._stop = Interrupt()
        self._begin = time.monotonic()
        self._seen_bytes = 0
        self._total_bytes = sum(map(_weight, found.inputs))

    def run(self) -> int:
        """Answer what is to be answered; returns the exit code."""
        self._journal.begin(self._settings)
        try:
            with self._stop, self._status.board() as show:
                self._answer_all(show)
        except OSError as error:
            # The disk is full, or gone: what was done stays, and nothing more can be.
            self._report("failed")
            raise OSError(error.errno, f"{message(error)} ({self._how_to_resume()})") from error
        except BaseException:
            self._report("failed")
            raise
        if self._stop.requested and self._tally.left:
            self._report("interrupt")
            self._status.say(f"interrupted: {self._how_to_resume()}")
            return INTERRUPTED
        self._report("done")
        return SOME_FAILED if self._tally.failed else OK

    def _answer_all(self, show: Figures) -> None:
        with Pipeline(
            self._found.inputs, self._load, self._outputs, self._journal, self._stop
        ) as pipeline:
            for name, reason in self._found.unreadable:
                self._refused(pipeline, name, "", reason)

            def advance(job: Job, share: float) -> None:
                done = (self._seen_bytes + share * _weight(job.input)) / self._total_bytes
                label = f"{self._position(after=1)} {job.input.name}"
                show(label, min(done, 1.0), self._tally.speed())

            jobs = self._jobs(pipeline)
            for job, outcome in self._executor.run(jobs, advance, self._stop):
                self._settle(pipeline, job, outcome)
            pipeline.flush()
            names = [each.name for each in self._found.inputs]
            pipeline.join([*(name for name, _ in self._found.unreadable), *names])

    def _load(self, each: Input, data: bytes, abandoned: Callable[[], bool]) -> _Read:
        """A file's document; on a thread of the pipeline."""
        content = content_hash(data)
        earlier = self._journal.records.get(each.name)
        again = ""
        if earlier is not None and earlier.done:
            again = self._why_again(earlier, content)
            if not again:
                return _Read(each, content, kept=True)
        try:
            document = read_document(data, each.name, abandoned)
            ids = self._executor.encode(document.text)
        except (DocumentError, *FAILURES) as error:
            return _Read(each, content, reason=message(error))
        text = document.text if ids is None else ""
        job = Job(each, content, document.note, text, ids)
        return _Read(each, content, job, again)

    def _why_again(self, earlier: Record, content: str) -> str:
        """Why an answer does not stand any more; "" where it does."""
        if earlier.content != content:
            return "the file has changed"
        if earlier.settings != self._settings.key:
            before = self._journal.settings.get(earlier.settings, {})
            now = self._settings.values
            names = sorted(name for name in now if before.get(name) != now[name])
            return f"other settings ({', '.join(names)})"
        if earlier.output and not os.path.isfile(self._outputs.folder / earlier.output):
            return "its output is gone"
        return ""

    def _jobs(self, pipeline: Pipeline[_Read]) -> Iterator[Job]:
        """What is to be answered; everything else is settled on the way."""
        for read in pipeline:
            if isinstance(read, Unread):
                self._refused(pipeline, read.input.name, "", read.reason)
                self._seen_bytes += _weight(read.input)
            elif read.job is not None:
                if read.again:
                    self._tally.redone[read.input.name] = read.again
                yield read.job
            else:
                self._seen_bytes += _weight(read.input)
                if read.kept:
                    self._tally.kept += 1
                elif not self._stop.requested:
                    self._refused(pipeline, read.input.name, read.content, read.reason)

    def _refused(
        self, pipeline: Pipeline[_Read], name: str, content: str, reason: str, note: str = ""
    ) -> None:
        record = Record(name, content, self._settings.key, "failed", reason=reason, note=note)
        earlier = self._journal.records.get(name)
        if earlier is not None and earlier.output:
            # It tells of what the file was before.
            (self._outputs.folder / self._outputs.name_of(name)).unlink(missing_ok=True)
        pipeline.store(record)
        self._tally.add(record)
        self._status.detail(f"{self._position()} {name}: failed: {reason}")

    def _settle(self, pipeline: Pipeline[_Read], job: Job, outcome: Outcome) -> None:
        """Store what became of a job."""
        name = job.input.name
        self._seen_bytes += _weight(job.input)
        if isinstance(outcome, Exception):
            self._refused(pipeline, name, job.content, message(outcome), job.note)
            return
        output = self._outputs.name_of(name)
        record = _record(job, outcome, self._settings.key, output)
        pipeline.store(record, outcome.text)
        self._tally.add(record)
        self._status.detail(
            f"{self._position()} {name}: {outcome.prompt_tokens:,} tokens read,"
            f" {outcome.reply_tokens:,} written, {outcome.prefill_s + outcome.decode_s:.1f} s"
        )

    def _position(self, *, after: int = 0) -> str:
        tally = self._tally
        return f"{tally.total - tally.left + after:,}/{tally.total:,}"

    def _how_to_resume(self) -> str:
        done = len(self._tally.done) + self._tally.kept
        return (
            f"{done:,} of {self._tally.total:,} inputs are done; the same command with --resume"
            " goes on"
        )

    def _report(self, stop: str) -> None:
        seconds = time.monotonic() - self._begin
        for line in self._tally.lines(seconds):
            self._status.notice(line)
        if self._tally.done or self._tally.kept:
            joined = self._outputs.joined
            where = self._outputs.folder if joined is None else joined
            self._status.notice(f"outputs in {where}, journal in {self._journal.path}")
        if self._json:
            figures = self._tally.json(seconds, stop)
            sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")
            sys.stdout.flush()


def _weight(each: Input) -> int:
    """The work that a file is likely to be, in bytes: a reply costs too, however short the file."""
    return each.n_bytes + 4096


def _record(job: Job, answer: Answer, settings: str, output: str) -> Record:
    return Record(
        job.input.name,
        job.content,
        settings,
        "done",
        note=job.note,
        output=output,
        text="" if output else answer.text,
        n_parts=answer.n_parts,
        cut=answer.cut,
        prompt_tokens=answer.prompt_tokens,
        reused_tokens=answer.reused_tokens,
        reply_tokens=answer.reply_tokens,
        prefill_s=answer.prefill_s,
        decode_s=answer.decode_s,
    )
