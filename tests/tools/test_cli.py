"""The command line: help, refusals, where values come from, exit codes, streams."""

import argparse
import errno
import os
import subprocess
import sys
import time

import pytest

from hga.tools import cli, errors
from hga.tools.config import settle
from hga.tools.flag import SAMPLING
from hga.tools.flag_values import parse_switch
from hga.tools.flags import COMMANDS
from hga.tools.status import Status, size, span

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def seen(monkeypatch):
    """The values with which `hga run` would have been called."""
    calls = []

    def record(values, status):
        calls.append(values)
        return 0

    monkeypatch.setattr(cli, "_cmd_run", record)
    return calls


def config(tmp_path, text):
    path = tmp_path / "config" / "hga" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def hga(*words, **options):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from hga.tools.cli import main; sys.exit(main())",
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_help_is_quick_and_loads_no_numerics():
    code = (
        "import sys; from hga.tools.cli import main\n"
        "main(['run', '--help'])\n"
        "heavy = {'numpy', 'numba', 'rich', 'prompt_toolkit', 'tokenizers', 'jinja2', 'psutil'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    best = 9.0
    for _ in range(3):
        begin = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        best = min(best, time.perf_counter() - begin)
        assert result.returncode == 0
    assert best < 1.0, "the goal is 0.3 s on a quiet machine"


@pytest.mark.parametrize("command", [[], *[name.split() for name in COMMANDS]])
def test_every_command_has_help(command, capsys):
    assert cli.main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: hga") and err == ""


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hga ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--tmep", "1"], "did you mean --temp?"),
        (["run", "--budg", "1%"], "unknown option --budg"),
        (["run", "a", "b"], "unexpected argument 'b'"),
        (["run", "a", "-m", "b"], "two models: a and b"),
        (["run", "", "-p", "x"], "the name of the model is empty"),
        (["plan", "-m", ""], "the name of the model is empty"),
        (["run", "a" * 5000, "-p", "x"], "File name too long"),
        (["run", "-p", "x", "-f", "y"], "exclude each other"),
        (["run", "--temp", "hot"], "--temp: 'hot' is not a number"),
        (["run", "--temp", "nan"], "--temp"),
        (["run", "--temp", "-1"], "out of range"),
        (["run", "--top-p", "0"], "above 0 to 1"),
        (["run", "--top-k", "1.5"], "not a whole number"),
        (["run", "-n", "-2"], "invalid number of tokens"),
        (["run", "-c", "64q"], "--ctx: invalid number of tokens '64q'"),
        (["run", "-c", "0.5"], "whole, positive"),
        (["run", "--mem", "lots"], "invalid size"),
        (["plan", "demo", "--mem", "9" * 400], "--mem: invalid size '999"),
        (["run", "-c", "9" * 30], "positive number, below 2^32"),
        (["run", "~no-such-user/x.gguf", "-p", "x"], "no model '~no-such-user/x.gguf'"),
        (["run", "--attention", "sparse"], "unknown attention 'sparse'"),
        (["run", "--budget", "200%"], "invalid budget"),
        (["run", "--device", "tpu"], "unknown device"),
        (["run", "--session", "../x"], "--session: invalid session name '../x'"),
        (["eval", "ppl", "--session", "x"], "unknown option --session"),
        (["sessions", "--json"], "unknown option --json"),
        (["sessions", "show"], "required: NAME"),
        (["sessions", "show", "x"], "no session 'x' in"),
        (["sessions", "rm", "x", "a/b"], "no session 'x' in"),
        (["sessions", "fork", "x", ".."], "invalid session name '..'"),
        (["run", "--kv-type", "q3"], "unknown kv_type 'q3' (supported: bf16, q8)"),
        (["run", "--io", "tape"], "unknown io 'tape'"),
        (["run", "-p", " "], "the prompt is empty"),
        (["run", "-m"], "expected one argument"),
        (["run", "-f", "/no/such/file"], "/no/such/file: No such file"),
        (["run", "nosuchmodel", "-p", "x"], "no model 'nosuchmodel'"),
        (["pack"], "required: SOURCE"),
        (["pack", "demo", "--format", "q3"], "expected auto, q4, q8, fp8, bf16"),
        (["eval"], "required: TASK"),
        (["eval", "noodle"], "invalid choice"),
        (["frobnicate"], "invalid choice 'frobnicate': expected run, batch, serve,"),
        (["rnu", "demo"], "invalid choice 'rnu' (did you mean run?); see hga --help"),
        (["sessions", "lst"], "invalid choice 'lst' (did you mean list?)"),
        (["eval", "ppl", "demo"], "--file TEXT is needed"),
        (["eval", "gap", "demo", "-f", "x"], "--ctx LIST is needed"),
        (["eval", "gap", "demo", "--ctx", "4k", "--tail", "8k", "-f", "x"], "--tail 8,192"),
        (["eval", "cases", "demo"], "--cases FILE.npz is needed"),
        (["eval", "gap", "--budget", "1%,,2%"], "separated by commas"),
    ],
)
def test_refusals_are_one_line_and_exit_2(words, said, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("hga: error: ") and said in err


def test_no_command_prints_help_and_exits_2(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "commands" in err


def test_every_spelling_of_a_flag(seen):
    line = "run m.hga -c 64k -n 5 -t 2 -s 7 -sys be -p hi --temp=0 -vv"
    assert cli.main(line.split()) == 0
    values = seen.pop()
    assert (values.operand_model, values.ctx, values.predict) == ("m.hga", 65536, 5)
    assert (values.threads, values.seed, values.system_prompt) == (2, 7, "be")
    assert (values.prompt, values.temp, values.verbose) == ("hi", 0.0, 2)
    assert cli.main(["run", "--ctx-size", "1m", "-n", "-1", "-s", "-1", "-f", "-"]) == 0
    values = seen.pop()
    assert (values.ctx, values.predict, values.seed, values.file) == (1 << 20, None, None, "-")


def test_default_then_file_then_environment_then_flag(seen, tmp_path, monkeypatch):
    cli.main(["run"])
    assert seen[-1].temp is None and seen[-1].budget == "auto"
    config(tmp_path, 'temp = 0.1\nbudget = "1%"\ntop-k = 3\nquiet = true\n')
    cli.main(["run"])
    assert (seen[-1].temp, seen[-1].budget, seen[-1].top_k) == (0.1, "1%", 3)
    assert seen[-1].quiet is True
    monkeypatch.setenv("HGA_TEMP", "0.2")
    monkeypatch.setenv("HGA_QUIET", "0")
    cli.main(["run"])
    assert (seen[-1].temp, seen[-1].quiet, seen[-1].top_k) == (0.2, False, 3)
    cli.main(["run", "--temp", "0.3"])
    assert seen[-1].temp == 0.3


def test_a_stronger_source_wins_over_an_excluded_flag(seen, monkeypatch):
    monkeypatch.setenv("HGA_PROMPT", "from the environment")
    cli.main(["run", "-f", "-"])
    assert seen[-1].prompt is None and seen[-1].file == "-"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temp = 'hot'\n", "temp in "),
        ("tmep = 1\n", "did you mean temp?"),
        ("temp = \n", "is not valid TOML"),
        ("temp = {a = 1}\n", "expected text, a number"),
        ("[run]\ntemp = 1\n", "unknown option run"),
        (f"temp = {'[' * 5000}{']' * 5000}\n", "nested too deep"),
        ('kv-dir = "a\\u0000b"\n', "zero byte"),
        (f"n = {'9' * 5000}\n", "not valid TOML"),
        (f"seed = 0x{'f' * 5000}\n", "the number is too large"),
        (f"budget = [0x{'f' * 5000}]\n", "expected text, a number"),
    ],
)
def test_configuration_file_is_checked(text, said, tmp_path, capsys):
    config(tmp_path, text)
    assert cli.main(["run", "-p", "x"]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_configuration_file_that_is_a_pipe_is_not_waited_for(tmp_path, capsys):
    config(tmp_path, "")
    path = tmp_path / "config" / "hga" / "config.toml"
    path.unlink()
    os.mkfifo(path)
    assert cli.main(["run", "-p", "x"]) == 2
    assert "is not a regular file" in capsys.readouterr().err


def test_environment_is_checked(monkeypatch, capsys, seen):
    monkeypatch.setenv("HGA_TMEP", "1")
    assert cli.main(["run"]) == 2
    assert "unknown environment variable HGA_TMEP (did you mean HGA_TEMP?)" in (
        capsys.readouterr().err
    )
    monkeypatch.delenv("HGA_TMEP")
    monkeypatch.setenv("HGA_TEMP", "hot")
    assert cli.main(["run"]) == 2
    assert "HGA_TEMP: 'hot' is not a number" in capsys.readouterr().err
    monkeypatch.delenv("HGA_TEMP")
    monkeypatch.setenv("HGA_TEST_ANYTHING", "1")
    # Values of other commands are checked when those commands run.
    monkeypatch.setenv("HGA_CHUNKS", "many")
    assert cli.main(["run"]) == 0


def test_every_flag_has_a_variable_and_a_unique_option():
    for command, table in COMMANDS.items():
        options = [option for flag in table for option in flag.options]
        assert len(options) == len(set(options)), command
        for flag in table:
            assert flag.name.isidentifier() and flag.options[-1].startswith("--")


@pytest.mark.parametrize("words", [["bench"], ["eval", "ppl"], ["eval", "gap"], ["eval", "ruler"]])
def test_json_may_be_asked_for_where_it_is_always_printed(words, capsys):
    """What follows is refused for want of a text or a model, not for the flag."""
    cli.main([*words, "no-such-model.hga", "--json"])
    assert "unknown option" not in capsys.readouterr().err


def test_switch_words():
    assert [parse_switch(word) for word in ("1", "Yes", "off", "0")] == [
        True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(ValueError):
        parse_switch("perhaps")


def test_settle_takes_given_environment():
    given = argparse.Namespace(temp=None)
    table = [flag for flag in SAMPLING if flag.name == "temp"]
    assert settle(given, table, {"HGA_TEMP": "0.5"}).temp == 0.5


class ConfigError(ValueError):
    """Not ours: the same name from elsewhere."""


def test_exit_codes():
    from hga.models.plan import ConfigError as Ours
    from hga.models.plan import UnsupportedError
    from hga.runtime.container import ContainerError
    from hga.runtime.options import OptionError
    from hga.tools.demo import FetchError
    from hga.tools.sources import SourceError

    assert errors.exit_code(Ours("x")) == 5
    assert errors.exit_code(ContainerError("x")) == 5
    assert errors.exit_code(SourceError("x")) == 5
    assert errors.exit_code(UnsupportedError("x")) == 5
    assert errors.exit_code(OptionError("x")) == 2
    assert errors.exit_code(FileNotFoundError(2, "no", "f")) == 2
    assert errors.exit_code(OSError(errno.ENOSPC, "full", "f")) == 3
    assert errors.exit_code(MemoryError()) == 3
    assert errors.exit_code(FetchError("x")) == 1
    assert errors.exit_code(KeyboardInterrupt()) == 130
    assert errors.exit_code(ConfigError("x")) == 1
    assert "internal error" in errors.message(ConfigError("x"))
    assert errors.message(FetchError("a\n b")) == "a b"
    assert errors.exit_code(OSError(errno.ENAMETOOLONG, "long", "f")) == 2
    long = errors.message(FetchError("begin" + "x" * 9999 + "end"))
    assert len(long) < 900 and long.startswith("begin") and long.endswith("end")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f")
    assert "f: No space left" in errors.message(full) and "--kv-dir" in errors.message(full)
    full.filename = errors.STDOUT
    assert errors.message(full) == f"standard output: {os.strerror(errno.ENOSPC)}"
    assert errors.message(OSError(errno.ENOSPC, "half way; use -o", "f")) == "f: half way; use -o"


def test_traceback_only_with_two_v(monkeypatch, capsys):
    def fail(values, status):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli, "_cmd_run", fail)
    for words, expected in (([], False), (["-v"], False), (["-v", "-v"], True), (["-vv"], True)):
        assert cli.main(["run", *words]) == 1
        err = capsys.readouterr().err
        assert ("Traceback" in err) == expected
        assert "hga: error: internal error: ZeroDivisionError: by zero" in err


def test_closed_standard_output_is_quiet():
    code = (
        "import sys; from hga.tools import cli\n"
        "def many(values, status):\n"
        "    while True: sys.stdout.write('x' * 9999); sys.stdout.flush()\n"
        "cli._cmd_run = many\n"
        "sys.exit(cli.main(['run']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(timeout=30) == 1
    child.stderr.close()


def test_standard_output_is_utf8_whatever_the_locale():
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from hga.tools import cli\n"
            "def say(values, status):\n    sys.stdout.write('é😀'); return 0\n"
            "cli._cmd_run = say\nsys.exit(cli.main(['run']))",
        ],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert result.stdout.decode() == "é😀" and result.returncode == 0


def test_bad_argument_bytes_are_refused():
    result = hga("run", "-p", b"\xff".decode("utf-8", "surrogateescape"))
    assert result.returncode == 2 and "not valid UTF-8" in result.stderr


def test_quiet_status_says_errors_only(capsys):
    status = Status(quiet=True, verbose=1)
    status.notice("a")
    status.detail("b")
    status.faint("c")
    status.error("d")
    with status.bar("x", "bytes") as report:
        report(1, 2)
    assert capsys.readouterr().err == "hga: error: d\n"


def test_figures_for_people():
    assert (size(999), size(98_362_432), size(6 << 30)) == ("999 B", "93.8 MiB", "6.0 GiB")
    assert (span(42), span(3900)) == ("0:42", "1:05:00")


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_no_internal_error(monkeypatch, capsys, closed):
    monkeypatch.setattr(sys, closed, None)
    assert cli.main(["run", "no-such-model"]) == 2
    monkeypatch.undo()
    assert "internal" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file whose first byte fails")
@pytest.mark.parametrize(
    "words",
    [["inspect", "MEM"], ["run", "MEM", "-p", "x"], ["pack", "MEM"], ["run", "-f", "MEM"],
     ["verify", "FOLDER"]],
)  # fmt: skip
def test_a_file_that_the_disk_does_not_give_is_named(words, tmp_path, capsys):
    (tmp_path / "config.json").symlink_to("/proc/self/mem")
    names = {"MEM": "/proc/self/mem", "FOLDER": str(tmp_path)}
    assert cli.main([names.get(word, word) for word in words]) == 1
    named = "config.json" if "FOLDER" in words else "mem"
    assert capsys.readouterr().err.endswith(f"{named}: {os.strerror(errno.EIO)}\n")
