"""The commands of the REPL, one function each, and the table that names them.

Their output goes to standard error. A command that refuses raises UsageError; the loop prints it
and goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from hga.tools import flags, repl_sessions
from hga.tools.config import close_match
from hga.tools.errors import UsageError
from hga.tools.figures import reply_json
from hga.tools.flag import SAMPLING
from hga.tools.folders import expand
from hga.tools.run import SAMPLER_OPTIONS, Talk
from hga.tools.status import Status, size
from hga.tools.texts import read_text
from hga.tools.turns import Reply


class Context:
    """What commands act on: the conversation, the writer of notices, a file read ahead of the
    next message, and whether the loop is done."""

    def __init__(self, talk: Talk, status: Status) -> None:
        self.talk = talk
        self.status = status
        self.done = False
        self.pending = ""

    def send(self, text: str) -> Reply:
        """A turn: the file that /read put aside, then the text."""
        whole = f"{self.pending}\n\n{text}" if self.pending else text
        reply = self.talk.turn(whole)
        if reply.answered:
            self.pending = ""
        return reply


@dataclass(frozen=True, slots=True)
class Command:
    """`run` gets the rest of the line and returns the reply where it produced one."""

    names: tuple[str, ...]
    usage: str
    help: str
    run: Callable[[Context, str], Reply | None]


def dispatch(context: Context, line: str) -> Reply | None:
    """Run the command of a line that starts with a slash."""
    name, _, rest = line.partition(" ")
    for command in COMMANDS:
        if name.rstrip() in command.names:
            return command.run(context, rest.strip())
    names = [name for command in COMMANDS for name in command.names]
    raise UsageError(f"unknown command {name}{close_match(name, names)}; /help lists them")


def _help(context: Context, rest: str) -> None:
    width = max(len(command.usage) for command in COMMANDS)
    lines = [f"{command.usage:{width}}  {command.help}" for command in COMMANDS]
    lines.append('"""' + " " * (width - 1) + "begins and ends a message of several lines")
    lines.append("A message that begins with a slash: put a space before it.")
    lines.append("Ctrl-C stops a reply and keeps it, twice ends; Ctrl-D ends.")
    context.status.say("\n".join(lines))


def _exit(context: Context, rest: str) -> None:
    context.done = True


def _clear(context: Context, rest: str) -> None:
    context.talk.conversation.clear()
    context.pending = ""
    context.talk.save()
    context.status.say("the conversation is empty")


def _regen(context: Context, rest: str) -> Reply:
    return context.talk.turn(None)


def _undo(context: Context, rest: str) -> None:
    question = context.talk.conversation.undo()
    context.talk.save()
    first = question.strip().splitlines()[0]
    shown = first if len(first) <= 60 else first[:57] + "..."
    context.status.say(f"forgotten: {shown}")


def _read(context: Context, rest: str) -> None:
    if not rest:
        if not context.pending:
            raise UsageError("/read FILE: which file?")
        context.pending = ""
        context.status.say("the file is dropped")
        return
    text = read_text(typed_path(rest))
    if not text.strip():
        raise UsageError(f"{rest} is empty")
    talk = context.talk
    count = talk.conversation.count(text)
    free = talk.engine.ctx - talk.conversation.n_tokens - 1
    if count > free:
        raise UsageError(
            f"{rest} makes {count:,} tokens and {free:,} of the context of "
            f"{talk.engine.ctx:,} are free (--ctx raises it, /clear starts over)"
        )
    context.pending = text
    context.status.say(
        f"{rest}: {count:,} tokens of {free:,} free; it goes ahead of your next message "
        "(/read alone drops it)"
    )


def typed_path(path: str) -> Path:
    """A path as typed: quotes around it and a leading ~ are understood."""
    if len(path) >= 2 and path[0] == path[-1] and path[0] in "\"'":
        path = path[1:-1]
    return expand(path)


def _system(context: Context, rest: str) -> None:
    conversation = context.talk.conversation
    if not rest:
        context.status.say(conversation.system or "no system prompt")
        return
    conversation.system = rest
    context.status.say("system prompt set; the conversation is read again with the next message")


# The values that /set changes: key, flag that parses them.
SETTABLE = {
    flag.name: flag
    for flag in flags.COMMANDS["run"]
    if flag.name in {"predict", "attention", "budget", "markdown"} or flag in SAMPLING
}


