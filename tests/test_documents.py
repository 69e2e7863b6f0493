"""Every command that the documents show: parsed by the real parsers, and run where that is quick.

`demo` and the models of the examples are tiny checkpoints here, and files that are named are made.
What is not run stands in NOT_RUN with its reason; a command of a program that is not known here
fails.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from hga.tools import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

NOT_RUN = {
    r"--device cuda": "needs an NVIDIA GPU",
    r"--ray": "needs a cluster (tests/tools/test_batch_cluster.py)",
    r"^hga serve": "serves until it is stopped (tests/tools/serve)",
    r"^hga doctor": "measures memory and disk (tests/tools/test_plan_doctor.py)",
    r"^hga (bench|eval)": "measures for minutes (tests/tools/test_bench_command.py, test_eval.py)",
    r"^hga run gemma": "fetches 227 MiB (tests/tools/test_demo.py)",
}
# What stands for a value in a command.
PLACEHOLDERS = {
    "MODEL": "demo", "MODEL.gguf": "model.gguf", "N": "64", "SIZE": "2g", "TEXT": "report.txt",
    "TOPIC": "memory", "FILE": "model.hga", "FOLDER": "model.hga", "NAME": "trip", "COMMAND": "run",
    "TASK": "ppl", "SHELL": "bash", "PATH": "model.hga", "DIR": "notes",
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(load_module):
    """The module tests/document_commands.py."""
    return load_module(ROOT / "tests" / "document_commands.py")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    for kind in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))


@pytest.fixture
def parses(monkeypatch, capsys):
    """parses(words) -> what the command line says about them, empty where they are taken."""
    for name in [name for name in vars(cli) if name.startswith("_cmd_")]:
        monkeypatch.setattr(cli, name, lambda values, status: 0)

    def go(words):
        code = cli.main(list(words))
        return "" if code == 0 else capsys.readouterr().err

    return go


def hga_words(words):
    """The words after `hga`, placeholders filled in."""
    first = {"hga": [], "hga-run": ["run"], "hga-pack": ["pack"]}[words[0]]
    return [*first, *(PLACEHOLDERS.get(word, word) for word in words[1:])]


def mention(words):
    """What is wrong with a command that is named without all it needs: an unknown word or flag."""
    parser, words = cli.build_parser(), list(words)
    while words and not words[0].startswith("-"):
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups:
            break
        if words[0] not in groups[0].choices:
            return f"no command {words[0]!r}"
        parser = groups[0].choices[words.pop(0)]
    unknown = [w for w in words if w.startswith("-") and w not in parser._option_string_actions]
    return f"unknown: {unknown}" if unknown else ""


def check_make(words):
    """`make`: its targets and variables are the Makefile's."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words[1:]:
        name, equals, _ = word.partition("=")
        found = re.search(rf"^{name} *\?=" if equals else rf"^{name}:", text, re.MULTILINE)
        if not found:
            return f"the Makefile has no {word}"
    return ""


