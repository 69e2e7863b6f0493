"""The `hga` command: parses the command line, runs a subcommand, turns an exception into an exit
code and one line on standard error.

A subcommand's module is imported when it runs, so that `hga --help` starts no numerics.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from hga.tools import errors, flags
from hga.tools.argument_parser import Parser, Version
from hga.tools.config import close_match, settle
from hga.tools.flag import MODEL, Flag
from hga.tools.interrupt import Terminated, endings
from hga.tools.status import Status, abandon, flush_output

Handler = Callable[[argparse.Namespace, Status], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hga` and return its exit code; `argv` leaves out the program's name."""
    return _run("hga", list(sys.argv[1:] if argv is None else argv))


def main_run() -> int:
    """`hga-run`: the same as `hga run`."""
    return _run("hga", ["run", *sys.argv[1:]])


def main_pack() -> int:
    """`hga-pack`: the same as `hga pack`."""
    return _run("hga", ["pack", *sys.argv[1:]])


def _run(prog: str, argv: list[str]) -> int:
    _prepare_streams()
    status = Status()
    try:
        parser = build_parser(prog)
        given, extra = parser.parse_known_args(argv)
        handler: Handler | None = getattr(given, "handler", None)
        if handler is None:
            parser.print_help(sys.stderr)
            return errors.USAGE
        if extra:
            _refuse_extra(extra, given.flags, given.prog)
        values = settle(given, given.flags)
        status = Status(quiet=getattr(values, "quiet", False), verbose=values.verbose)
        for name in given.operands:
            setattr(values, name, getattr(given, name))
        with endings():
            code = handler(values, status)
            flush_output()
        return code
    except SystemExit as error:
        # argparse leaves this way after --help and --version.
        return error.code if isinstance(error.code, int) else errors.OK
    except BrokenPipeError:
        # The reader has gone, and the interpreter's last flush would complain.
        abandon(sys.stdout)
        return errors.FAILED
    except KeyboardInterrupt as signalled:
        return _end(signalled, status)
    except Exception as error:
        # While a class is made, Python turns whatever is raised into a RuntimeError.
        cause = error.__cause__
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        return _fail(error, status, argv) if cause is None else _end(cause, status)


def _end(signalled: KeyboardInterrupt, status: Status) -> int:
    if isinstance(signalled, Terminated):
        status.notice("ended by a signal")
        return 128 + signalled.number
    status.notice("interrupted")
    return errors.INTERRUPTED


def _fail(error: Exception, status: Status, argv: Sequence[str]) -> int:
    if max(status.verbose, _verbosity(argv)) >= 2:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    status.error(errors.message(error))
    return errors.exit_code(error)


def _verbosity(argv: Sequence[str]) -> int:
    """How often -v was given, for a command line that could not be parsed."""
    count = 0
    for word in argv:
        if word == "--verbose":
            count += 1
        elif word.startswith("-v") and set(word[1:]) == {"v"}:
            count += len(word) - 1
    return count


