"""`hga run`: one answer, lines of standard input, JSON, interrupts; then the real demo model."""

import io
import json
import os
import signal
import subprocess
import sys
import types

import pytest

from hga.tools import cli, run, texts
from hga.tools.errors import UsageError

KEYS = {
    "text", "tokens", "prompt_tokens", "reused_tokens", "prefill_tps", "decode_tps", "ctx",
    "attended_mean", "peak_rss", "kv_bytes", "read_bytes", "expert_hit_rate", "kv_hit_rate", "io",
    "backend", "stop", "kv", "disk_bytes", "stall_s",
    "index_bytes", "expert_recall", "expert_precision", "expert_wasted_bytes",
    "expert_layer_hit_rates",
}  # fmt: skip


@pytest.fixture
def hga_run(fake_engine, monkeypatch, capsys, own_folders):
    """hga_run(words, replies, stdin) -> (exit code, stdout, stderr, engine)."""
    import contextlib

    def go(words, replies=(), stdin=None, **options):
        engine = fake_engine(replies, **options)

        @contextlib.contextmanager
        def opened(*given):
            yield engine

        monkeypatch.setattr(run, "open_engine", opened)
        data = io.BytesIO(stdin if stdin is not None else b"never read")
        monkeypatch.setattr(
            "sys.stdin", types.SimpleNamespace(buffer=data, isatty=lambda: stdin is None)
        )
        code = cli.main(["run", *words])
        out, err = capsys.readouterr()
        return code, out, err, engine

    return go


def test_prompt_is_answered_once(hga_run, say):
    code, out, err, _ = hga_run(["-p", "hi"], [say("hello é")])
    assert (code, out) == (0, "hello é\n") and "new tokens" in err
    code, out, err, _ = hga_run(["-p", "hi", "--quiet"], [say("hello\n")])
    assert (code, out, err) == (0, "hello\n", "")


def test_prompt_from_a_file_and_from_all_of_standard_input(hga_run, say, tmp_path):
    path = tmp_path / "q.txt"
    path.write_bytes(b"\xef\xbb\xbfwhat?\n")
    _, out, _, engine = hga_run(["-f", str(path)], [say("x")])
    assert out == "x\n" and b"what?" in bytes(t for t in engine.sessions[0].fed[0] if t < 256)
    assert engine.sessions[0].fed[0][-3:] == [258, 257, ord("a")]
    _, _, _, engine = hga_run(["-f", "-"], [say("x")], b"two\nlines\n")
    assert b"two\nlines" in bytes(t for t in engine.sessions[0].fed[0] if t < 256)
    path.write_bytes(b"caf\xe9")
    code, _, err, _ = hga_run(["-f", str(path)])
    assert code == 2 and "not UTF-8 text: byte offset 3" in err


def test_each_line_of_standard_input_is_a_turn(hga_run, say):
    code, out, _, engine = hga_run([], [say("one"), say("two")], b"a\r\n\n  \nb\n")
    assert (code, out) == (0, "one\ntwo\n")
    assert len(engine.sessions) == 1 and len(engine.sessions[0].fed) == 2
    code, out, err, _ = hga_run([], [], b"")
    assert (code, out) == (0, "") and "nothing to answer" in err
    code, _, err, _ = hga_run([], [say("x")], b"a\n\xff\n")
    assert code == 2 and "standard input, line 2 is not UTF-8" in err


def test_json_is_the_last_line_with_every_key(hga_run, say):
    _, out, _, _ = hga_run(["-p", "hi", "--json"], [say("hello")])
    lines = out.splitlines()
    figures = json.loads(lines[-1])
    assert lines[:-1] == ["hello"] and set(figures) == KEYS
    assert figures["text"] == "hello" and figures["tokens"] == list(b"hello")
    assert (figures["stop"], figures["ctx"], figures["reused_tokens"]) == ("eos", 200, 0)
    assert figures["expert_hit_rate"] is None and figures["peak_rss"] > 1 << 20
    _, out, _, _ = hga_run(["--json"], [say("a"), say("b")], b"x\ny\n")
    figures = [json.loads(line) for line in out.splitlines()[1::2]]
    assert [f["text"] for f in figures] == ["a", "b"] and figures[1]["reused_tokens"] > 0


