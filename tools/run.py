"""`hga run`: one answer (-p, -f), an answer per line of standard input, or the REPL.

Generated text is all that standard output gets, plus the JSON object where --json asks for it.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hga.kvstore.errors import PagesError
from hga.runtime.sampler import SamplerError, SamplerOptions, defaults
from hga.tools.conversation import RAW_PREDICT, Conversation
from hga.tools.errors import FAILED, INTERRUPTED, OK, UsageError, printable
from hga.tools.figures import reply_json, turn_line
from hga.tools.folders import cache_folder, expand
from hga.tools.interrupt import Interrupt
from hga.tools.reply_writer import ReplyWriter, json_line
from hga.tools.schemas import compile_schema
from hga.tools.sessions import look_all, sessions_folder
from hga.tools.status import Status, allows_colour, flush_output, size
from hga.tools.texts import bounded, decode, read_text
from hga.tools.trace import traced
from hga.tools.turns import Reply

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.options import Options
    from hga.runtime.session import Session

_PREFILL_BAR_DELAY_S = 0.5

SAMPLER_OPTIONS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "seed": "seed",
}
"""The sampler's name for each sampling flag."""


def run(model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    try:
        return _run(model, values, status)
    except PagesError as error:
        if values.session is None:
            raise
        from hga.tools.sessions_repair import advised

        raise advised(error, values.session, model, values.kv_dir) from None


def _run(model: str | None, values: argparse.Namespace, status: Status) -> int:
    prompt = _prompt(values)
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")
    options = engine_options(values)
    with (
        traced(values.trace) as trace,
        open_engine(model, options, values, status) as engine,
        ExitStack() as opened,
    ):
        session = engine.session(values.session)
        opened.callback(session.close)
        conversation = start(engine, session, values, status)
        conversation.trace = trace
        talk = Talk(engine, conversation, values.json, status, values.markdown)
        if prompt is not None:
            return talk.once(prompt)
        if not sys.stdin.isatty():
            return talk.lines()
        from hga.tools.repl import Repl, line_source

        banner(engine, status)
        # /load puts another session in the place of this one.
        opened.pop_all()
        opened.callback(talk.close)
        names = lambda: [each.folder.name for each in look_all(engine.sessions_dir)]  # noqa: E731
        code = Repl(talk, line_source(status, names), status).loop()
        talk.save()
        return code


def engine_options(values: argparse.Namespace) -> "Options":
    """The Options of a parsed command line; for `eval` the lists of rules stay out of it."""
    from hga.runtime.options import Options

    single = isinstance(values.attention, str)
    kv_dir = getattr(values, "kv_dir", None)
    return Options(
        ctx=values.ctx,
        threads=values.threads,
        attention=values.attention if single else "dense",
        budget=values.budget if single else "auto",
        mem=values.mem,
        device=values.device,
        gpu_mem=getattr(values, "gpu_mem", None),
        prefill=getattr(values, "prefill", "exact"),
        sketch_bits=values.sketch_bits,
        kv_type=values.kv_type,
        kv=getattr(values, "kv", "auto"),
        io=getattr(values, "io", "auto"),
        kv_dir=None if kv_dir is None else expand(kv_dir),
        sessions_dir=sessions_folder(kv_dir),
        expert_cache=getattr(values, "expert_cache", None),
        expert_hints=getattr(values, "expert_hints", "auto"),
    )


@contextmanager
def open_engine(
    model: str | None, options: "Options", values: argparse.Namespace, status: Status
) -> Iterator["Engine"]:
    """Find or make the packed file of MODEL and open it; closes the engine at the end."""
    from hga.tools.resolve import resolve

    path = resolve(model, status, accept_terms=values.accept_gemma_terms)
    from hga.runtime.engine import Engine

    with Engine.open(path, options, cache_folder(), status.notice) as engine:
        for notice in engine.notices:
            status.notice(notice)
        yield engine


def start(
    engine: "Engine", session: "Session", values: argparse.Namespace, status: Status
) -> Conversation:
    """A conversation as the flags ask for it, over a session that is empty or was saved."""
    chat = engine.template is not None and not values.no_chat
    if engine.template is None and not values.no_chat:
        status.notice(
            "base model without a chat template: text is completed as it is, each input goes on "
            "where the last one ended"
        )
    predict = values.predict
    if predict == 0:
        predict = None if chat else RAW_PREDICT
        if predict is not None:
            status.notice(f"replies end after {predict} tokens (-n changes that)")
    conversation = Conversation(
        engine,
        session,
        sampling_from(values, engine.generation),
        chat=chat,
        predict=predict,
        system=values.system_prompt,
        grammar=compile_schema(engine, values.json_schema),
    )
    if session.saved is not None:
        for notice in session.saved.notices:
            status.notice(notice)
        status.notice(resume(conversation))
    status.detail(f"seed {conversation.seed}")
    return conversation


def resume(conversation: Conversation) -> str:
    """Go on where a named session was left; a line that says so."""
    saved = conversation.session.saved
    assert saved is not None, "the session has no name"
    if not saved.note:
        return f"session {saved.name!r} is new: every reply is saved in {saved.folder}"
    conversation.resume(saved.note)
    turns = f"{conversation.n_turns} turn{'' if conversation.n_turns == 1 else 's'}"
    return (
        f"session {saved.name!r}: {turns}, {saved.reused_tokens:,} tokens reused, opened in "
        f"{saved.open_s:.2f} s"
    )


def sampling_from(values: argparse.Namespace, generation: dict[str, object]) -> SamplerOptions:
    """Flags over what the checkpoint recommends over 0.8 / 40 / 0.95 / 0.05."""
    given = {
        option: getattr(values, name)
        for name, option in SAMPLER_OPTIONS.items()
        if getattr(values, name) is not None
    }
    recommended = defaults(generation)
    try:
        return replace(recommended, **given)
    except SamplerError as error:
        # The checkpoint's own values have passed.
        raise UsageError(str(error)) from None


class Talk:
    """Turns of a conversation with their text on standard output and their figures on standard
    error."""

    def __init__(
        self,
        engine: "Engine",
        conversation: Conversation,
        json_lines: bool,
        status: Status,
        markdown: str = "auto",
    ) -> None:
        """`markdown` is the flag's value, which /set changes."""
        self.markdown = markdown
        self.engine = engine
        self.conversation = conversation
        self._json = json_lines
        self._status = status
        self.last: Reply | None = None

    def once(self, prompt: str) -> int:
        """Answer one prompt; the exit code tells of an interrupt."""
        reply = self.turn(prompt)
        if reply.stop == "interrupt":
            return INTERRUPTED
        return FAILED if reply.unfinished_json else OK

    def lines(self) -> int:
        """Answer every line of standard input as a turn of one conversation."""
        answered = False
        for text in _input_lines():
            answered = True
            if self.turn(text).stop == "interrupt":
                return INTERRUPTED
        if not answered:
            self._status.notice("standard input is empty: nothing to answer")
        return OK

    def turn(self, text: str | None) -> Reply:
        """Answer a prompt, or the last one again where `text` is None."""
        interrupt = Interrupt()
        with (
            ReplyWriter(self.styled) as out,
            self._status.bar("reading", "tokens", delay_s=_PREFILL_BAR_DELAY_S) as report,
        ):
            if text is None:
                reply = self.conversation.regenerate(out.write, report=report, interrupt=interrupt)
            else:
                reply = self.conversation.ask(text, out.write, report=report, interrupt=interrupt)
        self.last = reply
        try:
            if reply.answered:
                self.save()
        finally:
            self._tell(reply)
        interrupt.obey()
        return reply

    @property
    def styled(self) -> bool:
        """Whether replies are written with styles; --quiet, NO_COLOR and anything but a terminal
        forbid it whatever `markdown` is."""
        conversation = self.conversation
        wanted = self.markdown == "on" or (
            self.markdown == "auto" and conversation.chat and not conversation.constrained
        )
        return wanted and not self._status.quiet and allows_colour(sys.stdout)

    def save(self) -> None:
        """Make a named session durable as it is; Ctrl-C does not cut it short, twice does."""
        session = self.conversation.session
        if session.saved is not None:
            with Interrupt() as interrupt:
                session.save(self.conversation.note())
            interrupt.obey()

    def close(self) -> None:
        """Give the session up."""
        self.conversation.session.close()

    def _tell(self, reply: Reply) -> None:
        if reply.context_full:
            self._status.notice(
                f"the reply stopped because the context of {self.engine.ctx:,} tokens is full "
                "(--ctx raises it, /clear starts over)"
            )
        if reply.unfinished_json and reply.stop == "length":
            self._status.notice(
                f"the reply stopped after {len(reply.tokens):,} tokens, before its JSON was"
                " complete (-n allows more)"
            )
        if not reply.answered:
            self._status.notice("interrupted while reading the prompt: the turn is dropped")
        else:
            if reply.stop == "interrupt":
                self._status.notice("interrupted: the reply is kept as far as it got")
            self._status.faint(turn_line(reply, self.conversation.session, self.engine))
        if self._json:
            figures = reply_json(reply, self.conversation.session, self.engine)
            sys.stdout.write(json_line(figures))
            flush_output()


def banner(engine: "Engine", status: Status) -> None:
    """What runs, and how, before the first prompt."""
    plan = engine.plan
    name = printable(str(engine.model.source.get("name") or engine.path.name))
    status.notice(
        f"{name.removesuffix('.gguf')}: {plan.architecture}, {len(plan.layers)} layers, context "
        f"{engine.ctx:,} tokens, {size(engine.resident_bytes())} resident\n"
        f"{engine.backend}; attention {engine.options.attention}, "
        f"budget {engine.options.budget}\n"
        "/help lists the commands, Ctrl-D ends"
    )


def _prompt(values: argparse.Namespace) -> str | None:
    if values.prompt is not None:
        return cast(str, values.prompt)
    if values.file is None:
        return None
    if values.file == "-":
        text = decode(bounded(sys.stdin.buffer, "standard input"), "standard input")
    else:
        text = read_text(Path(values.file))
    return text.removesuffix("\n")


def _input_lines() -> Iterator[str]:
    number = 0
    while line := bounded(sys.stdin.buffer, "a line of standard input", whole=False):
        number += 1
        text = decode(line, f"standard input, line {number}").rstrip("\r\n")
        if text.strip():
            yield text
