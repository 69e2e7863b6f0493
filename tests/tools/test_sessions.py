"""Conversations that outlive the process, over a tiny model: commands, REPL, damage, interrupts."""

import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import types

import pytest

from hga.kvstore.filelayer import Files
from hga.kvstore.store import SessionStore
from hga.runtime.engine import Engine
from hga.runtime.options import Options
from hga.runtime.sampler import SamplerOptions
from hga.runtime.session import Session
from hga.tools import cli
from hga.tools.conversation import Conversation
from hga.tools.repl import Repl
from hga.tools.run import Talk, resume
from hga.tools.status import Status

QUESTIONS = ["who are you?", "and then?", "is that so?"]


@pytest.fixture(scope="module")
def packed(tiny_hf, tmp_path_factory):
    from hga.tools.pack import pack

    return pack(tiny_hf("qwen3"), tmp_path_factory.mktemp("packed") / "tiny.hga").path


@pytest.fixture
def hga(own_folders, kernel_cache, tmp_path, monkeypatch, capsys):
    """hga(*words, stdin=None) -> (exit code, stdout, stderr); compiled kernels are shared."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hga").symlink_to(kernel_cache)

    def go(*words, stdin=None):
        data = io.BytesIO(stdin if stdin is not None else b"never read")
        fake = types.SimpleNamespace(buffer=data, isatty=lambda: stdin is None)
        monkeypatch.setattr("sys.stdin", fake)
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return go


@pytest.fixture
def ask(hga, packed):
    """ask(question, *flags) -> the figures of one `hga run -p`, which has to succeed."""

    def go(question, *flags):
        words = ("run", packed, "-p", question, "-n", 12, "-c", 2000, "--json", *flags)
        code, out, err = hga(*words)
        assert code == 0, err
        return {**json.loads(out.splitlines()[-1]), "err": err}

    return go


def folder(tmp_path, name="a"):
    return tmp_path / "state" / "hga" / "sessions" / name


@pytest.mark.parametrize("flags", [("--temp", 0), ("--temp", 1, "--seed", 3), ("--no-chat",)])
def test_runs_of_one_session_are_one_conversation(hga, ask, packed, flags):
    flags = (*flags, *(("--seed", 5) if flags == ("--no-chat",) else ()))
    lines = "\n".join(QUESTIONS).encode()
    code, out, _ = hga("run", packed, "-n", 12, "-c", 2000, "--json", *flags, stdin=lines)
    assert code == 0
    whole = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    parts = [ask(question, "--session", "a", *flags) for question in QUESTIONS]
    assert [part["tokens"] for part in parts] == [part["tokens"] for part in whole]
    assert [part["reused_tokens"] for part in parts] == [part["reused_tokens"] for part in whole]
    assert parts[1]["reused_tokens"] >= parts[0]["prompt_tokens"] + len(parts[0]["tokens"]) - 1
    assert "session 'a' is new" in parts[0]["err"]
    assert "session 'a': 1 turn, " in parts[1]["err"] and "tokens reused" in parts[1]["err"]
    assert "session 'a': 2 turns, " in parts[2]["err"] and "opened in " in parts[2]["err"]


def test_random_numbers_go_on_without_a_seed(ask):
    first = ask("x", "--session", "a", "--temp", 1, "--seed", 3)
    second = ask("y", "--session", "a", "--temp", 1)
    again = ask("x", "--session", "b", "--temp", 1, "--seed", 3)
    assert again["tokens"] == first["tokens"]
    assert ask("y", "--session", "b", "--temp", 1, "--seed", 3)["tokens"] == second["tokens"]


def test_list_show_fork_and_remove(hga, ask, tmp_path):
    assert hga("sessions") == (0, f"no sessions in {folder(tmp_path).parent}\n", "")
    for question in QUESTIONS:
        ask(question, "--session", "a", "-sys", "Be kind.")
    code, out, err = hga("sessions", "fork", "a", "b", "--turns", 2)
    assert code == 0 and "session 'b' begins with" in err
    _, out, _ = hga("sessions", "list", "--json")
    found = {each["name"]: each for each in json.loads(out)["sessions"]}
    assert found["a"]["turns"] == 3 and found["b"]["turns"] == 2
    assert found["a"]["tokens"] > found["b"]["tokens"] and found["b"]["nbytes"] > 0
    _, out, _ = hga("sessions")
    assert {line.split()[0] for line in out.splitlines()} == {"name", "a", "b"}
    _, out, _ = hga("sessions", "show", "b")
    assert "attention     hga" in out and "> and then?" in out and "> is that so?" not in out
    _, out, _ = hga("sessions", "show", "a", "--json")
    shown = json.loads(out)
    assert [m["user"] for m in shown["messages"]] == QUESTIONS and shown["system"] == "Be kind."
    # The fork answers as the original did.
    assert ask(QUESTIONS[2], "--session", "b", "--temp", 0, "--seed", 1)["reused_tokens"] > 20
    for words, said in (
        (("fork", "a", "b"), "'b' exists already"),
        (("fork", "a", "c", "--turns", 9), "has 3 turns: not 9"),
        (("show", "c"), "no session 'c' in"),
    ):
        code, _, err = hga("sessions", *words)
        assert code in (1, 2) and said in err
    assert hga("sessions", "rm", "a", "b")[0] == 0
    assert list(folder(tmp_path).parent.iterdir()) == []


def test_a_conversation_cannot_steer_the_terminal_that_shows_it(hga, ask, monkeypatch):
    import sys

    ask("wipe \x1b[2J it", "--session", "a")
    code, out, _ = hga("sessions", "show", "a")
    assert code == 0 and "> wipe \x1b[2J it" in out, "a pipe gets it as it is"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = hga("sessions", "show", "a")
    assert "> wipe \\x1b[2J it" in out and "\x1b" not in out


def test_a_folder_of_ones_own(hga, ask, tmp_path):
    ask("x", "--session", "a", "--kv-dir", tmp_path / "mine")
    assert (tmp_path / "mine" / "a" / "head-0").is_file() and not folder(tmp_path).exists()
    _, out, _ = hga("sessions", "list", "--kv-dir", tmp_path / "mine")
    assert "a " in out


def test_inspect_and_verify(hga, ask, tmp_path):
    ask("x", "--session", "a")
    place = folder(tmp_path)
    code, out, _ = hga("verify", place)
    assert code == 0 and "match their checksums" in out and "tokens, index and all" in out
    code, out, _ = hga("inspect", place)
    assert code == 0 and f"{place}: session" in out and "1 turn, save 2" in out
    assert json.loads(hga("inspect", place, "--json")[1])["kind"] == "session"
    segment = place / "seg-000000.kv"
    data = bytearray(segment.read_bytes())
    with SessionStore.open(place) as store:
        data[store.locate(0).offset + 5] ^= 1
    segment.write_bytes(data)
    code, out, err = hga("verify", place)
    assert code == 5 and out == "" and "layer 0, chunk 0, KV head 0, cell 0" in err
    assert len(err.splitlines()) == 1
    (place / "head-0").write_bytes(b"x")
    (place / "head-1").write_bytes(b"")
    for words in (("verify", place), ("sessions", "show", "a")):
        code, _, err = hga(*words)
        assert code == 5 and "neither head-0 nor head-1 is whole" in err
    code, out, _ = hga("sessions")
    assert code == 0 and "neither head-0 nor head-1 is whole" in out
    assert hga("sessions", "rm", "a")[0] == 0


def test_a_list_survives_what_lies_among_the_sessions(hga, ask, tmp_path):
    ask("x", "--session", "a")
    root = folder(tmp_path).parent
    shutil.copytree(root / "a", root / "b\n\x1b[31m\x9b")
    (root / "loop").symlink_to("loop")
    (root / "file").write_text("no session")
    (root / "empty").mkdir()
    # As if another process had removed it between two looks.
    (root / "a" / "tokens-000009").symlink_to("nothing")
    code, out, err = hga("sessions")
    assert (code, err) == (0, ""), err
    assert [line.split()[0] for line in out.splitlines()][1:] == ["a", r"b\n\x1b[31m\x9b"]
    (root / "a" / "head-0").unlink()
    (root / "a" / "head-0").symlink_to("head-0")
    assert hga("sessions")[0] == 0


@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_repair(hga, ask, packed, tmp_path, kv):
    words = ("--session", "a", "--temp", 0, "--kv", kv)
    before = [ask(question * 9, *words) for question in QUESTIONS[:2]]
    shutil.copytree(folder(tmp_path), folder(tmp_path, "b"))
    expected = ask(QUESTIONS[2], "--session", "b", "--temp", 0, "--kv", kv)
    for damage in ("cell", "segment"):
        segment = folder(tmp_path) / "seg-000000.kv"
        if damage == "cell":
            with SessionStore.open(folder(tmp_path)) as store:
                place = store.locate(0)
            segment = place.path
            data = bytearray(segment.read_bytes())
            data[place.offset + 100] ^= 1
            segment.write_bytes(data)
        else:
            segment.unlink()
        if kv == "ram" or damage == "segment":
            run = ("run", packed, "-c", 2000, "-p", "y", *words)
            code, _, err = hga(*run)
            assert code == 5 and f"hga sessions repair a {packed}" in err.splitlines()[-1], err
        assert hga("verify", folder(tmp_path))[0] == 5
        code, out, err = hga("sessions", "repair", "a", packed)
        assert (code, out) == (0, ""), err
        assert "tokens were computed again" in err.splitlines()[-1]
        assert hga("verify", folder(tmp_path))[0] == 0
    assert ask(QUESTIONS[2], *words)["tokens"] == expected["tokens"]
    code, _, err = hga("sessions", "repair", "a", packed)
    assert code == 0 and "nothing to do" in err
    assert before[1]["reused_tokens"] > 0
    assert hga("sessions", "repair", "c", packed)[0] == 2


def test_damage_is_refused_when_it_is_opened(hga, ask, packed, tmp_path):
    ask("x", "--session", "a")
    segment = folder(tmp_path) / "seg-000000.kv"
    data = bytearray(segment.read_bytes())
    data[4096 + 100] ^= 1
    segment.write_bytes(data)
    code, _, err = hga("run", packed, "-c", 2000, "--session", "a", "-p", "y")
    assert code == 5 and "block 0 (tokens 0 to 127)" in err.splitlines()[-1]


def test_what_does_not_fit_is_refused(hga, ask, packed, tmp_path):
    ask("x", "--session", "a")
    words = ("run", packed, "--session", "a", "-p", "y", "-c", 2000)
    code, _, err = hga(*words, "--budget", "512", "--attention", "dense")
    text = "attention: stored hga, now dense; budget: stored auto, now 512: --attention hga"
    assert code == 5 and text in err
    code, _, err = hga(*words, "--no-chat")
    assert code == 2 and "begun with the chat template: leave out --no-chat" in err
    code, _, err = hga("run", packed, "--session", "a", "-p", "y", "-c", 8)
    assert code == 1 and "and the context 8: --ctx" in err
    with SessionStore.open(folder(tmp_path)):
        code, _, err = hga(*words)
        assert code == 1 and "session 'a' is in use by this process" in err
    assert hga(*words)[0] == 0


def test_hostile_conversations(hga, ask, packed, tmp_path):
    from hga.runtime.saved import encode_text, note_of

    ask("x", "--session", "a")
    with SessionStore.open(folder(tmp_path)) as store:
        words, good = store.tokens, json.loads(note_of(store.meta))
    for change in (
        {"n_actual": 10**9}, {"n_actual": -1}, {"seed": -1}, {"random_state": "x"}, {"chat": 3},
        {"random_increment": "2"}, {"canonical": [-1]}, {"canonical": [320]}, {"turns": [1]},
        {"actual": [1 << 40]}, {"more": 1}, {"random_state": "1" * 99},
        {"turns": [{**good["turns"][0], "n_actual": 10**6}]},
    ):  # fmt: skip
        with SessionStore.open(folder(tmp_path)) as store:
            store.commit(words, encode_text(json.dumps({**good, **change})))
        code, _, err = hga("run", packed, "-c", 2000, "--session", "a", "-p", "y")
        assert code == 5 and "damaged" in err.splitlines()[-1], change
        assert hga("sessions", "list")[0] == 0


def test_ctrl_c_on_a_reply_keeps_and_saves_the_turn(hga, ask, packed, monkeypatch):
    plain, steps = Session.step, []

    def step(self, token):
        steps.append(token)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(self, token)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "step", step)
        words = ("run", packed, "-c", 2000, "--session", "a", "-p", "x", "--json")
        code, out, _ = hga(*words, "--temp", 0)
    figures = json.loads(out.splitlines()[-1])
    assert code == 130 and figures["stop"] == "interrupt"
    shown = json.loads(hga("sessions", "show", "a", "--json")[1])
    assert shown["messages"] == [{"user": "x", "assistant": figures["text"]}]
    assert ask("y", "--session", "a")["reused_tokens"] >= shown["tokens"]


class Script:
    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self, prompt):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


@pytest.fixture(params=["ram", "disk"])
def repl(request, packed, kernel_cache, tmp_path, capsys):
    """repl(*lines, name=None) -> (stderr, conversation): the loop over a new engine."""

    def go(*lines, name=None):
        options = Options(
            ctx=2000,
            threads=2,
            sessions_dir=tmp_path / "s",
            kv=request.param,
            kv_dir=tmp_path / "k",
        )
        with Engine.open(packed, options, kernel_cache) as engine:
            sampling = SamplerOptions(temperature=0.0)
            session = engine.session(name)
            conversation = Conversation(engine, session, sampling, chat=True, predict=8)
            if name is not None:
                resume(conversation)
            status = Status()
            talk = Talk(engine, conversation, False, status)
            assert Repl(talk, Script(*lines), status).loop() == 0
            talk.close()
            return capsys.readouterr().err, talk.conversation

    return go


def figures(path):
    from hga.tools.sessions import look

    return look(path)


def test_save_load_and_list(repl, tmp_path):
    err, _ = repl("/list", "/save", "/load", "/save a/b", "/load x", "one", "/load x", "/list")
    assert "no sessions in" in err and "/save NAME: under which name?" in err
    assert "invalid session name 'a/b'" in err and "no session 'x' in" in err
    assert "the conversation has no name yet" in err
    err, _ = repl("one", "/save a", "two", "/show", "/save a", "/load a", "/list")
    assert "tokens are saved in" in err and "session         a" in err
    assert "is the one that you are in" in err and "this one is 'a'" in err
    state = figures(tmp_path / "s" / "a").state
    assert [turn.user for turn in state.turns] == ["one", "two"]
    err, conversation = repl("/load a", "three", "/save b", "four", "/undo", "/load a", "/ctx")
    assert "session 'a': 2 turns," in err and "3 turns" in err
    assert conversation.session.saved.name == "a"
    for name in "ab":
        state = figures(tmp_path / "s" / name).state
        assert [turn.user for turn in state.turns] == ["one", "two", "three"]
    err, _ = repl("/clear", "/load b", name="a")
    assert "session 'b': 3 turns" in err
    assert figures(tmp_path / "s" / "a").head.n_tokens == 0
    assert figures(tmp_path / "s" / "a").state.turns == []


def test_a_loaded_conversation_answers_as_one_that_went_on(repl, tmp_path):
    _, whole = repl("one", "two", "/regen", "three")
    repl("one", "/save a", "two")
    repl("/regen", name="a")
    _, parts = repl("/load a", "three")
    texts = [[turn.reply for turn in each._turns] for each in (whole, parts)]
    assert texts[0] == texts[1] and len(texts[0]) == 3


def test_a_full_disk_does_not_end_the_loop(repl, tmp_path, monkeypatch):
    repl("one", "/save a")
    calls = []

    def full(self, fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    def allocate(self, fd, n_bytes):
        calls.append(n_bytes)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Files, "allocate", allocate)
        err, _ = repl("two", "three", "four", name="a")
    assert "bytes and" in err and "are free" in err
    state = figures(tmp_path / "s" / "a").state
    assert [turn.user for turn in state.turns] == ["one", "two", "three", "four"]
    # A failed sync leaves it in doubt: the session has to be opened again.
    with monkeypatch.context() as patch:
        patch.setattr(Files, "datasync", full)
        err, _ = repl("five", name="a")
    assert "has to be opened again" in err
    err, conversation = repl("five", name="a")
    assert conversation.n_turns == 5


def test_kill_9_in_a_reply(packed, kernel_cache, tmp_path, hga, ask):
    ask("x", "--session", "a")
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    words = ["run", str(packed), "-c", "2000", "--session", "a", "-p", "y", "-n", "1500"]
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *words, "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout.read(1)
    child.kill()
    child.communicate(timeout=60)
    assert hga("verify", folder(tmp_path))[0] == 0
    shown = json.loads(hga("sessions", "show", "a", "--json")[1])
    assert [m["user"] for m in shown["messages"]] == ["x"]
    assert "1 turn," in ask("y", "--session", "a")["err"]
