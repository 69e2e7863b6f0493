"""The REPL on a terminal: line editing, Tab, Ctrl-C and Ctrl-D over a pseudo terminal."""

import os

import pytest

pytest.importorskip("pty", reason="no pseudo-terminals on this system")

WAIT_S = 90


@pytest.fixture
def screen(smollm2_gguf, tmp_path, open_screen):
    from hga.tools.pack import pack

    path = pack(smollm2_gguf, tmp_path / "demo.hga").path
    environ = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state")}
    return open_screen(["run", str(path), "-c", "512", "-n", "6", "-s", "1"], environ)


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
