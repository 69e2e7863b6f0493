"""Typing while a reply is written: not echoed into it, not lost, and the terminal as it was found
whenever somebody else has it."""

import os
import signal

import pytest

pytest.importorskip("pty", reason="no pseudo-terminals on this system")

WAIT_S = 90
# A shell's part: a job of its own in the foreground, and what the terminal is like when the job has
# stopped or ended.
JOB = """
import os, signal, sys, termios, time
from hga.tools.typing_ahead import hidden_typing
def echoes():
    return bool(termios.tcgetattr(0)[3] & termios.ECHO)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    try:
        with hidden_typing():
            print("echo inside", echoes(), flush=True)
            for _ in range(2000):
                time.sleep(0.01)
    except KeyboardInterrupt:
        print("echo after Ctrl-C", echoes(), flush=True)
    os._exit(0)
os.waitpid(pid, os.WUNTRACED)
os.tcsetpgrp(0, os.getpid())
print("echo when it stopped", echoes(), flush=True)
os.tcsetpgrp(0, pid)
os.kill(pid, signal.SIGCONT)
time.sleep(0.3)
print("echo when it goes on", echoes(), flush=True)
os.waitpid(pid, 0)
print("the end", flush=True)
"""
BLOCK = """
import os, signal, sys, termios
from hga.tools.interrupt import endings
from hga.tools.typing_ahead import hidden_typing
def echoes():
    return bool(termios.tcgetattr(0)[3] & termios.ECHO)
try:
    with endings(), hidden_typing():
        print("inside", echoes())
        if sys.argv[1] == "dies":
            raise ValueError
        os.kill(os.getpid(), int(sys.argv[1]))
except BaseException as error:
    print("after", type(error).__name__, echoes())
"""


def environ(tmp_path):
    return {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("dies", "ValueError"),
        (int(signal.SIGINT), "KeyboardInterrupt"),
        (int(signal.SIGTERM), "Terminated"),
    ],
)
def test_however_the_block_ends(open_screen, tmp_path, how, error):
    screen = open_screen([str(how)], environ(tmp_path), code=BLOCK)
    screen.see("inside False")
    screen.see(f"after {error} True")


def test_the_terminal_of_a_stopped_program_is_as_it_was(open_screen, tmp_path):
    screen = open_screen([], environ(tmp_path), code=JOB)
    screen.see("echo inside False")
    screen.type("\x1a")
    screen.see("echo when it stopped True")
    screen.see("echo when it goes on False")
    screen.type("\x03")
    screen.see("echo after Ctrl-C True")
    screen.see("the end")


def test_what_is_typed_into_a_reply_waits_for_the_prompt(smollm2_gguf, open_screen, tmp_path):
    from hga.tools.pack import pack

    path = pack(smollm2_gguf, tmp_path / "demo.hga").path
    words = ["run", str(path), "-c", "512", "-n", "150", "-s", "1", "--markdown", "off"]
    screen = open_screen(words, environ(tmp_path))
    screen.see(">>>")
    screen.type("Tell a long story about zebras.\r")
    # The line itself, then the beginning of the reply.
    screen.see("zebras.")
    screen.see(" the ")
    screen.type("/ctx")
    reply = screen.see("new tokens")
    assert "/ctx" not in reply
    screen.see(">>>")
    screen.see("/ctx")
    screen.type("\r")
    screen.see("tokens used")
    screen.see(">>>")
    screen.type("\x04")
    assert screen.child.wait(WAIT_S) == 0
