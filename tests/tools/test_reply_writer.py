"""Replies on standard output: bytes elsewhere, safe and styled text on a terminal."""

import io
import json
import sys

import pytest

from hga.runtime.sampler import SamplerOptions
from hga.tools import errors
from hga.tools.conversation import Conversation
from hga.tools.reply_writer import ReplyWriter, json_line, shown
from hga.tools.run import Talk
from hga.tools.status import Status

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\x7f\tc\rd\r\n**e**\x08"
SHOWN = "a\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202eb\\x7f\tc\\rd\r\n**e**\\x08"


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__(newline="")
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def output(monkeypatch):
    """output(terminal) makes standard output one, or a pipe."""

    def make(terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return make


def write(pieces, styled=False):
    with ReplyWriter(styled) as out:
        for piece in pieces:
            out.write(piece)


@pytest.mark.parametrize("pieces", [[HOSTILE], list(HOSTILE)])
def test_a_pipe_gets_every_byte_and_a_terminal_no_control_character(output, pieces):
    pipe = output(False)
    write(pieces)
    assert pipe.getvalue() == HOSTILE + "\n"
    terminal = output(True)
    write(pieces)
    assert terminal.getvalue() == SHOWN + "\n"


def test_figures_as_json_are_harmless_and_the_same_value():
    line = json_line({"text": HOSTILE, "é": "日本"})
    assert json.loads(line) == {"text": HOSTILE, "é": "日本"} and "日本" in line
    assert errors.printable(line) == line and line.endswith("}\n")


def test_other_output_is_made_safe_on_a_terminal_alone(output):
    output(False)
    assert shown(HOSTILE) == HOSTILE
    output(True)
    assert shown(HOSTILE) == SHOWN


def test_the_last_line_is_ended_once(output):
    for terminal in (False, True):
        for text, expected in (("", ""), ("a\n", "a\n"), ("a", "a\n"), ("a\n\n", "a\n\n")):
            stream = output(terminal)
            write(list(text), styled=terminal)
            assert stream.getvalue() == expected
    stream = output(True)
    write(["a", "\r"])
    assert stream.getvalue() == "a\\r\n"


def test_what_was_held_back_is_written_however_the_reply_ends(output):
    stream = output(True)
    with pytest.raises(KeyboardInterrupt), ReplyWriter(True) as out:
        out.write("a `")
        assert stream.getvalue() == "a "
        raise KeyboardInterrupt
    assert stream.getvalue() == "a `\n"


@pytest.fixture
def talk(fake_engine, say):
    """talk(…) -> a Talk whose one reply is `**x**`."""

    def make(*, quiet=False, markdown="auto", chat=True):
        engine = fake_engine([say("**x**")], template=chat)
        conversation = Conversation(engine, engine.session(), SamplerOptions(), chat=chat)
        return Talk(
            engine, conversation, False, Status(quiet=quiet, stream=io.StringIO()), markdown
        )

    return make


STYLED, PLAIN = "\x1b[2m**\x1b[0m\x1b[1mx\x1b[0m\x1b[2m**\x1b[0m\n", "**x**\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, STYLED),
        ({"markdown": "off"}, PLAIN),
        ({"quiet": True, "markdown": "on"}, PLAIN),
        ({"chat": False}, PLAIN),
        ({"chat": False, "markdown": "on"}, STYLED),
    ],
)
def test_who_decides_about_styles(output, talk, options, expected):
    stream = output(True)
    talk(**options).turn("hi")
    assert stream.getvalue() == expected


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_variables_that_forbid_styles(output, talk, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = output(True)
    talk(markdown="on").turn("hi")
    assert stream.getvalue() == PLAIN


def test_a_pipe_is_never_styled(output, talk):
    stream = output(False)
    talk(markdown="on").turn("hi")
    assert stream.getvalue() == PLAIN


def test_json_is_not_styled_unless_asked_for(output, talk):
    output(True)
    for markdown, styled in (("auto", False), ("on", True)):
        made = talk(markdown=markdown)
        made.conversation._grammar = object()
        assert made.styled is styled
