"""Replies with Markdown on a real terminal of 80 columns and 24 lines, by a scripted model."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("pty", reason="no pseudo-terminals on this system")

_SGR = re.compile("\x1b\\[[0-9;]*m")
REPLY = """\
# Heat pumps

A **heat pump** moves heat with `2.5 kW` of *work*, and 2 * 3 stays.

- first: **a**
- second

```python
def cop(*args):
    return args[0] ** 2  # **no**
```
Hostile: \x1b[2J\x1b]0;owned\x07 and \x9b1m end.
"""
REPLY += "".join(f"{i}. line {i} of a reply longer than the screen\n" for i in range(1, 31))
REPLY += "done `"
SHOWN = REPLY.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\x9b", "\\x9b")

CODE = """\
import contextlib, importlib.util, os, sys
from pathlib import Path
from hga.tools import cli, run
spec = importlib.util.spec_from_file_location("fakes", os.environ["FAKES"])
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
engine = fakes.FakeEngine([fakes.says(os.environ["REPLY"])] * 3, ctx=20000)
engine.model.source, engine.path, engine.on_disk = {"name": "fake"}, Path("fake"), False
@contextlib.contextmanager
def opened(*given):
    yield engine
run.open_engine = opened
sys.exit(cli.main())
"""


@pytest.fixture
def start(open_screen, tmp_path):
    """start(words, **variables) -> a screen at its first prompt."""

    def go(*words, **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HGA_")}
        kept.pop("NO_COLOR", None)
        environ = {**kept, "TERM": "xterm-256color", "XDG_STATE_HOME": str(tmp_path / "state"),
                   "XDG_CONFIG_HOME": str(tmp_path), "REPLY": REPLY, "LC_ALL": "C.UTF-8",
                   "FAKES": str(Path(__file__).with_name("conftest.py")), **variables}  # fmt: skip
        screen = open_screen(["run", *words], environ, code=CODE, size=(24, 80))
        screen.see(">>>")
        return screen

    return go


def ask(screen):
    """What the terminal got for one question, from the reply's first to its last character."""
    screen.type("hi\r")
    raw = screen.see("done `") + "done `"
    # The line editor wrote what comes before.
    return raw[re.search("(\x1b\\[[0-9;]*m)?# ", raw).start() :]


def text_of(raw):
    """Characters without styles, with line feeds as the program wrote them."""
    return _SGR.sub("", raw).replace("\r\n", "\n")


def test_a_reply_is_styled_and_nothing_else(start):
    screen = start()
    shown = ask(screen)
    # No cursor is moved and nothing is erased: what scrolled away is never written again.
    assert "\x1b" not in _SGR.sub("", shown)
    assert text_of(shown) == SHOWN
    assert shown.startswith("\x1b[1;36m# ")
    assert "\x1b[1mh" in shown and "\x1b[32m2" in shown and "\x1b[3mw" in shown
    assert "\x1b[36m-" in shown and "\x1b[32md" in shown
    code = shown[shown.index("```") : shown.index("Hostile")]
    assert "\x1b[1m" not in code, "code is not emphasised"
    screen.see(">>>")
    screen.type("/set markdown off\r")
    screen.see("markdown off")
    screen.see(">>>")
    shown = ask(screen)
    assert "\x1b" not in shown and shown.replace("\r\n", "\n") == SHOWN


@pytest.mark.parametrize(
    ("words", "variables"),
    [(["--markdown", "off"], {}), ([], {"HGA_MARKDOWN": "off"}), ([], {"NO_COLOR": "1"}),
     (["--quiet"], {}), ([], {"TERM": "dumb"})],
)  # fmt: skip
def test_plain_text_where_styles_are_declined(start, words, variables):
    shown = ask(start(*words, **variables))
    assert "\x1b" not in shown and shown.replace("\r\n", "\n") == SHOWN
