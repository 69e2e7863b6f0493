"""From an exception to an exit code and one line of text.

The table names classes instead of importing them: an exception that was raised comes from a
module that is loaded, and a command that fails early must not pay for the others.
"""

import errno
import os
import re

OK = 0
FAILED = 1
USAGE = 2
NO_ROOM = 3
SOME_FAILED = 4
BAD_MODEL = 5
INTERRUPTED = 130


STDOUT = "standard output"
"""The name of standard output in an OSError."""


class UsageError(ValueError):
    """The command line, the environment, the configuration file or an input asks for something
    that cannot be done."""


# EDQUOT does not exist on Windows.
# A name that the system cannot look up.
_NAME_ERRNOS = (errno.ENAMETOOLONG, errno.ELOOP)
# A message has to be read: names and values out of a file may have any length.
_MOST_CHARS = 900
_KEPT_CHARS = (500, 300)

_NO_ROOM_ERRNOS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)

# C0 and C1 but for the line break, and what turns the direction of writing.
_CONTROL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_READ_ONLY_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM)

# Our exceptions by class name, which is unique in the package, whatever module defines them.
_OURS = {
    "ConfigError": BAD_MODEL,
    "UnsupportedError": BAD_MODEL,
    "SourceError": BAD_MODEL,
    "ContainerError": BAD_MODEL,
    "TokenizerError": BAD_MODEL,
    "TemplateError": BAD_MODEL,
    "FormatError": BAD_MODEL,
    "SamplerError": BAD_MODEL,
    "GrammarError": USAGE,
    "BudgetError": NO_ROOM,
    "OptionError": USAGE,
    "ContextError": USAGE,
    "UsageError": USAGE,
    "AnswerError": FAILED,
    "ClusterError": FAILED,
    "DocumentError": FAILED,
    "FetchError": FAILED,
    "StoreError": FAILED,
    "SessionError": BAD_MODEL,
}
_BUILTIN = {
    "FileNotFoundError": USAGE,
    "IsADirectoryError": USAGE,
    "NotADirectoryError": USAGE,
    "MemoryError": NO_ROOM,
    "KeyboardInterrupt": INTERRUPTED,
    "OSError": FAILED,
}


def exit_code(error: BaseException) -> int:
    """The exit code of interface.md for an exception that reached the top."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM_ERRNOS:
        return NO_ROOM
    if isinstance(error, OSError) and error.errno in _NAME_ERRNOS:
        return USAGE
    return _lookup(error) or FAILED


def message(error: BaseException) -> str:
    """What to tell the user, on one line, a very long one without its middle; an exception that
    nobody planned says that it is a bug."""
    text = _message(error)
    if len(text) <= _MOST_CHARS:
        return text
    before, after = _KEPT_CHARS
    return f"{text[:before]} […] {text[-after:]}"


def _message(error: BaseException) -> str:
    if _lookup(error) is None:
        return one_line(
            f"internal error: {type(error).__name__}: {error} (-v -v shows the traceback)"
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
        if error.errno in _READ_ONLY_ERRNOS and _in_cache(str(error.filename)):
            text += " (XDG_CACHE_HOME chooses another folder for the cache)"
        if _is_bare_no_room(error) and error.filename != STDOUT:
            text += " (-o, --kv-dir or XDG_CACHE_HOME chooses another place)"
        return one_line(text)
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror)
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory: a smaller --ctx needs less"
    return one_line(str(error) or type(error).__name__)


def _is_bare_no_room(error: OSError) -> bool:
    """Whether there is no room, in the system's words: who knows more has words of its own."""
    number = error.errno
    return number in _NO_ROOM_ERRNOS and error.strerror == os.strerror(number or 0)


def _in_cache(name: str) -> bool:
    from pathlib import Path

    from hga.tools.folders import cache_folder

    cache = cache_folder()
    return Path(name) == cache.parent or Path(name).is_relative_to(cache)


def one_line(text: str) -> str:
    """Text with every run of white space, line breaks included, as one space, and printable."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Text with control characters as escapes: a name out of a file must not steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _lookup(error: BaseException) -> int | None:
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        table = {"hga": _OURS, "builtins": _BUILTIN}.get(package, {})
        if kind.__name__ in table:
            return table[kind.__name__]
    return None
