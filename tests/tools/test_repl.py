"""The loop, its commands and its refusals, over a fake engine and scripted lines."""

import errno
import io
import os
import signal

import pytest

from hga.runtime.sampler import SamplerOptions
from hga.tools import repl as repl_module
from hga.tools.conversation import Conversation
from hga.tools.repl import PlainLines, Repl, complete
from hga.tools.repl_commands import COMMANDS, SETTABLE
from hga.tools.run import Talk
from hga.tools.status import Status

pytestmark = pytest.mark.usefixtures("own_folders")


class Script:
    """A line source; an exception class among the lines is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.prompts = []

    def read(self, prompt):
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def run_lines(fake_engine, capsys):
    """run_lines(lines, replies) -> (exit code, stdout, stderr, conversation)."""

    def run(lines, replies=(), **options):
        engine = fake_engine(replies, **options)
        conversation = Conversation(
            engine,
            engine.session(),
            SamplerOptions(),
            chat=engine.template is not None,
        )
        status = Status()
        talk = Talk(engine, conversation, False, status)
        code = Repl(talk, Script(*lines), status).loop()
        out, err = capsys.readouterr()
        return code, out, err, conversation

    return run


def test_text_goes_to_standard_output_and_figures_elsewhere(run_lines, say):
    code, out, err, _ = run_lines(["hi", "/exit"], [say("hello")])
    assert (code, out) == (0, "hello\n")
    assert "new tokens" in err and "hello" not in err


def test_end_of_input_and_every_way_to_leave(run_lines):
    for line in ("/exit", "/quit", "/bye"):
        assert run_lines([line, "never read"])[0] == 0
    assert run_lines([])[0] == 0


def test_two_interrupts_in_a_row_leave_with_130(run_lines, say):
    assert run_lines([KeyboardInterrupt, KeyboardInterrupt])[0] == 130
    code, out, _, _ = run_lines([KeyboardInterrupt, "hi", KeyboardInterrupt, "/exit"], [say("x")])
    assert (code, out) == (0, "x\n")


def test_interrupted_reply_and_another_interrupt_leave(run_lines, say, monkeypatch):
    from hga.tools import run as run_module

    class Pressed(run_module.Interrupt):
        def __enter__(self):
            entered = super().__enter__()
            self.requested = True
            return entered

    monkeypatch.setattr(run_module, "Interrupt", Pressed)
    code, _, err, _ = run_lines(["hi", KeyboardInterrupt], [say("hello")])
    assert code == 130 and "interrupted" in err


def test_ctrl_c_just_after_a_reply_is_a_first_one(run_lines, say, monkeypatch):
    monkeypatch.setattr(Talk, "_tell", lambda *given: signal.raise_signal(signal.SIGINT))
    code, out, err, _ = run_lines(["hi", "/exit"], [say("hello")])
    assert (code, out) == (0, "hello\n") and "Ctrl-C again" in err


def test_ctrl_c_twice_within_a_reply_leaves_with_130(run_lines, say, monkeypatch):
    def press_twice(self, *given):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Conversation, "_generate", press_twice)
    assert run_lines(["hi", "never read"], [say("hello")])[0] == 130


def test_triple_quotes_hold_several_lines(run_lines, say):
    _, _, _, conversation = run_lines(['"""one', "two", 'three"""'], [say("x")])
    assert conversation.undo() == "one\ntwo\nthree"
    _, _, _, conversation = run_lines(['"""', "one", "", "two", '"""'], [say("x")])
    assert conversation.undo() == "one\n\ntwo"
    _, _, _, conversation = run_lines(['"""one line"""'], [say("x")])
    assert conversation.undo() == "one line"


def test_unknown_command_names_the_nearest(run_lines):
    code, out, err, conversation = run_lines(["/regne", "/exit"])
    assert (code, out) == (0, "") and "/regen" in err
    assert conversation.n_turns == 0


def test_a_space_makes_a_message_of_a_slash(run_lines, say):
    _, out, _, conversation = run_lines([" /etc"], [say("x")])
    assert out == "x\n" and conversation.undo() == " /etc"


def test_help_lists_every_command_and_no_other(run_lines):
    _, _, err, _ = run_lines(["/help"])
    for command in COMMANDS:
        assert command.usage in err
    assert len(err.splitlines()) < 23 and max(map(len, err.splitlines())) < 80


def test_clear_undo_regen(run_lines, say):
    code, out, err, conversation = run_lines(
        ["a", "/regen", "/undo", "/undo", "b", "/clear", "/regen"],
        [say("one"), say("two"), say("three")],
    )
    assert code == 0 and out == "one\ntwo\nthree\n"
    assert conversation.n_turns == 0
    assert err.count("there is no turn yet") == 2
    assert "forgotten: a" in err


def test_set_checks_key_and_value(run_lines):
    lines = ["/set temp 0.3", "/set top-k 5", "/set temp hot", "/set tmep 1", "/set", "/set seed 4"]
    _, _, err, conversation = run_lines(lines)
    sampling = conversation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.3, 5, 4)
    assert "temp: 'hot' is not a number" in err and "did you mean temp?" in err
    assert f"keys: {', '.join(SETTABLE)}; /show has their values" in err
    _, _, err, conversation = run_lines(["/set attention dense", "/set budget 2%", "/set budget x"])
    assert (conversation.session.attention, conversation.session.budget) == ("dense", "2%")
    assert "invalid budget" in err
    assert {"temp", "predict", "attention", "budget", "seed"} <= set(SETTABLE)


def test_markdown_is_set_and_shown(run_lines):
    _, _, err, _ = run_lines(["/show", "/set markdown on", "/set markdown maybe", "/show"])
    assert "markdown        auto, replies not styled" in err
    assert "markdown on, but nothing is styled" in err and "expected auto, on, off" in err
    assert "markdown        on, replies not styled" in err


def test_read_counts_before_it_spends(run_lines, say, tmp_path):
    path = tmp_path / "a note.txt"
    path.write_text("words of the note")
    lines = [f'/read "{path}"', "what is it?"]
    _, _, err, conversation = run_lines(lines, [say("x")])
    assert "tokens of" in err and conversation.undo() == "words of the note\n\nwhat is it?"
    _, _, err, conversation = run_lines([f"/read {path}", "/read", "q"], [say("x")])
    assert "dropped" in err and conversation.undo() == "q"


def test_read_refuses_what_is_not_a_readable_text(run_lines, tmp_path):
    binary = tmp_path / "a.bin"
    binary.write_bytes(b"\x7fELF\x00\x01")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    long = tmp_path / "long.txt"
    long.write_text("x" * 500)
    (tmp_path / "empty").write_text("")
    names = ("a.bin", "latin.txt", "long.txt", "empty", "absent")
    code, _, err, conversation = run_lines([f"/read {tmp_path / name}" for name in names])
    assert code == 0 and conversation.n_turns == 0
    errors = [line for line in err.splitlines() if "error:" in line]
    wanted = ("zero byte", "not UTF-8", "tokens and", "is empty", "No such file")
    assert len(errors) == 5
    assert all(text in line for text, line in zip(wanted, errors, strict=True))


def test_show_stats_and_ctx(run_lines, say):
    _, out, err, _ = run_lines(["/stats", "/show", "hi", "/stats", "/ctx"], [say("x")])
    assert out == "x\n"
    assert "there is no turn yet" in err
    assert "repeat_penalty  1" in err and "seed            " in err
    assert "prompt_tokens" in err and "expert_hit_rate n/a" in err
    assert "of 200 tokens used" in err and "1 turn," in err


def test_a_refused_turn_leaves_the_loop_going(run_lines, say):
    code, out, err, _ = run_lines(["x" * 300, "hi"], [say("ok")])
    assert (code, out) == (0, "ok\n") and "holds 200" in err


def test_other_failures_end_the_loop(run_lines, monkeypatch, say):
    monkeypatch.setattr(Conversation, "ask", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_lines(["hi"])


def test_completion():
    assert complete("/re") == ["/read", "/regen"]
    assert complete("hello") == []
    assert complete("t", names=SETTABLE) == ["temp", "top_k", "top_p"]


def test_what_the_editor_completes(tmp_path, monkeypatch):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    completer = repl_module._completer(lambda: ["trip", "work"])
    (tmp_path / "notes.md").touch()
    monkeypatch.chdir(tmp_path)

    def offers(text):
        found = completer.get_completions(Document(text, len(text)), CompleteEvent())
        return [text[: len(text) + each.start_position] + each.text for each in found]

    assert offers("/re") == ["/read", "/regen"] and offers("hello") == []
    assert offers("/set mark") == ["/set markdown"]
    assert offers("/set markdown o") == ["/set markdown off", "/set markdown on"]
    assert offers("/set temp 0") == [] and offers("/set nothing o") == []
    assert offers("/load t") == ["/load trip"] and offers("/read no") == ["/read notes.md"]


def test_plain_lines_prompt_on_standard_error(monkeypatch, capsys):
    import io
    import types

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO("é\r\n".encode())))
    source = PlainLines()
    assert source.read(">>> ") == "é"
    with pytest.raises(EOFError):
        source.read(">>> ")
    out, err = capsys.readouterr()
    assert out == "" and err == ">>> >>> "


def test_dumb_terminals_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(repl_module.line_source(Status()), PlainLines)


def test_history_is_private(tmp_path):
    path = tmp_path / "state" / "hga" / "history"
    history = repl_module._history(Status())
    history.append_string("a question")
    assert path.stat().st_mode & 0o077 == 0 and "a question" in path.read_text()


def test_a_history_whose_disk_fails_ends_no_conversation(tmp_path, monkeypatch):
    import builtins

    path = tmp_path / "state" / "hga" / "history"
    history, real = repl_module._history(Status()), builtins.open

    def full(name, *given, **more):
        if str(name) == str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "open", full)
    history.append_string("a question")
    assert history.get_strings() == ["a question"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_history_that_is_no_file_is_said(tmp_path, kind):
    path = tmp_path / "state" / "hga" / "history"
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    stream = io.StringIO()
    repl_module._history(Status(stream=stream)).append_string("a question")
    assert "no history: " in stream.getvalue()
