"""The completion script for zsh: a function a command, by `_arguments`, with descriptions."""

from hga.tools.command_tree import Command
from hga.tools.completion import ALIASES, Values, flag_values, operand_values, takes_version
from hga.tools.flag import Flag

_HEAD = """\
#compdef hga {programs}
# Completion of hga for zsh: eval "$(hga completion zsh)" after compinit, or keep this file as
# _hga in a folder of $fpath.
_hga_saved() {{
    local -a names
    names=(${{XDG_STATE_HOME:-$HOME/.local/state}}/hga/sessions/*(N/:t))
    compadd -a names
}}
"""
_TAIL = """\
if [ "$funcstack[1]" = "_hga" ]; then
    _hga_main "$@"
else
    compdef _hga_main hga {programs}
fi
"""


def script(tree: Command) -> str:
    """The script for zsh 5."""
    parts = [_HEAD.format(programs=" ".join(ALIASES))]
    for command in reversed(list(tree.walk())):
        parts.append(_function(command))
    return "\n".join([*parts, _TAIL.format(programs=" ".join(ALIASES))])


def _name(words: tuple[str, ...]) -> str:
    return "_".join(("_hga", *words)) if words else "_hga_main"


def _function(command: Command) -> str:
    lines = [f"{_name(command.words)}() {{"]
    if not command.words:
        lines += ["    case $service in"]
        lines += [f"        {p}) {_name((path,))}; return ;;" for p, path in ALIASES.items()]
        lines += ["    esac"]
    specs = [_flag(flag) for flag in command.flags]
    specs.append("'(- *)'{-h,--help}'[show the flags]'")
    if takes_version(command):
        specs.append("'(- *)--version[show the version]'")
    if command.children:
        lines += ["    local curcontext=$curcontext state line", "    local -a commands"]
        lines.append("    commands=(")
        lines += [f"        {_quoted(_described(each))}" for each in command.children]
        lines.append("    )")
        specs += ["'1:command:->command'", "'*::argument:->argument'"]
    else:
        for number, operand in enumerate(command.operands, 1):
            place = "*" if operand.repeated else number
            optional = ":" if operand.optional and not operand.repeated else ""
            values = _action(operand_values(command, operand))
            spec = f"{place}:{optional}{_escaped(operand.metavar)}:{values}"
            specs.append(_quoted(spec))
    lines.append(f"    _arguments {'-C ' if command.children else ''}\\")
    lines += [f"        {spec} \\" for spec in specs[:-1]] + [f"        {specs[-1]}"]
    if command.children:
        lines += ["    case $state in", "        command) _describe command commands ;;"]
        lines += ["        argument)", "            case $words[1] in"]
        lines += [
            f"                {each.words[-1]}) {_name(each.words)} ;;" for each in command.children
        ]
        lines += ["            esac", "            ;;", "    esac"]
    return "\n".join([*lines, "}", ""])


def _described(command: Command) -> str:
    return f"{command.words[-1]}:{_escaped(command.about)}"


def _flag(flag: Flag) -> str:
    text = _escaped(flag.help.replace("%%", "%"))
    value = ""
    if not flag.switch:
        value = f":{_escaped(flag.metavar)}:{_action(flag_values(flag))}"
    described = _quoted(f"[{text}]{value}")
    # `=` lets the value follow in the same word, too.
    equals = "" if flag.switch else "="
    spelt = [f"{each}{equals}" if each.startswith("--") else each for each in flag.options]
    if len(spelt) == 1:
        return f"{_quoted(spelt[0])}{described}"
    names = ",".join(spelt)
    if flag.counter:
        return f"'*'{{{names}}}{described}"
    others = _quoted(f"({' '.join(flag.options)})")
    return f"{others}{{{names}}}{described}"


def _action(values: Values) -> str:
    """What `_arguments` does for a value; several ways are tried together."""
    words = " ".join(values.words)
    functions = {"file": "_files", "folder": "_files -/", "session": "_hga_saved", "": " "}
    if not words:
        return functions[values.place]
    if not values.place:
        return f"({words})"
    # The space keeps `_arguments` from adding options of its own.
    return f' _alternative "words:word:({words})" "files:file:{functions[values.place]}"'


def _escaped(text: str) -> str:
    for char in "\\[]:":
        text = text.replace(char, f"\\{char}")
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
