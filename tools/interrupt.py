"""Ctrl-C while a reply is produced: the first is a request that the loop polls, the second ends
the program.

Invariant: outside the `with` block the process's own SIGINT handler is in place.
"""

import signal
import threading
from types import FrameType, TracebackType


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C was pressed again before the first had taken effect."""


class Interrupt:
    """`requested` turns true at the first SIGINT; a second raises SecondInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._installed = False

    def __enter__(self) -> "Interrupt":
        self.requested = False
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise SecondInterrupt
        self.requested = True