def _set(context: Context, rest: str) -> None:
    words = rest.split()
    if not words:
        context.status.say(f"keys: {', '.join(SETTABLE)}; /show has their values")
        return
    if len(words) != 2:
        raise UsageError(f"/set KEY VALUE, where KEY is one of {', '.join(SETTABLE)}")
    name, text = words[0].replace("-", "_"), words[1]
    flag = SETTABLE.get(name)
    if flag is None:
        raise UsageError(f"unknown key {words[0]}{close_match(name, SETTABLE)}")
    try:
        value = flag.parse(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    conversation = context.talk.conversation
    if name in ("attention", "budget"):
        setattr(conversation.session, name, value)
    elif name == "markdown":
        context.talk.markdown = cast(str, value)
    elif name == "predict":
        conversation.predict = cast("int | None", value)
    else:
        changed: Any = {SAMPLER_OPTIONS[name]: value}
        conversation.sampling = replace(conversation.sampling, **changed)
    shown = "no limit" if value is None and name == "predict" else text
    if name == "markdown" and text == "on" and not context.talk.styled:
        shown = "on, but nothing is styled: no terminal, NO_COLOR or --quiet"
    context.status.say(f"{name} {shown}")


def _show(context: Context, rest: str) -> None:
    talk = context.talk
    engine, conversation = talk.engine, talk.conversation
    sampling = conversation.sampling
    predict = "no limit" if conversation.predict is None else f"{conversation.predict:,}"
    lines = [
        f"architecture    {engine.plan.architecture}, {len(engine.plan.layers)} layers",
        f"context         {engine.ctx:,} tokens",
        f"backend         {engine.backend}",
        f"attention       {conversation.session.attention}",
        f"budget          {conversation.session.budget}",
        f"temp            {sampling.temperature:g}",
        f"top_k           {sampling.top_k}",
        f"top_p           {sampling.top_p:g}",
        f"min_p           {sampling.min_p:g}",
        f"repeat_penalty  {sampling.repeat_penalty:g}",
        f"seed            {conversation.seed}",
        f"predict         {predict}",
        f"markdown        {talk.markdown}, replies {'' if talk.styled else 'not '}styled",
    ]
    if conversation.session.saved is not None:
        lines.append(f"session         {conversation.session.saved.name}")
    if conversation.chat:
        lines.append(f"system          {conversation.system or 'none given'}")
    context.status.say("\n".join(lines))


def _stats(context: Context, rest: str) -> None:
    talk = context.talk
    if talk.last is None:
        raise UsageError("there is no turn yet")
    figures = reply_json(talk.last, talk.conversation.session, talk.engine)
    shown = {key: value for key, value in figures.items() if key not in ("text", "tokens")}
    lines = [f"{key:16}{'n/a' if value is None else value}" for key, value in shown.items()]
    context.status.say("\n".join(lines))


def _ctx(context: Context, rest: str) -> None:
    talk = context.talk
    used, ctx = talk.conversation.n_tokens, talk.engine.ctx
    kv = talk.conversation.session.kv_bytes
    turns = talk.conversation.n_turns
    context.status.say(
        f"{used:,} of {ctx:,} tokens used ({100 * used / ctx:.0f} %), "
        f"{turns} turn{'' if turns == 1 else 's'}, {size(kv)} of KV"
    )


COMMANDS = (
    Command(("/help", "/?"), "/help", "this list", _help),
    Command(("/exit", "/quit", "/bye"), "/exit, /quit, /bye", "leave", _exit),
    Command(("/clear",), "/clear", "forget the conversation", _clear),
    Command(("/regen",), "/regen", "answer the last message again", _regen),
    Command(("/undo",), "/undo", "forget the last message and its answer", _undo),
    Command(("/read",), "/read FILE", "put a text file ahead of the next message", _read),
    Command(("/system",), "/system TEXT", "instructions ahead of the conversation", _system),
    Command(
        ("/save",), "/save NAME", "keep the conversation and its next replies", repl_sessions.save
    ),
    Command(("/load",), "/load NAME", "go on with a saved conversation", repl_sessions.load),
    Command(("/list",), "/list", "the saved conversations", repl_sessions.list_all),
    Command(("/set",), "/set KEY VALUE", "change a setting; /set alone lists the keys", _set),
    Command(("/show",), "/show", "the model and the settings", _show),
    Command(("/stats",), "/stats", "figures of the last turn", _stats),
    Command(("/ctx",), "/ctx", "how full the context is", _ctx),
)