def test_base_model_completes_and_says_so(hga_run, say):
    code, out, err, engine = hga_run(["-p", "ab"], [say("x" * 300, ends=False)], template=False,
                                     ctx=2000)  # fmt: skip
    assert (code, out) == (0, "x" * 256 + "\n")
    assert "without a chat template" in err and "after 256 tokens" in err
    assert engine.sessions[0].fed[0] == [256, *b"ab"]
    _, out, err, _ = hga_run(["-p", "ab", "-n", "3"], [say("x" * 9)], template=False)
    assert out == "xxx\n" and "256 tokens" not in err
    code, _, err, _ = hga_run(["-p", "ab", "-sys", "s"], template=False)
    assert code == 2 and "system prompt needs" in err


def test_no_chat_leaves_the_template_out(hga_run, say):
    _, _, err, engine = hga_run(["-p", "ab", "--no-chat", "-n", "4"], [say("x")])
    assert engine.sessions[0].fed[0] == [256, *b"ab"] and "base model" not in err


def test_long_prompts_are_refused_with_both_numbers(hga_run):
    code, out, err, _ = hga_run(["-p", "x" * 300])
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "306 tokens" in err and "holds 200" in err


def test_interrupted_answer_is_flushed_and_exits_130(hga_run, say, fake_engine, monkeypatch):
    made, before = fake_engine.session, signal.getsignal(signal.SIGINT)

    def session(self, name=None):
        new = made(self, name)

        def press(token):
            if token == ord("l"):
                os.kill(os.getpid(), signal.SIGINT)

        new.on_token = press
        return new

    monkeypatch.setattr(fake_engine, "session", session)
    code, out, _, _ = hga_run(["-p", "hi", "--json"], [say("hello")])
    text, figures = out.splitlines()
    assert code == 130 and text == "hell" and json.loads(figures)["stop"] == "interrupt"
    code, out, _, _ = hga_run([], [say("hello"), say("never")], b"a\nb\n")
    assert code == 130 and "never" not in out
    assert signal.getsignal(signal.SIGINT) is before


