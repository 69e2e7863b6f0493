"""Markdown styled while it streams: ANSI styles around the model's own characters, nothing else.

Invariant: the output without its `\\x1b[…m` sequences is the text that came in, whatever the pieces
that it came in. Each piece ends with its styles off, so that nothing else on the terminal is
coloured, and no line is ever written twice. What cannot be told from a character alone (is `*` a
bullet or the begin of `**`?) is held back until the next one comes: a run of markers at most.
Emphasis is styled from its opening marker on, and ends with its line at the latest.
"""

_BOLD, _FAINT, _ITALIC, _CYAN, _GREEN = "1", "2", "3", "36", "32"
_HEADING = (_BOLD, _CYAN)
_MARKS = "*_`"
# After these, or white space, or at the begin of a line, `*` and `_` may open: narrower than
# CommonMark, since an index such as x_{i} or a product such as 2*(3) must not change the line.
_OPENS_AFTER = "([{<\"'“‘—–-:>|*_"
_NEVER_OPENS = ")]},.;"
# A longer run of markers is no marker: it is let go, so that a model that writes nothing but
# stars is seen to do so.
_LONGEST_RUN = 8


class MarkdownStyler:
    """One text: `push` takes pieces of it as they come and returns what to write, `finish` the
    rest."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._style: tuple[str, ...] = ()
        self._held = ""
        # Fenced code: marker and indentation of the fence that opened it.
        self._fence = ""
        self._fence_indent = 0
        self._begin_line()

    def push(self, text: str) -> str:
        """Style the next piece; holds back what its successor decides."""
        for char in text:
            self._take(char)
        return self._written()

    def finish(self) -> str:
        """What was held back, styled as the end of the text makes it."""
        if self._at_begin:
            self._settle_begin("")
        self._settle_run("")
        return self._written()

    def _begin_line(self) -> None:
        self._at_begin = True
        self._indent = 0
        self._base: tuple[str, ...] = ()
        self._code = 0
        self._bold = self._italic = ""
        self._escaped = False
        self._previous = ""
        # The rest of a line that opens a fence (its language) or closes it.
        self._info = False

    def _take(self, char: str) -> None:
        if self._at_begin:
            self._take_begin(char)
        elif self._fence and not self._info:
            self._plain(char, (_GREEN,))
        elif self._info:
            self._take_info(char)
        else:
            self._take_inline(char)
        if char == "\n":
            self._begin_line()

    def _take_begin(self, char: str) -> None:
        """Characters of a line until it is known what the line is."""
        if not self._held and char in " \t":
            self._indent += 1
            self._plain(char, ())
            return
        if self._could_grow(char):
            self._held += char
            return
        self._settle_begin(char)
        self._take(char)

    def _could_grow(self, char: str) -> bool:
        """Whether the held begin of a line, with `char`, may still turn out to be a marker."""
        held = self._held
        if len(held) >= _LONGEST_RUN or char == "\n":
            return False
        if not held:
            return char in ("`~" if self._fence else "`~#-*+_>") or (
                not self._fence and char.isascii() and char.isdigit()
            )
        if held[0] in "`~#*-_":
            return char == held[0]
        if held[0].isdigit():
            return held.isdigit() and char.isascii() and (char.isdigit() or char in ".)")
        return False

    def _settle_begin(self, char: str) -> None:
        """Write the held begin of a line as what it is, now that `char` follows it."""
        held, self._held = self._held, ""
        self._at_begin = False
        ended = char in ("", "\n", " ", "\t")
        if held[:3] in ("```", "~~~"):
            self._settle_fence(held, char)
        elif self._fence:
            self._plain(held, (_GREEN,))
        elif held[:1] == "#" and len(held) <= 6 and ended:
            self._base = _HEADING
            self._plain(held, _HEADING)
        elif len(held) >= 3 and held[0] in "-*_" and char in ("", "\n"):
            self._plain(held, (_FAINT,))
        elif held == ">" or (ended and (held in ("-", "*", "+") or _is_number(held))):
            self._plain(held, (_CYAN,))
            self._indent += len(held)
            # A list item or a quotation begins as a line does: `> - **a**`.
            self._at_begin = char not in ("", "\n")
        elif held[:1] in ("*", "_", "`"):
            self._held = held
        else:
            self._plain(held, ())

    def _settle_fence(self, held: str, char: str) -> None:
        if not self._fence:
            self._fence, self._fence_indent = held, self._indent
        elif not (
            held.startswith(self._fence)
            and char in ("", "\n", " ", "\t", "\r")
            and self._indent <= self._fence_indent + 3
        ):
            self._plain(held, (_GREEN,))
            return
        else:
            self._fence = ""
        self._info = True
        self._plain(held, (_FAINT,))

    def _take_info(self, char: str) -> None:
        if char == "`" and self._fence[:1] == "`":
            if self._previous == "`":
                # The fence goes on: it was longer than the run that is held at most.
                self._fence += char
            else:
                # A line with more backticks is a code span, no fence.
                self._code, self._fence, self._info = len(self._fence), "", False
                self._take_inline(char)
                return
        self._plain(char, (_FAINT,))

    def _take_inline(self, char: str) -> None:
        held = self._held
        if held and char == held[0] and len(held) < _LONGEST_RUN:
            self._held += char
            return
        self._settle_run(char)
        if char in _MARKS and not self._escaped:
            self._held = char
            return
        self._escaped = char == "\\" and not self._escaped and not self._code
        self._plain(char, self._now())

    def _settle_run(self, char: str) -> None:
        """Write the held run of markers as what it is, now that `char` follows it."""
        run, self._held = self._held, ""
        if not run:
            return
        before = self._now()
        if run[0] == "`":
            changed = self._settle_ticks(run, char)
        else:
            changed = not self._code and self._settle_stars(run, char)
        # Bold and faint together are neither on some terminals.
        faint = (*(code for code in before if code != _BOLD), _FAINT)
        self._plain(run, faint if changed else before)

    def _settle_ticks(self, run: str, char: str) -> bool:
        if self._code:
            if self._code != len(run):
                return False
            self._code = 0
            return True
        if char in ("", "\n") or (len(run) == 1 and char.isspace()):
            return False
        self._code = len(run)
        return True

    def _settle_stars(self, run: str, char: str) -> bool:
        after_word = self._previous != "" and not self._previous.isspace()
        inside_word = run[0] == "_" and (char.isalnum() or char == "_")
        if after_word and not inside_word and run in self._closers():
            if len(run) != 2:
                self._italic = ""
            if len(run) != 1:
                self._bold = ""
            return True
        opens_here = not after_word or self._previous in _OPENS_AFTER
        if len(run) > 3 or not opens_here or not char or char.isspace() or char in _NEVER_OPENS:
            return False
        if len(run) != 2:
            self._italic = run[0]
        if len(run) != 1:
            self._bold = run[0]
        return True

    def _closers(self) -> set[str]:
        closers = {self._italic, self._bold * 2}
        if self._italic and self._italic == self._bold:
            closers.add(self._bold * 3)
        return closers - {""}

    def _now(self) -> tuple[str, ...]:
        """The style of inline text."""
        if self._code:
            return (*self._base, _GREEN)
        bold = (_BOLD,) if self._bold and _BOLD not in self._base else ()
        return (*self._base, *bold, *((_ITALIC,) if self._italic else ()))

    def _plain(self, text: str, style: tuple[str, ...]) -> None:
        """Write characters of the model in a style; a line break stands in none."""
        if not text:
            return
        if text in ("\n", "\r"):
            style = ()
        if style != self._style:
            self._switch(style)
        self._out.append(text)
        self._previous = text[-1]

    def _switch(self, style: tuple[str, ...]) -> None:
        if self._style:
            self._out.append("\x1b[0m")
        if style:
            self._out.append(f"\x1b[{';'.join(style)}m")
        self._style = style

    def _written(self) -> str:
        self._switch(())
        written = "".join(self._out)
        self._out.clear()
        return written


def _is_number(held: str) -> bool:
    return len(held) > 1 and held[:-1].isdigit() and held[-1] in ".)"
