"""How a reply gets to standard output: byte for byte where that is no terminal; on a terminal
without control characters, and with Markdown styled where that is wanted.

Invariant: what is written is the model's text, but for control characters on a terminal, which are
shown as escapes (`\\x1b`), and styles, which `TERM=dumb`, `NO_COLOR` and --quiet turn off.
"""

import json
import re
import sys

from hga.tools.errors import printable
from hga.tools.markdown import MarkdownStyler
from hga.tools.status import flush_output

# Control characters that move a terminal as text does.
_HARMLESS = re.compile("(\t|\r\n)")
# What JSON leaves as it is and a terminal may obey.
_UNESCAPED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def terminal_text(text: str) -> str:
    """Text as a terminal may show it: control characters but tabs and line ends as escapes."""
    parts = _HARMLESS.split(text)
    return "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))


def shown(text: str) -> str:
    """Text for standard output: as it is, or for a terminal where it is one."""
    return terminal_text(text) if sys.stdout.isatty() else text


def json_line(value: object) -> str:
    """A value as JSON on one line that no terminal obeys."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


class ReplyWriter:
    """Writes one reply as it comes; a context manager, so that what was held back is written
    however the reply ends."""

    def __init__(self, styled: bool) -> None:
        """`styled`: whether Markdown is styled; the caller knows that the terminal can."""
        self._on_terminal = sys.stdout.isatty()
        self._styler = MarkdownStyler() if styled else None
        # A carriage return, until what follows tells whether it ends a line.
        self._held = ""
        self._ends_line = True

    def __enter__(self) -> "ReplyWriter":
        return self

    def __exit__(self, *failure: object) -> None:
        self.finish()

    def write(self, piece: str) -> None:
        """Write the next piece of the reply at once; raises the OSError of standard output."""
        if self._on_terminal:
            piece, self._held = self._held + piece, ""
            if piece.endswith("\r"):
                piece, self._held = piece[:-1], "\r"
            piece = terminal_text(piece)
        if piece:
            self._ends_line = piece.endswith("\n")
        self._put(piece if self._styler is None else self._styler.push(piece))

    def finish(self) -> None:
        """Write the rest, and end the last line."""
        rest, self._held = printable(self._held), ""
        self._ends_line &= not rest
        if self._styler is not None:
            rest = self._styler.push(rest) + self._styler.finish()
        if not self._ends_line:
            rest += "\n"
            self._ends_line = True
        self._put(rest)

    def _put(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            flush_output()
