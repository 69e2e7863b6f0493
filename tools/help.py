"""`hga help`: the topics of topics/, the help of a command, the user guide, the manual page.

A topic's text has one home, `topics/NAME.md`; docs/guide.md, docs/troubleshooting.md and docs/hga.1
are made from them by `make docs`, and a test compares.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hga.tools.config import close_match
from hga.tools.errors import OK, UsageError
from hga.tools.status import Status, allows_colour

if TYPE_CHECKING:
    from hga.tools.command_tree import Command

# Name: (other names, what it is about), in the order of the guide.
TOPICS: dict[str, tuple[tuple[str, ...], str]] = {
    "run": ((), "first run: a conversation, one answer, pipes"),
    "repl": (("chat", "commands"), "the commands of a conversation"),
    "pack": ((), "models: what can be read, packing once"),
    "long": (("documents", "context", "ctx"), "long documents and the context"),
    "attention": (("budget",), "what a token reads of a long context"),
    "memory": (("mem",), "memory budgets"),
    "io": (("disk",), "keys and values on disk, and how it is read"),
    "sessions": (("session",), "conversations that are kept"),
    "sampling": (("temperature", "schema"), "how tokens are chosen; JSON schemas"),
    "output": (("json", "streams", "markdown"), "what goes where, and the JSON figures"),
    "batch": ((), "one task over many files"),
    "serve": (("server",), "the OpenAI-compatible server"),
    "measure": (("speed", "benchmark"), "speed, loss and retrieval, measured"),
    "config": (("environment", "variables"), "configuration file and HGA_ variables"),
    "files": (("folders", "cache"), "files and folders"),
    "shell": (("completion", "man"), "completion for your shell, the manual page"),
    "exit-codes": (("codes", "errors"), "exit codes"),
    "troubleshooting": (("trouble", "problems"), "error messages: cause and remedy"),
}
_WIDEST = 100


def help_command(words: Sequence[str], values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    if values.man:
        from hga.tools.manual import manual_page

        sys.stdout.write(manual_page(_tree()))
    elif values.guide:
        sys.stdout.write(guide())
    elif not words:
        sys.stdout.write(_overview(_tree()))
    else:
        sys.stdout.write(_about(" ".join(words)))
    return OK


def topic_text(name: str) -> str:
    """The Markdown of a topic, by its own name."""
    return Path(__file__).with_name("topics").joinpath(f"{name}.md").read_text(encoding="utf-8")


def guide() -> str:
    """docs/guide.md: every topic but the troubles, which are a document of their own."""
    names = ["intro", *(name for name in TOPICS if name != "troubleshooting")]
    return "\n".join(topic_text(name) for name in names)


def _about(word: str) -> str:
    """The text of a topic, or the help of a command; raises UsageError where it is neither."""
    from hga.tools.topic_text import render

    for name, (others, _) in TOPICS.items():
        if word in (name, *others):
            text = render(topic_text(name), _width(), allows_colour(sys.stdout))
            command = f"\nAll flags: hga {name} --help\n" if _parser_of(name) is not None else ""
            return text + command
    parser = _parser_of(word)
    if parser is not None:
        return parser.format_help()
    offered = [*TOPICS, *(other for others, _ in TOPICS.values() for other in others)]
    offered += [each.name for each in _tree().walk() if each.words]
    raise UsageError(f"unknown topic {word!r}{close_match(word, offered)}; hga help lists them")


def _overview(tree: "Command") -> str:
    """The topics with a line each, and the commands by name: 23 lines, which fit a terminal."""
    width = max(map(len, TOPICS))
    lines = ["hga help TOPIC explains"]
    lines += [f"  {name:{width}}  {about}" for name, (_, about) in TOPICS.items()]
    lines += ["", "hga COMMAND --help has the flags of"]
    names = textwrap.wrap(" ".join(each.name for each in tree.children), 76)
    lines += [f"  {line}" for line in names]
    return "\n".join(lines) + "\n"


def _tree() -> "Command":
    from hga.tools.cli import build_parser
    from hga.tools.command_tree import read_tree

    return read_tree(build_parser())


def _parser_of(name: str) -> argparse.ArgumentParser | None:
    """The parser of a command such as `eval needle`."""
    from hga.tools.cli import build_parser

    parser: argparse.ArgumentParser = build_parser()
    for word in name.split():
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups or word not in groups[0].choices:
            return None
        parser = groups[0].choices[word]
    return parser


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST) if sys.stdout.isatty() else 80
