"""`hga completion SHELL`: scripts for bash, zsh and fish, generated from the tree of commands.

What a value may be is read off the flag: the words that its parser takes, or by its placeholder
files, folders or saved sessions. Scripts ask nothing of `hga` when they run. (Of the packages that
do this, shtab knows no fish, and argcomplete starts Python at every Tab.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hga.tools.command_tree import Command, Operand
from hga.tools.demo import BUNDLES
from hga.tools.flag import Flag
from hga.tools.flags import COMMANDS
from hga.tools.help import TOPICS

Place = Literal["", "file", "folder", "session"]
ALIASES = {"hga-run": "run", "hga-pack": "pack"}
"""Programs that are a command."""

_PLACES: dict[str, Place] = {
    "MODEL": "file", "SOURCE": "file", "FILE": "file", "FILES": "file", "DIR_OR_FILES": "file",
    "FILE|TEXT": "file", "TASK": "file", "FILE.npy": "file", "FILE.npz": "file",
    "OUT.hga": "file", "OUT.png": "file", "DIR": "folder", "OUTDIR": "folder",
}  # fmt: skip
_WORDS = {"MODEL": tuple(BUNDLES), "SOURCE": tuple(BUNDLES), "TASK": ("summarize",)}


@dataclass(frozen=True, slots=True)
class Values:
    """What to offer: words, and what of the disk."""

    words: tuple[str, ...] = ()
    place: Place = ""


def flag_values(flag: Flag) -> Values:
    """What to offer as the value of a flag."""
    # `-f TEXT` of an evaluation names a file; other texts are texts.
    if flag.name == "file":
        return Values((), "file")
    if flag.name == "session":
        return Values((), "session")
    if flag.words:
        return Values(flag.words)
    return Values(_WORDS.get(flag.metavar, ()), _PLACES.get(flag.metavar, ""))


def operand_values(command: Command, operand: Operand) -> Values:
    """What to offer as an operand."""
    if operand.metavar == "TOPIC":
        commands = (name.split()[0] for name in COMMANDS)
        return Values(tuple(dict.fromkeys((*TOPICS, *commands))))
    if command.words[:1] == ("sessions",) and operand.metavar == "NAME":
        return Values((), "session")
    words = operand.words or _WORDS.get(operand.metavar, ())
    return Values(words, _PLACES.get(operand.metavar, ""))


def script(shell: str, tree: Command) -> str:
    """The completion script of a shell for the tree of `hga`."""
    from hga.tools import completion_fish, completion_zsh

    makers: dict[str, Callable[[Command], str]] = {
        "bash": bash,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
    }
    return makers[shell](tree)


_BASH = """\
# Completion of hga for bash: eval "$(hga completion bash)", or keep this file in
# ~/.local/share/bash-completion/completions/hga
_hga_sessions() {
    command ls -1 "${XDG_STATE_HOME:-$HOME/.local/state}/hga/sessions" 2>/dev/null
}

_hga() {
    local cur prev path word options words place i
    local IFS=$'\\n'
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    # --flag=value arrives as three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    path= options= words= place=
    case ${COMP_WORDS[0]##*/} in
%(aliases)s
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case "$path/$word" in
%(paths)s
        esac
    done
    case $path in
%(commands)s
    esac
    if [[ $cur == -* && $place != value ]]; then
        COMPREPLY=($(compgen -W "${options// /$'\\n'}" -- "$cur"))
        return
    fi
    COMPREPLY=($(compgen -W "${words// /$'\\n'}" -- "$cur"))
    case $place in
        file) COMPREPLY+=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null ;;
        folder) COMPREPLY+=($(compgen -d -- "$cur")); compopt -o filenames 2>/dev/null ;;
        session) COMPREPLY+=($(compgen -W "$(_hga_sessions)" -- "$cur")) ;;
    esac
}

complete -F _hga hga %(programs)s
"""


def bash(tree: Command) -> str:
    """The script for bash, 3.2 (that of macOS) and newer."""
    aliases = [f"        {program}) path=/{path} ;;" for program, path in ALIASES.items()]
    paths = [
        f"            '{_bash_path(each.words)}') path={_bash_path(each.words)} ;;"
        for each in tree.walk()
        if each.words
    ]
    commands = [line for each in tree.walk() for line in _bash_command(each)]
    return _BASH % {
        "aliases": "\n".join(aliases),
        "paths": "\n".join(paths),
        "commands": "\n".join(commands),
        "programs": " ".join(ALIASES),
    }


def _bash_path(words: tuple[str, ...]) -> str:
    return "".join(f"/{word}" for word in words)


def _bash_command(command: Command) -> list[str]:
    """The branch that sets `options` and what the next word may be."""
    lines = [f"        {_bash_path(command.words) or repr('')})"]
    lines.append(f"            options='{' '.join(options_of(command))}'")
    if command.children:
        lines.append(f"            words='{' '.join(each.words[-1] for each in command.children)}'")
    for operand in command.operands[:1]:
        lines.append(f"            {_bash_values(operand_values(command, operand), '')}")
    takers = [flag for flag in command.flags if not flag.switch]
    if takers:
        lines.append("            case $prev in")
        for flag in takers:
            values = _bash_values(flag_values(flag), "value")
            lines.append(f"                {'|'.join(flag.options)}) {values} ;;")
        lines.append("            esac")
    return [*lines, "            ;;"]


def _bash_values(values: Values, elsewhere: str) -> str:
    return f"words='{' '.join(values.words)}' place={values.place or elsewhere}"


def options_of(command: Command) -> list[str]:
    """All spellings of a command's options, those that argparse adds included."""
    found = [option for flag in command.flags for option in flag.options]
    return [*found, "-h", "--help", *(["--version"] if takes_version(command) else [])]


def takes_version(command: Command) -> bool:
    """Whether `--version` is an option: not of a command of commands."""
    return not command.words or not command.children
