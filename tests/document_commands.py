"""The commands that documents show: code blocks and `spans`, split as a shell would."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = (
    "hga", "hga-run", "hga-pack", "make", "python", "pip", "man", "echo", "curl", "export", "eval",
)  # fmt: skip
_INLINE = re.compile(r"`((?:hga(?:-run|-pack)?|make|python|pip) [^`]+|hga-run|hga-pack)`")
_OPERATORS = {"|", "<", ">", ">>", "||", "&&", ";"}


@dataclass(frozen=True)
class Block:
    """A block of code and where it stands."""

    where: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list["Shown"]:
        """The lines that are typed: those after `$ `, which go on where they end with a backslash;
        without any, all lines of a block of which one begins with one of PROGRAMS."""
        if any(line.startswith("$ ") for line in self.lines):
            typed, going_on = [], False
            for line in self.lines:
                if going_on:
                    typed[-1] += line.strip()
                elif line.startswith("$ "):
                    typed.append(line[2:])
                going_on = (going_on or line.startswith("$ ")) and line.endswith("\\")
                if going_on:
                    typed[-1] = typed[-1].removesuffix("\\")
        elif any(_first_word(line) in PROGRAMS for line in self.lines):
            typed = [line for line in self.lines if line.strip() and not line.startswith("#")]
        else:
            return []
        return [Shown(self.where, line) for line in typed]


@dataclass(frozen=True)
class Shown:
    """One line of a shell and where it stands."""

    where: str
    text: str

    @property
    def stages(self) -> list["Stage"]:
        """The programs of its pipeline; `$(…)` counts as one of its own."""
        text = re.sub(r'^eval "\$\((.*)\)"', r"\1 | eval", self.text)
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>;&")
        lexer.whitespace_split = True
        stages, words, stdin = [], [], None
        tokens = list(lexer)
        while tokens:
            token = tokens.pop(0)
            if token in ("<", ">", ">>"):
                name = tokens.pop(0)
                stdin = name if token == "<" else stdin
            elif token in _OPERATORS:
                stages.append(Stage(tuple(words), stdin))
                words, stdin = [], None
            else:
                words.append(token)
        return [*stages, Stage(tuple(words), stdin)]


@dataclass(frozen=True)
class Stage:
    """A program with its words; `stdin` is the file that it reads, if one is named."""

    words: tuple[str, ...]
    stdin: str | None = None


def _first_word(line: str) -> str:
    return line.split(" ")[0]


def blocks(path: Path) -> list[Block]:
    """The code of a Markdown document, indented by four or fenced; unless it is a transcript with
    `$ `, an empty line begins another block."""
    found, code, fenced, before = [], [], False, ""
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and (code or before.strip()[:1] in ("", "#"))):
            code.append(line if fenced else line[4:])
        elif code and not line.strip():
            code.append("")
        elif code:
            found.append((number - len(code), code))
            code = []
        before = line
    if code:
        found.append((number - len(code), code))
    return [
        Block(f"{path.name}:{number + first}", tuple(line.rstrip() for line in part))
        for number, lines in found
        for first, part in _paragraphs(lines)
    ]


def _paragraphs(lines: list[str]) -> list[tuple[int, list[str]]]:
    if any(line.startswith("$ ") for line in lines):
        return [(0, lines)]
    found: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        if number == 0 or not lines[number - 1].strip():
            found.append((number, []))
        found[-1][1].append(line)
    return found


def inline(path: Path) -> list[Shown]:
    """The commands in running text and in tables; headings quote messages."""
    return [
        Shown(f"{path.name}:{number}", text.replace("\\|", "|"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if not line.startswith(("    ", "#"))
        for text in _INLINE.findall(line)
    ]
