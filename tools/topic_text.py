"""The help texts' Markdown as blocks, and blocks as text for a terminal or a pipe.

The subset that topics/ and the documents made from it use: headings, paragraphs on one line,
lists, tables, code by indentation; in a line `code`, **bold** and [links](target). The manual page
is written from the same blocks.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["heading", "paragraph", "item", "code", "table"]
Span = tuple[Literal["plain", "code", "bold"], str]

_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_SPAN = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")
_CELL = re.compile(r"(?<!\\)\|")
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Block:
    """`lines`: of code as they stand without the indentation, else one; `rows`: of a table, the
    first is its head, whose cells may all be empty."""

    kind: Kind
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        """The one line."""
        return self.lines[0]


def parse(markdown: str) -> list[Block]:
    """The blocks of a text."""
    blocks: list[Block] = []
    lines = markdown.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue
        if line.startswith(_INDENT):
            code = [line]
            while lines and (lines[0].startswith(_INDENT) or not lines[0].strip()):
                code.append(lines.pop(0))
            text = "\n".join(code).rstrip()
            blocks.append(Block("code", tuple(each[len(_INDENT) :] for each in text.split("\n"))))
        elif line.startswith("#"):
            blocks.append(Block("heading", (line.lstrip("#").strip(),)))
        elif line.startswith("- "):
            blocks.append(Block("item", (line[2:],)))
        elif line.startswith("|"):
            table = [line]
            while lines and lines[0].startswith("|"):
                table.append(lines.pop(0))
            blocks.append(Block("table", rows=tuple(_rows(table))))
        else:
            blocks.append(Block("paragraph", (line,)))
    return blocks


def _rows(table: list[str]) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(table):
        if number != 1:
            yield tuple(cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1])


def spans(text: str) -> list[Span]:
    """A line's parts; links are their text."""
    found: list[Span] = []
    text, at = _LINK.sub(r"\1", text), 0
    for match in _SPAN.finditer(text):
        if match.start() > at:
            found.append(("plain", text[at : match.start()]))
        found.append(("code", match[1]) if match[1] is not None else ("bold", match[2]))
        at = match.end()
    if at < len(text):
        found.append(("plain", text[at:]))
    return found


def render(markdown: str, width: int, styled: bool) -> str:
    """Text of at most `width` columns where words and code allow it; bold by ANSI styles, or
    without."""
    blocks = parse(markdown)
    out: list[str] = []
    for before, block in zip([None, *blocks], blocks, strict=False):
        if before is not None and not (before.kind == block.kind == "item"):
            out.append("")
        out += _RENDERERS[block.kind](block, width, styled)
    return "\n".join(out) + "\n"


def _heading(block: Block, width: int, styled: bool) -> list[str]:
    lines = _wrapped(block.text, width, False)
    return [f"\x1b[1m{line}\x1b[0m" for line in lines] if styled else lines


def _code(block: Block, width: int, styled: bool) -> list[str]:
    return [f"{_INDENT}{line}".rstrip() for line in block.lines]


def _paragraph(block: Block, width: int, styled: bool) -> list[str]:
    return _wrapped(block.text, width, styled)


def _item(block: Block, width: int, styled: bool) -> list[str]:
    lines = _wrapped(block.text, width - 2, styled)
    return [f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines)]


def _table(block: Block, width: int, styled: bool) -> list[str]:
    """Columns as wide as they need to be, the last one wrapped; one that would leave it no room
    stands on a line of its own."""
    # A head that does not name every column says nothing that the text before does not.
    rows = block.rows if all(block.rows[0]) else block.rows[1:]
    n_last = len(rows[0]) - 1
    widths = [max(len(_plain(row[i])) for row in rows) for i in range(n_last)]
    widths = [min(each, width // 2) for each in widths]
    left = sum(widths) + 2 * n_last
    out = []
    for row in rows:
        first = ""
        for i in range(n_last):
            cell = _wrapped(row[i], 1 << 20, styled)
            pad = " " * max(0, widths[i] - len(_plain(row[i])))
            first += (cell[0] if cell else "") + pad + "  "
        lines = _wrapped(row[n_last], max(24, width - left), styled) or [""]
        if sum(max(widths[i], len(_plain(row[i]))) + 2 for i in range(n_last)) > left:
            out.append(first.rstrip())
            first = " " * left
        out += [((first if i == 0 else " " * left) + line).rstrip() for i, line in enumerate(lines)]
    return out


_RENDERERS: dict[Kind, Callable[[Block, int, bool], list[str]]] = {
    "heading": _heading,
    "paragraph": _paragraph,
    "item": _item,
    "code": _code,
    "table": _table,
}


def _plain(text: str) -> str:
    return "".join(part for _, part in spans(text))


def _wrapped(text: str, width: int, styled: bool) -> list[str]:
    """Words in lines; styles are laid over the wrapped text, so that they take no width."""
    lines = textwrap.wrap(_plain(text), width, break_long_words=False, break_on_hyphens=False)
    if not styled:
        return lines
    # Where white space was folded, only the other characters can be followed through.
    marks = [
        0 if kind == "plain" else number
        for number, (kind, part) in enumerate(spans(text), 1)
        for char in part
        if not char.isspace()
    ]
    return [_styled_line(line, marks) for line in lines]


def _styled_line(line: str, marks: list[int]) -> str:
    """A line with the spans of its characters, which are taken off `marks`, in bold."""
    out, now = "", 0
    for char in line:
        # White space is bold between two characters of one span.
        mark = marks.pop(0) if not char.isspace() else now if marks[:1] == [now] else 0
        if mark != now:
            out += "\x1b[0m" * bool(now) + "\x1b[1m" * bool(mark)
            now = mark
        out += char
    return out + "\x1b[0m" * bool(now)
