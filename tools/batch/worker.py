"""Worker: one model's answers to documents, one after another.

Invariant: an answer depends on the document, the task and the settings alone, not on what was
answered before: the instructions' keys and values, which all documents share, are always the first
call of the timeline, and every reply begins with the same random numbers. So a batch that was
killed and resumed gives what an uninterrupted one gives.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hga.runtime.grammar import ConstrainedSampler
from hga.runtime.sampler import Sampler, SamplerOptions
from hga.tools.batch.task import Task
from hga.tools.errors import UsageError
from hga.tools.interrupt import Interrupt
from hga.tools.prompts import Prompter

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

_LEAST_ROOM = 64
_PIECE_CHARS = 1 << 20


class AnswerError(ValueError):
    """A document cannot be answered, or its answer is of no use; the message is the reason."""


class Stopped(Exception):
    """The user interrupted an answer."""


@dataclass(slots=True)
class Answer:
    """What a document brought and what it cost. `n_parts` above 1: it was longer than the context
    and answered in parts, which were then merged. `cut`: the reply reached its limit."""

    text: str = ""
    n_parts: int = 1
    cut: bool = False
    document_tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reply_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Frame:
    """Tokens before and after a document."""

    prefix: list[int]
    suffix: list[int]


TokenIds = NDArray[np.int32]
Advance = Callable[[float], None]
"""Called with the share of a document that is done, 0 to 1."""


class Worker:
    """Answers documents with one engine; close it to free its session."""

    def __init__(
        self,
        engine: "Engine",
        task: Task,
        sampling: SamplerOptions,
        *,
        predict: int,
        chat: bool,
        reduce: bool,
    ) -> None:
        """predict: longest reply in tokens; chat: use the chat template, where there is one;
        reduce: answer documents longer than the context in parts. Raises UsageError where the
        context leaves no room for a document, GrammarError for a bad schema."""
        self._engine = engine
        self.sampling = sampling
        self._predict = predict
        self._reduce = reduce
        schema = task.schema
        self._grammar = None if schema is None else engine.grammars.from_json_schema(schema)
        prompter = Prompter(engine, chat=chat)
        self._once = _frame(prompter, task)
        self._merge = _frame(prompter, task.merging())
        # The room for a document, and the room for answers that are merged.
        room = engine.ctx - predict
        self._room = room - len(self._once.prefix) - len(self._once.suffix)
        self._merge_room = room - len(self._merge.prefix) - len(self._merge.suffix)
        if min(self._room, self._merge_room) < _LEAST_ROOM:
            raise UsageError(
                f"a context of {engine.ctx:,} tokens leaves {self._room:,} for a document, beside"
                f" the instructions and a reply of {predict:,}: raise --ctx or lower -n"
            )
        self._session: Session = engine.session()
        self._shared: list[int] = []

    def encode(self, text: str) -> TokenIds:
        """The tokens of a document, for `answer`; may be called from another thread."""
        encode = self._engine.tokenizer.encode
        return np.concatenate([np.array(encode(piece), np.int32) for piece in _pieces(text)])

    def answer(
        self,
        ids: TokenIds,
        advance: Advance = lambda share: None,
        stop: Interrupt | None = None,
    ) -> Answer:
        """Answer a document. Raises AnswerError, and Stopped after an interrupt."""
        total, stop = Answer(document_tokens=len(ids)), stop or Interrupt()
        if len(ids) <= self._room:
            self._reply(self._once, ids, total, advance, stop)
            return total
        if not self._reduce:
            raise AnswerError(
                f"{len(ids):,} tokens, and the context of {self._engine.ctx:,} leaves"
                f" {self._room:,} for a document (--ctx raises it, --long reduce answers in parts)"
            )
        parts = self._cut(ids)
        total.n_parts = len(parts)
        texts = []
        for i, part in enumerate(parts):
            self._reply(self._once, part, total, _share(advance, i, len(parts) + 1), stop)
            texts.append(total.text)
        self._merged(texts, total, _share(advance, len(parts), len(parts) + 1), stop)
        return total

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def _merged(self, texts: list[str], total: Answer, advance: Advance, stop: Interrupt) -> None:
        """Merge answers, as many at a time as fit, until one is left."""
        while len(texts) > 1:
            merged: list[str] = []
            group: TokenIds = np.zeros(0, np.int32)
            n_grouped = 0
            for number, text in enumerate(texts, 1):
                ids = self.encode(f"Part {number}:\n{text.strip()}\n\n")
                if len(group) and len(group) + len(ids) > self._merge_room:
                    if n_grouped == 1:
                        raise AnswerError(
                            f"answers of {len(ids):,} tokens to its {total.n_parts} parts cannot"
                            f" be merged in a context of {self._engine.ctx:,}: raise --ctx or"
                            " lower -n"
                        )
                    self._reply(self._merge, group, total, advance, stop)
                    merged.append(total.text)
                    group, n_grouped = group[:0], 0
                group = np.concatenate([group, ids])
                n_grouped += 1
            self._reply(self._merge, group, total, advance, stop)
            texts = [*merged, total.text]

    def _cut(self, ids: TokenIds) -> list[TokenIds]:
        """A document as parts that fit, of about one size, cut at line ends where there are any
        in the last quarter."""
        parts: list[TokenIds] = []
        first = 0
        while (left := len(ids) - first) > self._room:
            # Equal shares of what is left, so that the last part is no mere rest.
            share = -(-left // -(-left // self._room))
            end = self._line_end(ids, first, first + share)
            parts.append(ids[first:end])
            first = end
        return [*parts, ids[first:]]

    def _line_end(self, ids: TokenIds, first: int, end: int) -> int:
        piece = self._engine.tokenizer.piece
        for at in range(end, end - (end - first) // 4, -1):
            if b"\n" in piece(int(ids[at - 1])):
                return at
        return end

    def _reply(
        self, frame: _Frame, ids: TokenIds, total: Answer, advance: Advance, stop: Interrupt
    ) -> None:
        """One reply; its text and its cost go into `total`."""
        session, begin = self._session, time.perf_counter()
        total.reused_tokens += self._share_prefix(frame.prefix)
        rest = [*ids.tolist(), *frame.suffix]
        total.prompt_tokens += len(frame.prefix) + len(rest)
        # A decoded token takes about as long as ten prefilled ones.
        work = len(rest) + 10 * self._predict

        def progress(done: int, _: int) -> None:
            if stop.requested:
                raise Stopped
            advance(done / work)

        session.feed(rest, progress)
        fed = time.perf_counter()
        total.prefill_s += fed - begin
        sampler = Sampler(self.sampling)
        constraint = self._grammar.start() if self._grammar is not None else None
        chooser = sampler if constraint is None else ConstrainedSampler(sampler, constraint)
        tokenizer = self._engine.tokenizer
        decoder, n = tokenizer.decoder(), 0
        pieces: list[str] = []
        run = (token for token in session.generate(chooser, self._predict, tokenizer.eos))
        with closing(run):
            for n, token in enumerate(run, 1):
                pieces.append(decoder.push(token))
                progress(len(rest) + 10 * n, 0)
        total.text = "".join([*pieces, decoder.flush()])
        total.decode_s += time.perf_counter() - fed
        total.reply_tokens += n
        total.cut = total.cut or session.stop_reason != "eos"
        if constraint is not None and not constraint.complete:
            raise AnswerError(
                f"the reply reached {self._predict:,} tokens before its JSON was complete (-n"
                " allows more)"
            )
        if not total.text.strip():
            raise AnswerError("the model gave no text")

    def _share_prefix(self, prefix: list[int]) -> int:
        """Make the timeline the prefix; how many tokens of it were there already."""
        session = self._session
        if self._shared == prefix:
            session.truncate(len(prefix))
            return len(prefix)
        # From the first token on, so that its calls are always cut alike.
        session.truncate(0)
        self._shared = []
        if prefix:
            session.feed(prefix)
        self._shared = prefix
        return 0


def _frame(prompter: Prompter, task: Task) -> _Frame:
    return _Frame(prompter.opening(task.before), prompter.question(task.after, "", task.lead))


def _pieces(text: str) -> Iterator[str]:
    """Stretches of a text, cut between paragraphs: encoding takes a hundred times the memory of
    what it encodes."""
    first = 0
    while len(text) - first > _PIECE_CHARS:
        end = text.rfind("\n\n", first, first + _PIECE_CHARS) + 2
        # Where there are no paragraphs, a line, or a space, or anywhere.
        for mark in ("\n", " "):
            end = end if end > first + 1 else text.rfind(mark, first, first + _PIECE_CHARS) + 1
        end = end if end > first else first + _PIECE_CHARS
        yield text[first:end]
        first = end
    yield text[first:]


def _share(advance: Advance, part: int, n_parts: int) -> Advance:
    """The share of the whole at a share of one part."""
    return lambda share: advance((part + share) / n_parts)
