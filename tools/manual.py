"""The manual page, in roff, from the tree of commands and the help topics.

Flags that several commands take in the same words stand once, in a section of their own. The page
has no date, so that the same source gives the same page.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from hga.tools.command_tree import Command, Operand
from hga.tools.flag import Flag
from hga.tools.help import topic_text
from hga.tools.topic_text import Block, parse, spans

_SECTIONS = (
    ("EXIT STATUS", "exit-codes"),
    ("CONVERSATIONS", "repl"),
    ("OUTPUT", "output"),
    ("CONFIGURATION", "config"),
    ("FILES", "files"),
)


def manual_page(tree: Command) -> str:
    """hga(1)."""
    commands = [each for each in tree.walk() if each.words and not each.children]
    shared = _shared(commands)
    lines = [
        f'.TH HGA 1 "" "hga {version("hga")}" "User Commands"',
        # Left-aligned and not hyphenated: what is typed must be found by a search.
        ".ad l",
        ".nh",
        ".SH NAME",
        f"hga \\- {_escape(_lower(tree.about).rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(tree),
        ".SH DESCRIPTION",
        "MODEL is a GGUF file, a folder of safetensors, a packed file, or",
        ".B demo",
        "or",
        ".BR gemma ,",
        "which are fetched by name. A checkpoint is packed once, and opened at once from then on.",
        ".PP",
        ".B hga help",
        "lists topics that are explained,",
        ".B hga help \\-\\-guide",
        "prints all of them.",
        ".SH COMMANDS",
    ]
    for command in commands:
        lines += _command(command, shared)
    lines += [".SH SHARED OPTIONS", "Taken by several commands; each command lists which."]
    for flag in shared:
        lines += _flag(flag)
    for title, topic in _SECTIONS:
        lines.append(f".SH {title}")
        lines += _blocks(parse(topic_text(topic))[1:])
    lines.append(".SH ENVIRONMENT")
    lines += _variables(commands)
    lines += [".SH SEE ALSO", "docs/guide.md and docs/troubleshooting.md of the project, or"]
    lines += [".B hga help", "and", '.BR "hga help troubleshooting" .']
    return "\n".join(lines) + "\n"


def _shared(commands: Iterable[Command]) -> list[Flag]:
    """Flags that two commands or more take in the same words."""
    uses = Counter(flag for command in commands for flag in command.flags)
    return [flag for flag, n in uses.items() if n > 1]


def _synopsis(tree: Command) -> Iterator[str]:
    for command in tree.children:
        words = f"hga {command.name}"
        if command.children:
            words += " " + "|".join(each.words[-1] for each in command.children)
        yield f".B {_escape(words)}"
        yield _escape(" ".join(["[OPTION]...", *map(_shape, command.operands)]))
        yield ".br"


def _shape(operand: Operand) -> str:
    shape = operand.metavar + ("..." if operand.repeated else "")
    return f"[{shape}]" if operand.optional else shape


def _command(command: Command, shared: list[Flag]) -> Iterator[str]:
    shapes = " ".join(map(_shape, command.operands))
    yield f".SS {_escape(f'hga {command.name} {shapes}'.strip())}"
    yield _escape(command.about[0].upper() + command.about[1:] + ".")
    for operand in command.operands:
        yield ".TP"
        yield f"\\fI{_escape(operand.metavar)}\\fR"
        yield _text(operand.help)
    for flag in command.flags:
        if flag not in shared:
            yield from _flag(flag)
    common = [_longest(flag) for flag in command.flags if flag in shared]
    if common:
        yield ".PP"
        yield f"Shared options: {', '.join(map(_bold, common))}."


def _flag(flag: Flag) -> Iterator[str]:
    names = ", ".join(map(_bold, flag.options))
    value = f" \\fI{_escape(flag.metavar)}\\fR" if flag.metavar else ""
    yield ".TP"
    yield names + value
    yield _text(flag.help.replace("%%", "%"))


def _longest(flag: Flag) -> str:
    return next(each for each in flag.options if each.startswith("--"))


def _variables(commands: Iterable[Command]) -> Iterator[str]:
    """Every variable, with the flag that it stands for and the commands that read it."""
    options: dict[str, list[str]] = {}
    users: dict[str, list[str]] = {}
    for command in commands:
        for flag in command.flags:
            known = options.setdefault(flag.name, [])
            known += [each for each in flag.options if each.startswith("--") and each not in known]
            users.setdefault(flag.name, []).append(command.name)
    everywhere = max(map(len, users.values()))
    for name in sorted(options):
        who = "all" if len(users[name]) == everywhere else ", ".join(users[name])
        yield ".TP"
        yield _bold(f"HGA_{name.upper()}")
        yield _escape(f"{', '.join(options[name])} ({who})")


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        yield from _RENDERERS[block.kind](block)


def _heading(block: Block) -> Iterator[str]:
    yield f".SS {_escape(block.text)}"


def _paragraph(block: Block) -> Iterator[str]:
    yield ".PP"
    yield _text(block.text)


def _item(block: Block) -> Iterator[str]:
    yield ".IP \\(bu 2"
    yield _text(block.text)


def _code(block: Block) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf")
    yield from (_line(_escape(line)) for line in block.lines)
    yield from (".fi", ".RE")


def _table(block: Block) -> Iterator[str]:
    for row in block.rows[1:]:
        yield ".TP"
        yield " \\(en ".join(_text(cell) for cell in row[:-1] if cell)
        yield _text(row[-1])


_RENDERERS: dict[str, Callable[[Block], Iterator[str]]] = {
    "heading": _heading,
    "paragraph": _paragraph,
    "item": _item,
    "code": _code,
    "table": _table,
}


def _text(text: str) -> str:
    parts = [_escape(part) if kind == "plain" else _bold(part) for kind, part in spans(text)]
    return _line("".join(parts))


def _bold(text: str) -> str:
    return f"\\fB{_escape(text)}\\fR"


def _line(text: str) -> str:
    """An escaped line that is no request, even where it begins with a full stop."""
    return f"\\&{text}" if text.startswith(".") else text


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha").replace("`", "\\(ga")
    text = text.replace("'", "\\(aq")
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