def build_parser(prog: str = "hga") -> argparse.ArgumentParser:
    """The whole command line; values stay text until `settle` reads them."""
    parser = Parser(
        prog=prog,
        description="Run long-context language models on an ordinary machine.",
        epilog="hga help lists topics that are explained: memory, sessions, config, …",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    _add(commands, "run", _cmd_run, "chat with a model, or answer once with -p or -f",
         operands=[("MODEL", "?", "model", MODEL.help)])  # fmt: skip
    _add(commands, "batch", _cmd_batch, "one task over many files: summaries, a prompt, JSON",
         operands=[("DIR_OR_FILES", "+", "inputs", "folders and files to read")])  # fmt: skip
    _add(commands, "serve", _cmd_serve, "OpenAI-compatible HTTP server, with a chat page",
         operands=[("MODEL", "?", "model", MODEL.help)])  # fmt: skip
    _add(commands, "pack", _cmd_pack, "checkpoint (GGUF file, safetensors folder) to packed file",
         operands=[("SOURCE", None, "source", "GGUF file, safetensors folder, demo or gemma")],
    )  # fmt: skip
    file = [("FILE", None, "path", "packed file, GGUF file, safetensors or session folder")]
    _add(commands, "inspect", _cmd_inspect, "what is in a model file or a session", operands=file)
    _add(commands, "verify", _cmd_verify, "check every checksum of a model file or a session",
         operands=file)  # fmt: skip
    _add_sessions(commands)
    _add(commands, "plan", _cmd_plan, "the memory that a model and a context need",
         operands=[("MODEL", "?", "model", MODEL.help)])  # fmt: skip
    _add(commands, "doctor", _cmd_doctor, "what this machine offers: processor, memory, disk, GPU",
         operands=[])  # fmt: skip
    _add(commands, "bench", _cmd_bench, "prefill and decode speed at given depths",
         operands=[("MODEL", "?", "model", MODEL.help)])  # fmt: skip
    evals = _group(commands, "eval", "perplexity, and routed attention against dense")
    model = [("MODEL", "?", "model", MODEL.help)]
    _add(evals, "eval ppl", _cmd_eval, "perplexity of a text", operands=model)
    _add(evals, "eval gap", _cmd_eval, "loss gap of routed against dense attention",
         operands=model)  # fmt: skip
    _add(evals, "eval cases", _cmd_eval, "retrieval cases from a file of token ids",
         operands=model)  # fmt: skip
    _add(evals, "eval needle", _cmd_eval, "facts hidden at every depth of a long text",
         operands=model)  # fmt: skip
    _add(evals, "eval ruler", _cmd_eval,
         "variable tracking, common words, and many facts of one document",
         operands=model)  # fmt: skip
    _add(commands, "help", _cmd_help, "a topic explained, or a command's flags",
         operands=[("TOPIC", "*", "topic", "a topic or a command; none: the list of them")],
    )  # fmt: skip
    _add(commands, "completion", _cmd_completion, "a completion script for your shell",
         operands=[("SHELL", None, "shell", "bash, zsh or fish")])  # fmt: skip
    return parser


def _add_sessions(commands: "_Subparsers[Parser]") -> None:
    tasks = _group(commands, "sessions", "saved conversations", default="list")
    handler = _cmd_sessions
    name = ("NAME", None, "name", "the session's name")
    _add(tasks, "sessions list", handler, "name, length and size of each", operands=[])
    _add(tasks, "sessions show", handler, "what is in one, and the conversation", operands=[name])
    _add(tasks, "sessions rm", handler, "remove sessions",
         operands=[("NAME", "+", "names", "their names")])  # fmt: skip
    _add(tasks, "sessions fork", handler, "begin another where one is, sharing its pages",
         operands=[name, ("NEW", None, "new", "the name of the other")])  # fmt: skip
    _add(tasks, "sessions repair", handler, "compute damaged keys and values again",
         operands=[name, ("MODEL", None, "model", "the model that it belongs to")])  # fmt: skip


_Subparsers = argparse._SubParsersAction
_Operand = tuple[str, str | None, str, str]
_CHOICES = {"SHELL": ("bash", "zsh", "fish")}


def _group(
    commands: "_Subparsers[Parser]", name: str, text: str, default: str | None = None
) -> "_Subparsers[Parser]":
    """A command of commands; `default` is the one that runs, without flags, where none is named."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    if default is not None:
        command = f"{name} {default}"
        parser.set_defaults(
            handler=_cmd_sessions, flags=flags.COMMANDS[command], operands=["command"],
            command=command, prog=parser.prog,
        )  # fmt: skip
    return parser.add_subparsers(metavar="TASK", title="tasks", required=default is None)


def _add(
    commands: "_Subparsers[Parser]",
    command: str,
    handler: Handler,
    text: str,
    operands: Sequence[_Operand],
) -> None:
    parser = commands.add_parser(
        command.split()[-1], help=text, description=text, allow_abbrev=False
    )
    table = flags.COMMANDS[command]
    names = []
    for metavar, nargs, name, about in operands:
        # A name that is a flag too gets a place of its own, so that giving both is noticed.
        dest = f"operand_{name}"
        parser.add_argument(
            dest, metavar=metavar, nargs=nargs, help=about, choices=_CHOICES.get(metavar)
        )
        names.append(dest)
    _add_flags(parser, table)
    parser.add_argument("--version", action=Version)
    parser.set_defaults(
        handler=handler, flags=table, operands=[*names, "command"], command=command,
        prog=parser.prog,
    )  # fmt: skip


def _add_flags(parser: argparse.ArgumentParser, table: Iterable[Flag]) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag in table:
        if flag.group != "options" and flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        target = groups.get(flag.group, parser)
        text = argparse.SUPPRESS if flag.hidden else flag.help
        if flag.counter:
            target.add_argument(
                *flag.options, dest=flag.name, action="count", default=None, help=text
            )
        elif flag.switch:
            target.add_argument(
                *flag.options, dest=flag.name, action="store_const", const=True, help=text
            )
        else:
            target.add_argument(
                *flag.options, dest=flag.name, metavar=flag.metavar or None, help=text
            )


def _refuse_extra(extra: Sequence[str], table: Iterable[Flag], prog: str) -> NoReturn:
    word = extra[0]
    if word.startswith("-"):
        offered = [option for flag in table for option in flag.options if not flag.hidden]
        hint = close_match(word.partition("=")[0], offered)
        raise errors.UsageError(f"unknown option {word}{hint}; see {prog} --help")
    raise errors.UsageError(f"unexpected argument {word!r}; see {prog} --help")


def _model_argument(values: argparse.Namespace) -> str | None:
    operand, flag = values.operand_model, values.model
    if operand is not None and flag is not None and operand != flag:
        raise errors.UsageError(f"two models: {operand} and {flag}; give one")
    name: str | None = flag if operand is None else operand
    if name == "":
        # A variable of a script that is not set must not become the demo model.
        raise errors.UsageError("the name of the model is empty: leave it out for the demo model")
    return name


def _cmd_run(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.run import run

    return run(_model_argument(values), values, status)


def _cmd_batch(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.batch.command import batch

    return batch(values.operand_inputs, values, status)


def _cmd_serve(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.server.command import serve

    return serve(_model_argument(values), values, status)


def _cmd_pack(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.resolve import pack_command

    return pack_command(values.operand_source, values, status)


def _cmd_inspect(values: argparse.Namespace, status: Status) -> int:
    import json

    from hga.tools.inspect import describe

    found = describe(values.operand_path)
    print(json.dumps(found.data) if values.json else errors.printable("\n".join(found.lines)))
    return errors.OK


def _cmd_verify(values: argparse.Namespace, status: Status) -> int:
    import json

    from hga.tools.inspect import verify

    with status.bar("verifying", "bytes") as report:
        said = verify(values.operand_path, report)
    found = {"path": str(values.operand_path), "ok": True, "checked": said}
    print(json.dumps(found) if values.json else said)
    return errors.OK


def _cmd_sessions(values: argparse.Namespace, status: Status) -> int:
    task = values.command.split()[1]
    if task == "repair":
        from hga.tools.sessions_repair import repair

        return repair(values, status)
    from hga.tools.sessions import sessions

    return sessions(task, values, status)


def _cmd_plan(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.plan import plan

    return plan(_model_argument(values), values, status)


def _cmd_doctor(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.doctor import doctor

    return doctor(values, status)


def _cmd_bench(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.bench import bench

    return bench(_model_argument(values), values, status)


def _cmd_eval(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.eval import evaluate

    return evaluate(values.command.split()[1], _model_argument(values), values, status)


def _cmd_help(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.help import help_command

    return help_command(values.operand_topic, values, status)


def _cmd_completion(values: argparse.Namespace, status: Status) -> int:
    from hga.tools.command_tree import read_tree
    from hga.tools.completion import script

    sys.stdout.write(script(values.operand_shell, read_tree(build_parser())))
    return errors.OK


def _prepare_streams() -> None:
    """Generated text is UTF-8 wherever it goes, and a character that a terminal cannot show must
    not end a run."""
    # A stream that the caller closed is None: read as empty, written to nowhere.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            if stream.isatty():
                reconfigure(errors="replace")
            else:
                reconfigure(encoding="utf-8", errors="replace")
