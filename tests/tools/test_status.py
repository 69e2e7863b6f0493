"""Notices and bars: what reaches which terminal."""

import io

import pytest

from hga.tools import status as status_module
from hga.tools.status import Status, rate


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(status_module, "_REFRESH_S", 0.0)
    return Terminal()


def test_a_bar_shows_figures_and_goes_when_it_is_full(terminal):
    status = Status(stream=terminal)
    with status.bar("reading", "tokens") as report:
        report(512, 2048)
        report(1024, 2048)
        assert "reading" in terminal.getvalue() and "1,024 of 2,048 tokens" in terminal.getvalue()
        assert "left" in terminal.getvalue()
        report(2048, 2048)
        length = len(terminal.getvalue())
        terminal.write("the reply")
    assert terminal.getvalue()[length:] == "the reply", "a bar must not draw over what follows"


def test_a_short_job_draws_nothing(terminal):
    with Status(stream=terminal).bar("reading", "bytes", delay_s=60) as report:
        report(1, 2)
        report(2, 2)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("how", ["file", "dumb", "quiet"])
def test_no_bars_but_on_a_terminal(terminal, monkeypatch, how):
    stream = io.StringIO() if how == "file" else terminal
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    status = Status(stream=stream, quiet=how == "quiet")
    with status.bar("reading", "bytes") as report:
        report(1, 2)
    assert stream.getvalue() == "" and not status.shows_bars


def test_colour_only_where_it_is_wanted(terminal, monkeypatch):
    Status(stream=terminal).faint("x")
    assert terminal.getvalue() == "\x1b[2mx\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Status(stream=plain).faint("x")
    assert plain.getvalue() == "x\n"


def test_closed_standard_error_is_no_failure():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    Status(stream=Closed()).notice("x")


def test_rates_of_nothing_do_not_apply():
    assert rate(0, 1.0) is None and rate(5, 0.0) is None and rate(6, 2.0) == 3.0


def test_a_name_of_somebody_elses_steers_no_terminal():
    stream = io.StringIO()
    status = Status(verbose=1, stream=stream)
    for tell in (status.notice, status.detail, status.say):
        tell("packing a\x1b[31m\x9b.gguf\nand\tmore")
    assert stream.getvalue() == 3 * "packing a\\x1b[31m\\x9b.gguf\nand more\n"
