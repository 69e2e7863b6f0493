"""A conversation over one session: turns become token ids, replies become text.

Two id lists describe the past: `_canonical`, what the chat template renders for it, and `_actual`,
what the model saw, which keeps the sampled tokens of each reply where encoding its text again
would give others. Invariant: a new turn feeds `_actual` plus what the template adds to
`_canonical`; where the template rewrites the past, its rendering alone counts. The session then
keeps the longest common prefix, so the pages of earlier turns are never computed twice.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from hga.runtime.grammar import ConstrainedSampler
from hga.runtime.long_text import exceeds
from hga.runtime.sampler import Sampler, SamplerOptions
from hga.tools import conversation_state as states
from hga.tools.errors import UsageError
from hga.tools.interrupt import Interrupt
from hga.tools.status import Report
from hga.tools.turns import Reply, Turn

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.grammar import Grammar
    from hga.runtime.session import Session
    from hga.tools.trace import Trace

RAW_PREDICT = 256
"""Longest reply in tokens without a chat template, where nothing tells the model to stop."""


class _PrefillStopped(Exception):
    """The user interrupted before the first token of the reply."""


class Conversation:
    """Turns of one user with one model. Not for several threads."""

    def __init__(
        self,
        engine: "Engine",
        session: "Session",
        sampling: SamplerOptions,
        *,
        chat: bool,
        predict: int | None = None,
        system: str | None = None,
        grammar: "Grammar | None" = None,
    ) -> None:
        """`predict` is the longest reply in tokens, None: what the context holds; `grammar` what
        every reply is held to. Raises
        UsageError where chat or a system prompt needs a template that the model lacks."""
        if chat and engine.template is None:
            raise UsageError("the model has no chat template")
        if system is not None and not chat:
            raise UsageError("a system prompt needs a model with a chat template")
        self.session = session
        self.chat = chat
        self.predict = predict
        # Told of the prompt and every token of a turn.
        self.trace: Trace | None = None
        self._grammar = grammar
        self._engine = engine
        self._system = system
        self._turns: list[Turn] = []
        self._canonical: list[int] = []
        self._actual: list[int] = []
        self._epoch = 0
        self.sampling = sampling

    @property
    def n_turns(self) -> int:
        """Turns answered so far."""
        return len(self._turns)

    @property
    def n_tokens(self) -> int:
        """Tokens in the session's timeline."""
        return len(self.session.tokens)

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if not self.chat:
            raise UsageError("a system prompt needs a model with a chat template")
        self._system = text

    @property
    def constrained(self) -> bool:
        """Whether replies are held to a schema."""
        return self._grammar is not None

    @property
    def sampling(self) -> SamplerOptions:
        """How tokens are chosen."""
        return self._sampler.options

    @sampling.setter
    def sampling(self, options: SamplerOptions) -> None:
        self._sampler = Sampler(options)

    @property
    def seed(self) -> int:
        """The seed in use, drawn at random where none was given."""
        return self._sampler.seed

    def ask(
        self,
        text: str,
        write: Callable[[str], None],
        *,
        report: Report | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """Add a turn: `write` gets the reply's text as it comes, `report` the prefill.

        Raises UsageError, with the conversation unchanged, where the context cannot hold the turn.
        An interrupt ends the reply and keeps what there is of it; before the first token it drops
        the turn (`answered` is false).
        """
        canonical, actual = self._extended(text)
        reply = self._answer(actual, write, report, interrupt or Interrupt())
        if not reply.answered:
            return reply
        if canonical is None:
            # The template rewrote the past: lengths noted before do not hold any more.
            self._epoch += 1
            canonical, self._canonical, self._actual = actual, [], []
        self._turns.append(
            Turn(text, reply.text, len(self._canonical), len(self._actual), self._epoch)
        )
        self._actual = actual + reply.tokens
        self._canonical = (
            canonical + self._engine.tokenizer.encode(reply.text) if self.chat else self._actual
        )
        return reply

    def regenerate(
        self,
        write: Callable[[str], None],
        *,
        report: Report | None = None,
        interrupt: Interrupt | None = None,
    ) -> Reply:
        """Answer the last turn again with the next random numbers; raises UsageError without
        one. If nothing could be answered, the turn is gone."""
        # The session keeps the prompt's tokens: only the last one is run again.
        text = self._forget_turn()
        return self.ask(text, write, report=report, interrupt=interrupt)

    def undo(self) -> str:
        """Forget the last turn and return its question; raises UsageError without one."""
        text = self._forget_turn()
        if self._actual or not self._turns:
            self.session.truncate(self.session.fork_point(self._actual))
        return text

    def clear(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._turns.clear()
        self._canonical, self._actual = [], []
        self._epoch += 1
        self.session.truncate(0)

    def note(self) -> str:
        """All that `resume` needs besides the session's tokens."""
        tokens, n = self.session.tokens, len(self._actual)
        joined = tokens[:n] == self._actual
        state = states.State(
            self.chat, self._system, self._epoch, [states.SavedTurn.of(t) for t in self._turns],
            self._canonical if self.chat else None, n, None if joined else self._actual,
            self._sampler.seed, *self._sampler.state,
        )  # fmt: skip
        return states.encode(state)

    def resume(self, note: str) -> None:
        """Go on where `note` was taken, over the same session; a system prompt or a seed of this
        conversation's own wins. Raises SessionError, and UsageError where one of the two is a
        chat and the other is not."""
        state = states.decode(note, len(self.session.tokens), self._engine.plan.vocab_size)
        if state.chat != self.chat:
            raise UsageError(
                f"the session was begun with{'' if state.chat else 'out'} the chat template: "
                f"{'leave out' if state.chat else 'give'} --no-chat"
            )
        tokens = self.session.tokens[: state.n_actual]
        self._actual = tokens if state.actual is None else state.actual
        self._canonical = self._actual if state.canonical is None else state.canonical
        self._turns = [turn.turn() for turn in state.turns]
        self._epoch = state.epoch
        if self._system is None:
            self._system = state.system
        if self.sampling.seed in (None, state.seed):
            self.sampling = replace(self.sampling, seed=state.seed)
            self._sampler.state = state.random_state, state.random_increment

    def over(self, session: "Session") -> "Conversation":
        """An empty conversation with these settings over another session."""
        return Conversation(
            self._engine, session, self.sampling, chat=self.chat, predict=self.predict,
            grammar=self._grammar,
        )  # fmt: skip

    def count(self, text: str) -> int:
        """Tokens that a turn with this text would add to the context."""
        return len(self._extended(text)[1]) - len(self._actual)

    def _forget_turn(self) -> str:
        if not self._turns:
            raise UsageError("there is no turn yet")
        turn = self._turns.pop()
        if turn.epoch == self._epoch:
            self._canonical = self._canonical[: turn.n_canonical]
            self._actual = self._actual[: turn.n_actual]
        else:
            self._canonical, self._actual = [], []
        return turn.user

    def _extended(self, text: str) -> tuple[list[int] | None, list[int]]:
        """(canonical ids or None where the template rewrote the past, ids to run) of the past
        and a new turn."""
        tokenizer = self._engine.tokenizer
        if exceeds(tokenizer, text, self._engine.ctx):
            raise UsageError(
                f"the prompt of {len(text):,} characters makes more tokens than the "
                f"{self._engine.ctx:,} that the context holds with the reply: shorten it, or raise "
                "--ctx"
            )
        if not self.chat:
            start = [] if self._actual or tokenizer.bos is None else [tokenizer.bos]
            ids = self._actual + start + tokenizer.encode(text)
            return ids, ids
        template = self._engine.template
        assert template is not None, "chat was refused without a template"
        canonical = template.render_ids(self._messages(text), tokenizer, add_generation_prompt=True)
        n = len(self._canonical)
        if canonical[:n] == self._canonical:
            return canonical, self._actual + canonical[n:]
        return None, canonical

    def _messages(self, text: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self._system}] if self._system else []
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.reply})
        messages.append({"role": "user", "content": text})
        return messages

    def _answer(
        self, ids: list[int], write: Callable[[str], None], report: Report | None, stop: Interrupt
    ) -> Reply:
        if not ids:
            raise UsageError("the prompt is empty")
        ctx = self._engine.ctx
        if len(ids) >= ctx:
            raise UsageError(
                f"the prompt makes {len(ids):,} tokens and the context holds {ctx:,} with the "
                "reply: shorten it, or raise --ctx"
            )
        # The last token always runs: its logits choose the reply's first token.
        reused = min(self.session.fork_point(ids), len(ids) - 1)
        reply = Reply(prompt_tokens=len(ids), reused_tokens=reused)
        with stop:
            begin = time.perf_counter()
            self.session.reset_stats()
            self.session.truncate(reused)
            try:
                self.session.feed(ids[reused:], _stoppable(report, stop))
            except _PrefillStopped:
                reply.stop, reply.answered = "interrupt", False
                return reply
            reply.prefill_s = time.perf_counter() - begin
            if self.trace is not None:
                self.trace.begin()
                self.trace.note("prompt", self.session)
            self._generate(reply, ctx - len(ids), write, stop)
        return reply

    def _generate(
        self, reply: Reply, room: int, write: Callable[[str], None], stop: Interrupt
    ) -> None:
        tokenizer = self._engine.tokenizer
        predict = self.predict
        limit = room if predict is None else min(predict, room)
        decoder = tokenizer.decoder()
        pieces: list[str] = []

        def emit(piece: str) -> None:
            if piece:
                pieces.append(piece)
                write(piece)

        sampler: Sampler | ConstrainedSampler = self._sampler
        if self._grammar is not None:
            sampler = ConstrainedSampler(self._sampler, self._grammar.start())
        begin = time.perf_counter()
        # Nothing but the finished generator knows whether the model or the limit ended it.
        finished = True
        with closing(_generator(self.session.generate(sampler, limit, tokenizer.eos))) as run:
            for token in run:
                if self.trace is not None:
                    self.trace.note("token", self.session)
                reply.tokens.append(token)
                emit(decoder.push(token))
                if stop.requested:
                    finished = False
                    break
        reply.decode_s = time.perf_counter() - begin
        if self.trace is not None:
            self.trace.end(self.session)
        emit(decoder.flush())
        reply.text = "".join(pieces)
        if isinstance(sampler, ConstrainedSampler):
            reply.unfinished_json = not sampler.constraint.complete
        if not finished:
            reply.stop = "interrupt"
        elif self.session.stop_reason != "eos":
            reply.stop = "length"
            reply.context_full = predict is None or predict > limit


def _generator(tokens: Iterator[int]) -> Generator[int, None, None]:
    """The same tokens as a generator that `closing` can close."""
    yield from tokens


def _stoppable(report: Report | None, stop: Interrupt) -> Report:
    def progress(done: int, total: int) -> None:
        if stop.requested:
            raise _PrefillStopped
        if report is not None:
            report(done, total)

    return progress
