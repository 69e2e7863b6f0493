"""`hga help`: topics, commands, refusals; what the texts name exists; documents are up to date."""

import ast
import re
from pathlib import Path

import pytest

from hga.tools import cli, errors
from hga.tools.help import TOPICS, guide, topic_text
from hga.tools.repl_commands import COMMANDS as REPL_COMMANDS
from hga.tools.repl_commands import SETTABLE
from hga.tools.topic_text import parse, render, spans

pytestmark = pytest.mark.usefixtures("own_folders")

ALL = list(TOPICS)


def flags_of(tree):
    return {option for each in tree.walk() for flag in each.flags for option in flag.options}


@pytest.fixture
def tree():
    from hga.tools.command_tree import read_tree

    return read_tree(cli.build_parser())


@pytest.fixture
def hga(capsys):
    def go(*words):
        code = cli.main(["help", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return go


def test_the_list_names_topics_and_commands(hga, tree):
    code, out, err = hga()
    assert (code, err) == (0, "")
    for name, (_, about) in TOPICS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", out, re.MULTILINE)
    names = out.partition("has the flags of\n")[2].split()
    assert names == [command.name for command in tree.children]
    assert len(out.splitlines()) < 24 and max(map(len, out.splitlines())) < 80


@pytest.mark.parametrize("name", ALL)
def test_every_topic_fits_a_terminal(hga, name):
    code, out, err = hga(name)
    assert (code, err) == (0, "") and out.count("\n") > 5
    # Code, and words that cannot be broken, may be longer.
    long = [line for line in out.splitlines() if len(line) > 80 and not line.startswith("    ")]
    assert not long
    assert "**" not in out and "](" not in out and "\x1b" not in out
    for other in TOPICS[name][0]:
        assert hga(other)[1] == out


def test_a_topic_of_a_command_points_to_its_flags(hga):
    assert hga("batch")[1].endswith("All flags: hga batch --help\n")
    assert "All flags" not in hga("config")[1]


def test_a_command_without_a_topic_shows_its_flags(hga, capsys):
    for words in (["plan"], ["eval", "needle"], ["sessions", "fork"], ["eval"]):
        code, out, _ = hga(*words)
        assert code == 0 and out.startswith(f"usage: hga {' '.join(words)}")
        cli.main([*words, "--help"])
        assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("words", "near"),
    [(["sesions"], "sessions"), (["atention"], "attention"), (["evil"], "eval"),
     (["eval", "needl"], "eval needle")],
)  # fmt: skip
def test_an_unknown_topic_is_refused_with_the_nearest(hga, words, near):
    code, out, err = hga(*words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert f"unknown topic '{' '.join(words)}' (did you mean {near}?)" in err
    assert "did you mean" not in hga("xyzzy")[2]


def test_headings_are_bold_on_a_terminal_alone(monkeypatch, hga):
    monkeypatch.setattr("hga.tools.help.allows_colour", lambda stream: True)
    out = hga("memory")[1]
    assert out.startswith("\x1b[1mMemory budgets\x1b[0m\n") and "\x1b[1m--mem\x1b[0m bounds" in out
    assert re.sub("\x1b\\[[01]m", "", out) == render(topic_text("memory"), 80, False)


def test_names_are_unique():
    names = [*TOPICS, *(other for others, _ in TOPICS.values() for other in others)]
    assert len(names) == len(set(names))
    files = {path.stem for path in (Path(cli.__file__).parent / "topics").iterdir()}
    assert files == {*TOPICS, "intro"}


# Of other programs: pip, the shells.
FOREIGN = {"--index-url"}


@pytest.mark.parametrize("name", ["intro", *ALL])
def test_flags_that_a_topic_names_exist(tree, name):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", topic_text(name)))
    assert named - flags_of(tree) - {"--help"} - FOREIGN == set()


@pytest.mark.parametrize("name", ["intro", *ALL])
def test_variables_that_a_topic_names_exist(tree, name):
    known = {f"HGA_{flag.name.upper()}" for each in tree.walk() for flag in each.flags}
    named = set(re.findall(r"\bHGA_[A-Z_]+\b", topic_text(name)))
    assert named - known - {"HGA_NAME"} == set()


def test_every_flag_is_described(tree):
    for command in tree.walk():
        for flag in command.flags:
            assert len(flag.help) > 8, (command.name, flag.name)
            assert flag.switch or flag.metavar, f"{flag.options} has a value without a name"


def test_a_variable_is_named_for_a_long_option(tree):
    for command in tree.walk():
        for flag in command.flags:
            assert f"--{flag.name.replace('_', '-')}" in flag.options


def test_the_repl_topic_has_every_command_and_key():
    text = topic_text("repl")
    for command in REPL_COMMANDS:
        if command.names[0] != "/help":
            assert f"`{command.usage}`" in text
    for key in SETTABLE:
        assert f"`{key}`" in text
    named = set(re.findall(r"/[a-z]+", text))
    assert named <= {name for command in REPL_COMMANDS for name in command.names}


def test_the_output_topic_has_every_figure(fake_engine, say):
    from hga.tools.figures import reply_json
    from hga.tools.turns import Reply

    engine = fake_engine()
    keys = set(reply_json(Reply(), engine.session(), engine))
    (table,) = [b for b in parse(topic_text("output")) if b.kind == "table" and "key" in b.rows[0]]
    named = [part for row in table.rows[1:] for kind, part in spans(row[0]) if kind == "code"]
    assert sorted(named) == sorted(keys)


def test_the_exit_codes_are_those_of_the_program():
    (table,) = [b for b in parse(topic_text("exit-codes")) if b.kind == "table"]
    codes = {errors.OK, errors.FAILED, errors.USAGE, errors.NO_ROOM, errors.SOME_FAILED}
    codes |= {errors.BAD_MODEL, errors.INTERRUPTED}
    assert {int(row[0]) for row in table.rows[1:]} == codes


def literals(folders):
    """The texts of all string literals, the parts of f-strings joined by `…`."""
    found = []
    for path in (each for folder in folders for each in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(map(str, parts)))
    return "\n".join(" ".join(each.split()) for each in found)


def test_messages_that_are_explained_exist(repo_root):
    folders = [repo_root / name for name in ("kernels", "kvstore", "models", "runtime", "tools")]
    source = literals(folders)
    headings = [
        line for line in topic_text("troubleshooting").splitlines() if line.startswith("### ")
    ]
    quoted = [text for line in headings for text in re.findall(r"`([^`]+)`", line)]
    assert len(quoted) > 25
    for message in quoted:
        for part in message.split("…"):
            assert part.strip(" ,:'") in source, f"{part!r} of {message!r} is no message of ours"


def test_documents_are_made_from_the_topics(repo_root):
    docs = repo_root / "docs"
    hint = "`make docs` makes it anew"
    assert (docs / "guide.md").read_text(encoding="utf-8") == guide(), hint
    troubles = topic_text("troubleshooting")
    assert (docs / "troubleshooting.md").read_text(encoding="utf-8") == troubles, hint
    assert "## First run" in guide() and "## Exit codes" in guide()


def test_man_and_guide_exclude_each_other(hga):
    assert hga("--guide")[1] == guide()
    code, _, err = hga("--guide", "--man")
    assert code == 2 and "exclude each other" in err


def test_blocks_of_the_subset():
    text = "# T\n\nA `b c` **d** [e](f.md).\n\n- one\n- two\n\n    code\n\n      more\n\n"
    text += "| a | |\n| - | - |\n| `x\\|y` | z |\n"
    blocks = parse(text)
    assert [b.kind for b in blocks] == ["heading", "paragraph", "item", "item", "code", "table"]
    assert spans(blocks[1].text) == [
        ("plain", "A "), ("code", "b c"), ("plain", " "), ("bold", "d"), ("plain", " e."),
    ]  # fmt: skip
    assert blocks[4].lines == ("code", "", "  more")
    assert blocks[5].rows == (("a", ""), ("`x|y`", "z"))
    plain = "T\n\nA b c d e.\n\n- one\n- two\n\n    code\n\n      more\n\nx|y  z\n"
    assert render(text, 80, False) == plain
    styled = render(text, 80, True)
    assert "A \x1b[1mb c\x1b[0m \x1b[1md\x1b[0m e." in styled
    assert render("one two three\n", 8, False) == "one two\nthree\n"
