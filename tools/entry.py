"""Where the installed commands begin: Ctrl-C is in order before the rest of the package is loaded,
and after the last line of it has run.

Imports next to nothing, so that there is next to no time in which Python's own handler, and its
traceback, are what Ctrl-C gets.
"""

import contextlib
import os
import signal
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def main() -> int:
    """`hga`."""
    return _command("main")


def main_run() -> int:
    """`hga-run`."""
    return _command("main_run")


def main_pack() -> int:
    """`hga-pack`."""
    return _command("main_pack")


def _command(name: str) -> int:
    """Run a function of hga.tools.cli; the exit code."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        # Nothing is open yet that would have to be closed, and an exception that comes up while
        # modules are loaded may be swallowed, or taken for a module that is missing.
        signal.signal(signal.SIGINT, _leave)
    from hga.tools import cli

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code: int = getattr(cli, name)()
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)
    if ours:
        # All is said and done: what the interpreter still puts away is not worth a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(_INTERRUPTED)
