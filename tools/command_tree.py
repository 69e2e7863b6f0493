"""The command line as a tree of plain data, read off the argparse parser: what completion scripts
and the manual page are written from, so that neither can name a flag that does not exist."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from hga.tools.flag import Flag


@dataclass(frozen=True, slots=True)
class Operand:
    """A word that is no option: its name in the usage, its help, whether it may be left out and
    repeated, and the words it is one of, if there are such."""

    metavar: str
    help: str
    optional: bool
    repeated: bool
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """`words` follow the program's name; a command of commands has `children`."""

    words: tuple[str, ...]
    about: str
    flags: tuple[Flag, ...]
    operands: tuple[Operand, ...]
    children: tuple["Command", ...]

    @property
    def name(self) -> str:
        """`eval needle`."""
        return " ".join(self.words)

    def walk(self) -> Iterator["Command"]:
        """This command and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def read_tree(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Command:
    """The tree of a parser that `hga.tools.cli.build_parser` made; hidden flags are left out."""
    operands: list[Operand] = []
    children: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            children = [read_tree(each, (*words, name)) for name, each in action.choices.items()]
        elif not action.option_strings:
            operands.append(
                Operand(
                    metavar=str(action.metavar or action.dest),
                    help=action.help or "",
                    optional=action.nargs in ("?", "*"),
                    repeated=action.nargs in ("+", "*"),
                    words=tuple(action.choices or ()),
                )
            )
    # A command of commands may have the flags of the one that runs by default, and refuses them.
    flags: tuple[Flag, ...] = () if children else parser.get_default("flags") or ()
    return Command(
        words, parser.description or "", tuple(f for f in flags if not f.hidden), tuple(operands),
        tuple(children),
    )  # fmt: skip
