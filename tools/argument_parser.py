"""argparse as this program needs it: errors as one line, and output that is written or fails."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hga.tools import errors
from hga.tools.config import close_match
from hga.tools.status import abandon, flush_output


class Parser(argparse.ArgumentParser):
    """argparse with its errors as one line, and the nearest word where one of several was meant."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            hint = close_match(str(value), known) or f": expected {', '.join(known)}"
            raise argparse.ArgumentError(action, f"invalid choice {str(value)!r}{hint}")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
            return
        # argparse passes over what cannot be written.
        try:
            file.write(message)
            flush_output()
        except OSError as error:
            error.filename = errors.STDOUT
            abandon(file)
            raise

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message}; see {self.prog} --help")


class Version(argparse.Action):
    """--version, reading the installed version only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> NoReturn:
        from importlib.metadata import version

        parser._print_message(f"hga {version('hga')}\n", sys.stdout)
        parser.exit()
