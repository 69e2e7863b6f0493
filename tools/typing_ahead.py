"""The keyboard while a reply is written: what is typed is kept for the next prompt, and not echoed
into the reply.

Invariant: outside the block, and while the program is stopped (Ctrl-Z), the terminal is as it was
found. Line buffering and Ctrl-C stay as they are, so that nothing typed is lost.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from hga.tools.status import is_terminal


@contextlib.contextmanager
def hidden_typing() -> Iterator[None]:
    """While the block runs, the terminal that standard input is does not echo."""
    keyboard = _Keyboard.find()
    if keyboard is None:
        yield
        return
    keyboard.hide()
    try:
        with _stops(keyboard):
            yield
    finally:
        keyboard.show()


class _Keyboard:
    """The terminal of standard input, as it was found. Windows has another kind."""

    _found: list[Any]

    def __init__(self, fd: int) -> None:
        if sys.platform == "win32":
            return
        import termios

        self._termios, self._fd = termios, fd
        self._found = termios.tcgetattr(fd)

    @classmethod
    def find(cls) -> "_Keyboard | None":
        """None where there is no terminal, or none whose echo can be turned off."""
        if sys.platform == "win32":
            return None
        try:
            return cls(sys.stdin.fileno()) if is_terminal(sys.stdin) else None
        except (ImportError, OSError, ValueError):
            return None
        except Exception as error:
            # termios.error is no OSError, and its module is not on every platform.
            if type(error).__module__ == "termios":
                return None
            raise

    def hide(self) -> None:
        """No echo from here on."""
        if sys.platform == "win32":
            return
        quiet = list(self._found)
        quiet[3] &= ~self._termios.ECHO
        self._set(quiet)

    def show(self) -> None:
        """As it was found."""
        self._set(self._found)

    def _set(self, attributes: list[Any]) -> None:
        if sys.platform == "win32":
            return
        # A program in the background that changes the terminal would be stopped for it.
        with contextlib.suppress(OSError, self._termios.error):
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                # At once, and with what was typed left where it is.
                self._termios.tcsetattr(self._fd, self._termios.TCSANOW, attributes)


@contextlib.contextmanager
def _stops(keyboard: _Keyboard) -> Iterator[None]:
    """While the block runs, Ctrl-Z gives the terminal back before the program stops."""
    if sys.platform == "win32":
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        keyboard.show()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def go_on(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTSTP, stop)
        keyboard.hide()

    before = [(n, signal.getsignal(n)) for n in (signal.SIGTSTP, signal.SIGCONT)]
    if before[0][1] is not signal.SIG_DFL:
        # A shell without job control: nobody could continue it.
        yield
        return
    signal.signal(signal.SIGCONT, go_on)
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