def test_sampling_defaults_come_from_the_checkpoint(hga_run, say):
    import argparse

    names = ("temp", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
    values = argparse.Namespace(**dict.fromkeys(names))
    options = run.sampling_from(values, {})
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (
        0.8, 40, 0.95, 0.05,
    )  # fmt: skip
    options = run.sampling_from(values, {"temperature": 0.6, "top_k": 20, "eos_token_id": 7})
    assert (options.temperature, options.top_k) == (0.6, 20)
    assert run.sampling_from(values, {"do_sample": False}).temperature == 0.0
    values.temp, values.seed = 0.3, 5
    options = run.sampling_from(values, {"do_sample": False})
    assert (options.temperature, options.seed) == (0.3, 5)
    values.top_k = 10**30
    with pytest.raises(UsageError, match="top_k: expected an integer"):
        run.sampling_from(values, {})


def test_binary_input_is_refused():
    with pytest.raises(UsageError, match="zero byte at offset 1"):
        texts.decode(b"a\0b", "x")


@pytest.fixture(scope="module")
def demo_pack(smollm2_gguf, tmp_path_factory):
    from hga.tools.pack import pack

    return pack(smollm2_gguf, tmp_path_factory.mktemp("demo") / "demo.hga").path


def hga(*words, stdin="", **options):
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        input=stdin, capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def test_the_demo_completes_as_llama_cpp_does(demo_pack):
    prompt = "Once upon a time, there was a little"
    result = hga(
        "run", demo_pack, "--no-chat", "-p", prompt, "--temp", 0, "-n", 12, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    text, figures = result.stdout.splitlines()[0], json.loads(result.stdout.splitlines()[-1])
    assert text.startswith(" girl named Emma who loved to play in the sun")
    assert set(figures) == KEYS and figures["stop"] == "length" and len(figures["tokens"]) == 12
    assert figures["prompt_tokens"] == 9 and figures["decode_tps"] > 0


def test_the_demo_answers_lines_and_reuses_the_past(demo_pack):
    words = ("run", demo_pack, "-n", 8, "--seed", 3, "--json", "-c", "1k")
    first = hga(*words, stdin="Hello\nAnd then?\n")
    assert first.returncode == 0, first.stderr
    turns = [json.loads(line) for line in first.stdout.splitlines() if line.startswith("{")]
    assert len(turns) == 2
    # The first prompt and reply, but for the last sampled token at most, are still there.
    past = turns[0]["prompt_tokens"] + len(turns[0]["tokens"])
    assert turns[1]["reused_tokens"] >= past - 1
    again = hga(*words, stdin="Hello\nAnd then?\n")
    repeated = [json.loads(line) for line in again.stdout.splitlines() if line.startswith("{")]
    assert [t["tokens"] for t in repeated] == [t["tokens"] for t in turns]


def test_a_trace_adds_up_to_the_figures_of_the_turn(demo_pack, tmp_path):
    trace = tmp_path / "trace.jsonl"
    words = ("run", demo_pack, "-n", 6, "--temp", 0, "--json", "--kv", "disk", "--kv-dir", tmp_path)
    words += ("-c", "1k", "--kv-type", "q8", "--budget", "300", "--trace", trace)
    result = hga(*words, stdin="Count to 100. " * 90 + "\nAnd then?\n")
    assert result.returncode == 0, result.stderr
    turns = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    starts = [i for i, line in enumerate(lines) if line["kind"] == "prompt"]
    assert starts[0] == 0 and len(starts) == len(turns) == 2
    for turn, start, end in zip(turns, starts, [starts[1], len(lines)], strict=True):
        prompt, tokens = lines[start], lines[start + 1 : end]
        assert prompt["position"] == turn["prompt_tokens"]
        assert prompt["prompt_tokens"] == turn["prompt_tokens"] - turn["reused_tokens"]
        assert [line["decode_tokens"] for line in tokens] == [1] * len(tokens)
        assert len(tokens) - len(turn["tokens"]) in (0, 1), "one more for the end of the reply"
        for name in ("read_bytes", "index_bytes", "disk_bytes"):
            assert sum(line[name] for line in lines[start:end]) == turn[name]
        assert tokens[-1]["read_bytes"] > 0 and tokens[-1]["cell_hits"] > 0
    assert hga("run", demo_pack, "-p", "x", "--trace", tmp_path / "no" / "x").returncode == 2


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "people": {"type": "integer", "minimum": 0, "maximum": 99_000_000},
        "coast": {"type": "boolean"},
    },
    "required": ["city", "people", "coast"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temp", [0, 1.5])
def test_the_demo_answers_in_json(demo_pack, tmp_path, temp):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    words = ("run", demo_pack, "--temp", temp, "--seed", 4, "--json-schema", schema)
    result = hga(*words, stdin="Describe Lisbon.\nAnd Vienna?\n")
    assert result.returncode == 0, result.stderr
    replies = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(replies) == 2
    for reply in replies:
        assert list(reply) == ["city", "people", "coast"]
        assert isinstance(reply["city"], str) and type(reply["people"]) is int


def test_json_that_is_cut_says_so(demo_pack):
    words = ("run", demo_pack, "-p", "Describe Lisbon.", "-n", 4, "--temp", 0)
    result = hga(*words, "-j", json.dumps(SCHEMA))
    assert result.returncode == 1
    assert "after 4 tokens, before its JSON was complete" in result.stderr


def test_schemas_that_are_not_there_or_wrong(demo_pack, tmp_path):
    huge = tmp_path / "huge.json"
    huge.write_text(" " * 70_000)
    for given, said in (
        ("absent.json", "no file 'absent.json'"),
        ('{"type": "strin"}', "Invalid type: strin"),
        (huge, "at most 65,536 bytes"),
    ):
        result = hga("run", demo_pack, "-p", "hi", "-j", given)
        assert result.returncode == 2 and said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_ctrl_c_on_the_demo(demo_pack):
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    words = ["run", str(demo_pack), "--no-chat", "-p", "A list of numbers:", "-n", "4000"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--temp", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err.decode()
    assert json.loads(out.decode().splitlines()[-1])["stop"] == "interrupt"
    assert b"Traceback" not in err
