"""A pseudo terminal with a program on the other side, for tests at the keyboard."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time

WAIT_S = 90
CODE = "import sys; from hga.tools.cli import main; sys.exit(main())"


class Screen:
    """The user's side of a pseudo terminal that runs `hga`, or other Python code."""

    def __init__(self, words, environ, code=CODE, size=(30, 100)):
        self._side, other = pty.openpty()
        termios.tcsetwinsize(other, size)
        self.child = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=other, stdout=other, stderr=other, env=environ, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self._text = ""

    def see(self, wanted):
        """Wait for text on the screen after what was seen before; returns what came until then."""
        end = time.monotonic() + WAIT_S
        while wanted not in self._text:
            assert time.monotonic() < end, f"no {wanted!r} in {self._text!r}"
            if not select.select([self._side], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(self._side, 65536)
            except OSError:
                raise AssertionError(f"ended before {wanted!r}: {self._text!r}") from None
            if b"\x1b[6n" in data:
                # A terminal answers where its cursor is.
                os.write(self._side, b"\x1b[1;1R")
            self._text += data.decode("utf-8", "replace")
        seen, _, self._text = self._text.partition(wanted)
        return seen

    def type(self, text):
        os.write(self._side, text.encode())

    def close(self):
        self.child.kill()
        self.child.wait()
        os.close(self._side)
