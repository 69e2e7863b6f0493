"""The read-eval-print loop of `hga run`: lines in, commands or turns out.

On a terminal prompt_toolkit edits the line (history, Tab); elsewhere, and with TERM=dumb, lines
are read as they come. Prompts go to standard error, which keeps standard output for the model.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from hga.kvstore.errors import StoreError
from hga.tools import errors
from hga.tools.folders import state_folder
from hga.tools.interrupt import SecondInterrupt
from hga.tools.repl_commands import COMMANDS, SETTABLE, Context, dispatch
from hga.tools.run import Talk
from hga.tools.status import Status, is_terminal
from hga.tools.texts import decode
from hga.tools.typing_ahead import hidden_typing

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History

_PROMPT = ">>> "
_MORE = "... "
_FENCE = '"""'


class LineDropped(KeyboardInterrupt):
    """Ctrl-C on a line that is not empty: it clears the line and asks for nothing else."""


class LineSource(Protocol):
    """Where the loop's lines come from."""

    def read(self, prompt: str) -> str:
        """One line without its end; raises EOFError at the end, KeyboardInterrupt on Ctrl-C
        (LineDropped where the line had text)."""


class Repl:
    """One conversation held over a source of lines."""

    def __init__(self, talk: Talk, source: LineSource, status: Status) -> None:
        self._context = Context(talk, status)
        self._source = source
        self._status = status

    def loop(self) -> int:
        """Answer until the user leaves; returns the exit code."""
        interrupted = False
        while not self._context.done:
            try:
                interrupted = self._handle(self._read())
            except EOFError:
                break
            except SecondInterrupt:
                return errors.INTERRUPTED
            except LineDropped:
                interrupted = False
            except KeyboardInterrupt:
                if interrupted:
                    return errors.INTERRUPTED
                interrupted = True
                self._status.say("Ctrl-C again, Ctrl-D or /exit ends")
        return errors.OK

    def _handle(self, text: str) -> bool:
        """Run one input; returns whether Ctrl-C stopped it. A refusal is printed and the
        conversation goes on; any other failure ends the program."""
        if not text.strip():
            return False
        try:
            with hidden_typing():
                if text.startswith("/"):
                    reply = dispatch(self._context, text)
                else:
                    reply = self._context.send(text)
        except Exception as error:
            refused = errors.exit_code(error) in (errors.USAGE, errors.BAD_MODEL)
            # What cannot be saved is still in memory.
            if not refused and not isinstance(error, StoreError):
                raise
            self._status.error(errors.message(error))
            return False
        return reply is not None and reply.stop == "interrupt"

    def _read(self) -> str:
        """One input: a line, or the lines between a pair of triple quotes."""
        line = self._source.read(_PROMPT)
        if not line.startswith(_FENCE):
            return line
        lines = []
        rest = line[len(_FENCE) :]
        while not rest.rstrip().endswith(_FENCE):
            lines.append(rest)
            rest = self._source.read(_MORE)
        lines.append(rest.rstrip()[: -len(_FENCE)])
        return "\n".join(lines).strip("\n")


def line_source(
    status: Status, names_of_sessions: Callable[[], Iterable[str]] = tuple
) -> LineSource:
    """The line editor on a terminal, plain lines otherwise."""
    if is_terminal(sys.stdin) and is_terminal(sys.stderr):
        return EditedLines(status, names_of_sessions)
    return PlainLines()


class PlainLines:
    """Lines of standard input, the prompt on standard error."""

    def read(self, prompt: str) -> str:
        """See LineSource."""
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return decode(line, "the line").rstrip("\r\n")


class EditedLines:
    """Lines from prompt_toolkit, with history and completion."""

    def __init__(self, status: Status, names_of_sessions: Callable[[], Iterable[str]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("c-c")
        def stop(event: KeyPressEvent) -> None:
            typed = event.current_buffer.text
            event.app.exit(exception=LineDropped if typed else KeyboardInterrupt)

        self._session: PromptSession[str] = PromptSession(
            history=_history(status),
            completer=_completer(names_of_sessions),
            complete_while_typing=False,
            key_bindings=keys,
            output=create_output(stdout=sys.stderr),
        )

    def read(self, prompt: str) -> str:
        """See LineSource."""
        return self._session.prompt(prompt)


def _history(status: Status) -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        """A history whose disk may fill up or go: no reason to end a conversation."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    path = state_folder() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What people ask a model is nobody else's business.
        # To open a pipe waits for its other side.
        waiting = getattr(os, "O_NONBLOCK", 0)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | waiting, 0o600))
    except OSError as error:
        status.notice(f"no history: {errors.message(error)}")
        return InMemoryHistory()
    return Kept(str(path))


def _completer(names_of_sessions: Callable[[], Iterable[str]]) -> "Completer":
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        """Command names at the start of the line, keys and their values after /set, paths after
        /read, sessions after /load."""

        _paths = PathCompleter(expanduser=True)

        def get_completions(
            self, document: "Document", complete_event: "CompleteEvent"
        ) -> "Iterable[Completion]":
            text = document.text_before_cursor
            name, space, rest = text.partition(" ")
            if not space:
                for word in complete(text):
                    yield Completion(word, start_position=-len(text))
            elif name == "/read":
                path = Document(rest, len(rest))
                yield from self._paths.get_completions(path, complete_event)
            elif name == "/load":
                for word in complete(rest, names=names_of_sessions()):
                    yield Completion(word, start_position=-len(rest))
            elif name == "/set":
                key, space, value = rest.partition(" ")
                flag = SETTABLE.get(key.replace("-", "_"))
                names = flag.words if space and flag else () if space else SETTABLE
                typed = value if space else rest
                for word in complete(typed, names=names):
                    yield Completion(word, start_position=-len(typed))

    return Commands()


def complete(prefix: str, names: Iterable[str] | None = None) -> list[str]:
    """The names, by default those of the commands, that start with a prefix that is not empty
    or, for given names, may be."""
    if names is None:
        if not prefix.startswith("/"):
            return []
        names = [name for command in COMMANDS for name in command.names]
    return sorted(name for name in names if name.startswith(prefix))
