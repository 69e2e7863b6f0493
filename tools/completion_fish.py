"""The completion script for fish: a line an option, for the command that the line has so far."""

from hga.tools.command_tree import Command
from hga.tools.completion import ALIASES, Values, flag_values, operand_values, takes_version
from hga.tools.flag import Flag

_HEAD = """\
# Completion of hga for fish: hga completion fish | source, or keep this file as
# ~/.config/fish/completions/hga.fish
function __hga_at --argument-names wanted
    set -l path
    for word in (commandline -opc)[2..-1]
        switch "$path/$word"
%s
        end
    end
    test "$path" = "$wanted"
end
function __hga_sessions
    set -l state $XDG_STATE_HOME
    test -n "$state"; or set state ~/.local/state
    command ls -1 $state/hga/sessions 2>/dev/null
end
complete -c hga -f
"""


def script(tree: Command) -> str:
    """The script for fish 3."""
    cases = [
        f"            case '{_path(each.words)}'\n                set path {_path(each.words)}"
        for each in tree.walk()
        if each.words
    ]
    lines = [_HEAD % "\n".join(cases)]
    for command in tree.walk():
        lines += _command(command)
    lines += [f"complete -c {program} -w 'hga {path}'" for program, path in ALIASES.items()]
    return "\n".join(lines) + "\n"


def _path(words: tuple[str, ...]) -> str:
    return "".join(f"/{word}" for word in words)


def _command(command: Command) -> list[str]:
    at = _path(command.words) or '""'
    where = f"complete -c hga -n '__hga_at {at}'"
    lines = [f"{where} -a {each.words[-1]} -d {_quoted(each.about)}" for each in command.children]
    for operand in command.operands[:1]:
        lines.append(f"{where} {_values(operand_values(command, operand))}")
    lines += [f"{where} {_flag(flag)}" for flag in command.flags]
    lines.append(f"{where} -s h -l help -d 'show the flags'")
    if takes_version(command):
        lines.append(f"{where} -l version -d 'show the version'")
    return lines


def _flag(flag: Flag) -> str:
    names = []
    for option in flag.options:
        if option.startswith("--"):
            names.append(f"-l {option[2:]}")
        else:
            # `-sys` is one option, not three.
            names.append(f"-{'s' if len(option) == 2 else 'o'} {option[1:]}")
    values = flag_values(flag)
    takes = "" if flag.switch else "-r" if values.place == "file" else "-x"
    offers = "" if flag.switch else _values(values)
    about = f"-d {_quoted(flag.help.replace('%%', '%'))}"
    return " ".join(part for part in (*names, takes, offers, about) if part)


def _values(values: Values) -> str:
    """What to offer; files are left out by default, `-F` brings them back."""
    parts = {
        "file": "-F",
        "folder": "-a '(__fish_complete_directories)'",
        "session": "-a '(__hga_sessions)'",
        "": "",
    }
    words = [f"-a {_quoted(' '.join(values.words))}"] if values.words else []
    return " ".join([*words, parts[values.place]]).strip()


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
