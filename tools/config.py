"""Where the value of a flag comes from: default < config.toml < HGA_* variable < command line.

Invariant: every name and value is checked whichever way it arrives, so nothing that a user wrote
is ignored. The configuration file and the environment serve all commands: a name that belongs to
another command is checked to exist and otherwise left alone.
"""

import argparse
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hga.tools.errors import UsageError
from hga.tools.flag import Flag
from hga.tools.flags import COMMANDS
from hga.tools.folders import config_folder
from hga.tools.texts import bounded

_PREFIX = "HGA_"
# Left to tests and scripts around hga: never an option of ours.
_FOREIGN = "HGA_TEST_"
# What no option takes; Python refuses to write numbers of more than 4,300 digits.
_MOST_BITS = 1024


@dataclass(frozen=True, slots=True)
class _Written:
    """A value as somebody wrote it, and where."""

    text: str
    where: str


def settle(
    given: argparse.Namespace, flags: Iterable[Flag], environ: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Parse the text of every flag from its strongest source and return the values by name.

    `given` holds the command line: for each flag its text, or None where it is absent (a number
    of repetitions for a counter, True for a switch). Raises UsageError naming the source.
    """
    environ = os.environ if environ is None else environ
    flags = tuple(flags)
    sources = (_command_line(given, flags), _environment(environ), _file(config_file()))
    chosen: dict[str, _Written] = {}
    dropped: set[str] = set()
    for source in sources:
        present = [flag for flag in flags if flag.name in source and flag.name not in chosen]
        taken = [flag for flag in present if flag.name not in dropped]
        for flag in taken:
            chosen[flag.name] = source[flag.name]
        dropped.update(name for flag in taken for name in flag.excludes)
    _refuse_conflicts(flags, chosen)
    values = {flag.name: flag.default for flag in flags}
    for flag in flags:
        if flag.name in chosen:
            values[flag.name] = _parse(flag, chosen[flag.name])
    return argparse.Namespace(**values)


def config_file() -> Path:
    """The configuration file's path, whether it exists or not."""
    return config_folder() / "config.toml"


def close_match(word: str, offered: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing."""
    found = difflib.get_close_matches(word, list(offered), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _command_line(given: argparse.Namespace, flags: Iterable[Flag]) -> dict[str, _Written]:
    written = {}
    for flag in flags:
        value = getattr(given, flag.name, None)
        if value is not None:
            name = next(option for option in flag.options if option.startswith("--"))
            written[flag.name] = _Written(str(value), name)
    return written


def _environment(environ: Mapping[str, str]) -> dict[str, _Written]:
    known = _names()
    written = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable.startswith(_FOREIGN):
            continue
        name = variable[len(_PREFIX) :].lower()
        if name not in known or variable != variable.upper():
            hint = close_match(variable, [_PREFIX + name.upper() for name in known])
            raise UsageError(f"unknown environment variable {variable}{hint}")
        written[name] = _Written(text, variable)
    return written


def _file(path: Path) -> dict[str, _Written]:
    import tomllib

    if path.exists() and not path.is_file():
        # A pipe would be waited for.
        raise UsageError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            table = tomllib.loads(bounded(file, str(path)).decode())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        # TOMLDecodeError, UnicodeDecodeError, and what Python says of a number of 5,000 digits.
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is not valid TOML: it is nested too deep") from None
    known = _names()
    written = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{key} in {path}"
        if name not in known:
            raise UsageError(f"unknown option {where}{close_match(name, known)}")
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise UsageError(f"{where}: the number is too large")
        elif isinstance(value, str | int | float):
            text = str(value)
        elif isinstance(value, list) and all(_is_plain(v) for v in value):
            text = ",".join(str(v) for v in value)
        else:
            raise UsageError(f"{where}: expected text, a number, true or false")
        written[name] = _Written(text, where)
    return written


def _is_plain(value: object) -> bool:
    return isinstance(value, str | float) or (
        isinstance(value, int) and value.bit_length() <= _MOST_BITS
    )


def _names() -> set[str]:
    return {flag.name for flags in COMMANDS.values() for flag in flags}


def _refuse_conflicts(flags: Iterable[Flag], chosen: Mapping[str, _Written]) -> None:
    for flag in flags:
        for other in flag.excludes:
            if flag.name in chosen and other in chosen:
                first, second = chosen[flag.name].where, chosen[other].where
                raise UsageError(f"{first} and {second} exclude each other: give one")


def _parse(flag: Flag, written: _Written) -> object:
    try:
        return flag.parse(written.text)
    except ValueError as error:
        raise UsageError(f"{written.where}: {error}") from None
