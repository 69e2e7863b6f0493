"""Ctrl-C before the command line is loaded and after it has run: an exit code and no traceback."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals to itself")

# Sends itself Ctrl-C before a module is imported, or when all is done.
PROGRAM = """
import atexit, os, signal, sys

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            interrupt()

sys.meta_path.insert(0, Watcher())
from hga.tools.entry import main
sys.argv[1:] = ["--version"]
code = main()
if {late}:
    interrupt()
sys.exit(code)
"""


def run(module="", late=False, **options):
    code = PROGRAM.format(module=module, late=late)
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("module", ["hga.tools.cli", "argparse", "hga.tools.flags"])
def test_while_the_command_line_is_loaded(module):
    done = run(module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_after_the_last_line():
    done = run(late=True)
    assert done.returncode == -signal.SIGINT and done.stdout.startswith("hga ")
    assert done.stderr == ""


def test_an_interrupt_that_is_ignored_stays_ignored():
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    done = run("hga.tools.cli", late=True, preexec_fn=ignore)
    assert done.returncode == 0 and done.stdout.startswith("hga ") and done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_while_a_class_is_made(number):
    """Python turns what is raised there into a RuntimeError."""
    code = f"""
import os, sys
from hga.tools import cli
class Attribute:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {number:d})
def make(values, status):
    class Late:
        attribute = Attribute()
cli._cmd_doctor = make
sys.exit(cli.main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + number and done.stdout == ""
    assert done.stderr in ("interrupted\n", "ended by a signal\n")