def check_pip(words):
    """`pip install`: of this package, with extras that it has, or of something that it needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[1] != "install":
        return f"pip {words[1]}"
    for word in words[2:]:
        found = re.fullmatch(r"(hga|\.)(?:\[(\w+)\])?", word)
        if found is None and not any(each.startswith(word) for each in project["dependencies"]):
            return f"pip install {word}"
        if found and found[2] and found[2] not in project["optional-dependencies"]:
            return f"no extra {found[2]!r}"
    return ""


class Parsed(BaseException):
    """A script has read its command line."""


@pytest.fixture
def check_python(load_module, monkeypatch):
    """`python bench/NAME.py …`: by the parser of that script."""
    given = argparse.ArgumentParser.parse_args

    def parse_args(self, *rest, **options):
        given(self, *rest, **options)
        raise Parsed

    def check(words):
        path = ROOT / words[1]
        if not path.is_file():
            return f"there is no {words[1]}"
        with monkeypatch.context() as patched:
            for name in ("torch", "triton", "hga.kernels.triton.decode", "hga.kernels.triton.bank"):
                if path.stem == "gpu":
                    patched.setitem(sys.modules, name, MagicMock())
            patched.setattr(sys, "argv", list(words[1:]))
            module = load_module(path)
            patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
            try:
                module.main()
            except Parsed:
                return ""
            except SystemExit:
                return f"{' '.join(words)} is refused"
        return "the command line was not read"

    return check


@pytest.fixture
def check(parses, check_python, monkeypatch):
    """check(stage, whole) -> what is wrong with one program of a pipeline; `whole`: it must parse
    as it stands."""

    def check_hga(words, whole):
        found = parses(hga_words(words))
        return found if whole or not found else mention(hga_words(words))

    def check_export(words):
        with monkeypatch.context() as patched:
            for word in words[1:]:
                patched.setenv(*word.split("=", 1))
            return parses(["run"])

    def check_curl(words):
        json.loads(words[words.index("-d") + 1])
        return ""

    def go(stage, whole):
        words = stage.words
        if words[0].startswith("hga"):
            return check_hga(words, whole)
        checks = {
            "make": check_make, "pip": check_pip, "python": check_python, "export": check_export,
            "curl": check_curl, "echo": lambda words: "",
            # They read what `hga` before them writes.
            "man": lambda words: "" if words[1:] == ("-l", "-") else "man -l -",
            "eval": lambda words: "", "source": lambda words: "",
        }  # fmt: skip
        if words[0] not in checks:
            return f"{words[0]!r} is no program that this test knows"
        return checks[words[0]](words)

    return go


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_taken(shown, check, path):
    wrong = []
    for block in shown.blocks(path):
        for command in block.commands:
            for stage in command.stages:
                if found := check(stage, True):
                    wrong.append(f"{command.where}: {command.text}: {found}")
    for command in shown.inline(path):
        for stage in command.stages:
            if found := check(stage, False):
                wrong.append(f"{command.where}: {command.text}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hga run demo --tmep 1", "unknown option --tmep"),
        ("hga run demo --temp hot", "not a number"),
        ("hga rnu demo", "invalid choice"),
        ("hga-pack", "required: SOURCE"),
        ("docker run hga", "no program that this test knows"),
        ("make tests", "no tests"),
        ("make test PYTESTARGS=x", "no PYTESTARGS"),
        ("pip install 'hga[srve]'", "no extra 'srve'"),
        ("pip install leftpad", "pip install leftpad"),
        ("python bench/reader.py --gibs 8", "is refused"),
        ("python bench/no.py", "there is no"),
        ("export HGA_TMEP=1", "unknown environment variable"),
    ],
)
def test_wrong_commands_would_be_noticed(shown, check, line, said):
    (stage,) = shown.Shown("here", line).stages
    assert said in check(stage, True)


def test_a_flag_that_is_only_mentioned_is_checked(shown, check):
    for line, said in (
        ("hga batch --ray", ""), ("hga batch --rya", "--rya"), ("hga nap", "nap"),
        ("hga eval gap MODEL --ctx 1k --segmants 2", "--segmants"),
    ):  # fmt: skip
        (stage,) = shown.Shown("here", line).stages
        found = check(stage, False)
        assert said in found and bool(said) == bool(found)


def test_configuration_and_python_are_valid(shown, parses, tmp_path):
    kinds = []
    for path in DOCUMENTS:
        for block in shown.blocks(path):
            text = "\n".join(block.lines)
            if block.lines[0].startswith("# ") and "config.toml" in block.lines[0]:
                file = tmp_path / "config" / "hga" / "config.toml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                assert parses(["run"]) == "", block.where
                kinds.append("toml")
            elif block.lines[0].startswith(("from ", "import ")):
                compile(text, block.where, "exec")
                kinds.append("python")
    assert {"toml", "python"} <= set(kinds)


@pytest.fixture(scope="module")
def bench(tiny_gguf, tiny_hf, tmp_path_factory):
    """A folder with what the examples name."""
    from hga.tools.pack import pack

    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(tiny_gguf("llama")[0], folder / "model.gguf")
    shutil.copytree(tiny_hf("qwen3"), folder / "path" / "to" / "Qwen3-folder")
    pack(tiny_hf("qwen3"), folder / "demo.hga")
    schema = {"type": "object", "properties": {"urgent": {"type": "boolean"}},
              "required": ["urgent"], "additionalProperties": False}  # fmt: skip
    (folder / "schema.json").write_text(json.dumps(schema))
    (folder / "notes" / "trip").mkdir(parents=True)
    for name in ("report.txt", "question.txt", "text.txt", "notes/a.md", "notes/trip/b.txt"):
        (folder / name).write_text("What is a heat pump? It moves heat.\n")
    return folder


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_quick_commands_run(shown, bench, kernel_cache, path, tmp_path, monkeypatch, capsys):
    commands = [command for block in shown.blocks(path) for command in block.commands]
    quick = [c for c in commands if "hga" in c.text and not reason_not_to(c)]
    if not quick:
        return
    work = shutil.copytree(bench, tmp_path / "work")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hga").symlink_to(kernel_cache)
    monkeypatch.chdir(work)
    monkeypatch.setitem(PLACEHOLDERS, "PATH", str(tmp_path / "state/hga/sessions/trip"))
    wrong = []
    for command in quick:
        stdin = b"Hello\nAnd then?\nReally?\n"
        for stage in command.stages:
            if stage.words[0] == "echo":
                stdin = " ".join(stage.words[1:]).encode() + b"\n"
            if not stage.words[0].startswith("hga"):
                continue
            if stage.stdin is not None:
                stdin = Path(stage.stdin).read_bytes()
            fake = types.SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
            monkeypatch.setattr("sys.stdin", fake)
            code = cli.main(tiny_words(hga_words(stage.words)))
            out, err = capsys.readouterr()
            if code != 0:
                wrong.append(f"{command.where}: {command.text}: {code}: {err}{out}")
    assert not wrong, "\n".join(wrong)


def reason_not_to(command):
    """Why a command is not run, or None."""
    return next((why for text, why in NOT_RUN.items() if re.search(text, command.text)), None)


def tiny_words(words):
    """The same command on a tiny model, whose replies end by their length alone."""
    words = ["demo.hga" if word == "demo" else word for word in words]
    if words[0] in ("run", "batch") and not {"-n", "-j", "--schema"} & set(words):
        words += ["-n", "4"]
    return words


def test_reasons_not_to_run_are_needed(shown):
    commands = [c for path in DOCUMENTS for block in shown.blocks(path) for c in block.commands]
    for text in NOT_RUN:
        assert any(re.search(text, command.text) for command in commands), text
    run = [c for c in commands if c.text.startswith("hga") and not reason_not_to(c)]
    assert len(run) > 25


def test_the_makefile_takes_its_targets_as_shown(shown):
    """Not run, but read by make itself."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    seen = {s.words for p in DOCUMENTS for c in shown.inline(p) for s in c.stages}
    seen |= {s.words for p in DOCUMENTS for b in shown.blocks(p) for c in b.commands
             for s in c.stages}  # fmt: skip
    for words in sorted(each for each in seen if each[0] == "make"):
        done = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
