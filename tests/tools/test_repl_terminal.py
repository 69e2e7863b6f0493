"""The REPL on a terminal: line editing, Tab, Ctrl-C and Ctrl-D over a pseudo terminal."""

import os
import select
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
termios = pytest.importorskip("termios", reason="no pseudo-terminals on this system")
fcntl = pytest.importorskip("fcntl", reason="no pseudo-terminals on this system")

WAIT_S = 90


class Screen:
    """The user's side of a pseudo terminal that runs `hga`."""

    def __init__(self, words, environ):
        code = "import sys; from hga.tools.cli import main; sys.exit(main())"
        self._side, other = pty.openpty()
        termios.tcsetwinsize(other, (30, 100))
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


@pytest.fixture
def screen(smollm2_gguf, tmp_path):
    from hga.tools.pack import pack

    path = pack(smollm2_gguf, tmp_path / "demo.hga").path
    environ = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state")}
    opened = Screen(["run", str(path), "-c", "512", "-n", "6", "-s", "1"], environ)
    yield opened
    opened.close()


def test_a_session_at_the_keyboard(screen, tmp_path):
    banner = screen.see(">>>")
    assert "context 512 tokens" in banner and "threads" in banner
    screen.type("/ct\t")
    screen.see("x")
    screen.type("\r")
    screen.see("0 of 512 tokens used")
    screen.see(">>>")
    screen.type("Hello\r")
    screen.see("new tokens")
    screen.see(">>>")
    screen.type("\x03")
    screen.see("Ctrl-C again")
    screen.see(">>>")
    # The arrow brings the last line back.
    screen.type("\x1b[A")
    screen.see("Hello")
    # On a line with text Ctrl-C drops the line and no more.
    screen.type("\x03")
    screen.see(">>>")
    screen.type("\x03")
    screen.see("Ctrl-C again")
    screen.type("\x03")
    assert screen.child.wait(WAIT_S) == 130
    history = (tmp_path / "state" / "hga" / "history").read_text()
    assert "+/ctx" in history and "+Hello" in history


def test_control_d_leaves_with_0(screen):
    screen.see(">>>")
    screen.type("\x04")
    assert screen.child.wait(WAIT_S) == 0
