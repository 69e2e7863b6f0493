"""Completion scripts in the real shells; those that are not installed are skipped."""

import os
import shutil
import subprocess

import pytest

from hga.tools import cli
from hga.tools.command_tree import read_tree
from hga.tools.completion import ALIASES, flag_values, options_of, script
from hga.tools.flags import COMMANDS

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def tree():
    return read_tree(cli.build_parser())


@pytest.fixture
def place(tmp_path):
    """A folder with files, a folder and a saved session."""
    (tmp_path / "state" / "hga" / "sessions" / "trip-2").mkdir(parents=True)
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "work" / "a model.gguf").touch()
    (tmp_path / "work" / "notes.md").touch()
    return tmp_path


_BASH = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_hga
for word in "${COMPREPLY[@]}"; do printf '%s\\n' "$word"; done
"""


def offers(shell, place, tree, *words):
    """What a shell offers for the last of the words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = place / f"hga.{shell}"
    path.write_text(script(shell, tree), encoding="utf-8")
    environ = {"PATH": os.environ["PATH"], "HOME": str(place), "TERM": "dumb",
               "XDG_STATE_HOME": str(place / "state"), "LC_ALL": "C.UTF-8"}  # fmt: skip
    if shell == "bash":
        command = ["bash", "--norc", "--noprofile", "-c", _BASH, "bash", str(path), *words]
    elif shell == "fish":
        line = " ".join(words)
        command = ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"]
    else:
        return zsh_offers(path, environ, place / "work", words)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=place / "work", env=environ
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


def zsh_offers(path, environ, folder, words):
    """Through a line editor of its own (zpty), since zsh completes nowhere else: the line after a
    Tab, and the list below it."""
    driver = f"""\
zmodload zsh/zpty
zpty z zsh -f -i
wait_for() {{ seen=; repeat 400; do zpty -rt z part && seen+=$part; [[ $seen == *$1* ]] && break
    sleep 0.02; done }}
zpty -w z 'PS1=; stty -echo; autoload -Uz compinit; compinit -u -D; source {path}'
zpty -w z 'zstyle ":completion:*" verbose no; unsetopt auto_menu list_ambiguous; setopt list_packed'
zpty -w z 'finish() {{ print -r -- "<<$BUFFER>>" }}; zle -N finish; bindkey "^X" finish'
zpty -w z 'echo re""ady'
wait_for ready
zpty -w -n z {" ".join(words)!r}$'\\t\\x18'
wait_for '>>'
print -r -- $seen
"""
    done = subprocess.run(
        ["zsh", "-f", "-c", driver], capture_output=True, text=True, timeout=60, cwd=folder,
        env=environ,
    )  # fmt: skip
    assert "<<" in done.stdout, done
    return done.stdout


CASES = [
    (["hga", "ru"], {"run"}),
    (["hga", "eval", "need"], {"needle"}),
    (["hga", "run", "--kv-t"], {"--kv-type"}),
    (["hga", "run", "--kv-type", "q"], {"q8"}),
    (["hga", "eval", "needle", "--kind", "multi"], {"multikey", "multivalue"}),
    (["hga", "run", "de"], {"demo"}),
    (["hga", "run", "-m", "no"], {"notes.md"}),
    (["hga", "run", "no"], {"notes.md"}),
    (["hga", "help", "sess"], {"sessions"}),
    (["hga", "completion", "f"], {"fish"}),
    (["hga-run", "--markd"], {"--markdown"}),
    (["hga", "sessions", "sh"], {"show"}),
]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(("words", "expected"), CASES)
def test_what_is_offered(shell, place, tree, words, expected):
    assert offers(shell, place, tree, *words) == expected


def test_bash_offers_all_that_there_is(place, tree):
    assert offers("bash", place, tree, "hga", "") == {each.words[0] for each in tree.children}
    assert offers("bash", place, tree, "hga", "run", "a") == {"a model.gguf"}
    assert offers("bash", place, tree, "hga", "sessions", "rm", "") == {"trip-2"}
    assert offers("bash", place, tree, "hga", "batch", "-o", "") == {"models"}
    assert offers("bash", place, tree, "hga", "run", "-p", "") == set()
    assert offers("bash", place, tree, "hga", "run", "--io", "=", "m") == {"mmap"}
    for command in tree.walk():
        found = offers("bash", place, tree, "hga", *command.words, "-")
        assert found == set(options_of(command)), command.name


def test_fish_offers_the_long_options(place, tree):
    for command in tree.walk():
        found = offers("fish", place, tree, "hga", *command.words, "--")
        wanted = {option for option in options_of(command) if option.startswith("--")}
        assert wanted == found, command.name


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["hga", "ru"], "<<hga run >>"),
        (["hga", "eval", "rul"], "<<hga eval ruler >>"),
        (["hga", "eval", "ruler", "--sam"], "<<hga eval ruler --samples"),
        (["hga-run", "--kv-type", "q"], "<<hga-run --kv-type q8 >>"),
        (["hga", "run", "no"], "<<hga run notes.md >>"),
        (["hga", "sessions", "show", "tr"], "<<hga sessions show trip-2 >>"),
        (["hga", "batch", "-o", "m"], "<<hga batch -o models/"),
    ],
)
def test_zsh_completes(place, tree, line, shown):
    seen = offers("zsh", place, tree, *line)
    assert shown in seen and "bad option" not in seen


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_command_and_option(shell, tree, capsys):
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert out == script(shell, tree)
    for command in tree.walk():
        for option in options_of(command):
            name = option.lstrip("-") if shell == "fish" else option
            assert name in out
    for program in ALIASES:
        assert program in out


def test_an_unknown_shell_is_refused(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert "invalid choice 'tcsh': expected bash, zsh, fish" in capsys.readouterr().err


def test_the_tree_is_the_command_line(tree):
    leaves = {each.name: each.flags for each in tree.walk() if each.words and not each.children}
    assert leaves == COMMANDS


def test_paths_are_offered_as_paths(tree):
    from pathlib import Path

    for command in tree.walk():
        for flag in command.flags:
            if flag.parse is Path:
                assert flag_values(flag).place in ("file", "folder"), (command.name, flag.name)


def test_words_that_are_offered_are_taken(tree):
    for command in tree.walk():
        for flag in command.flags:
            for word in flag.words:
                flag.parse(word)
