"""Which files a batch reads, in which order, and where each one's output goes.

Invariant: the order depends on names alone; no file is taken twice, whatever links lead to it; no
two inputs share an output, on file systems that ignore case either.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from hga.tools.errors import UsageError
from hga.tools.folders import expand

_GENERATED = ("__pycache__", "node_modules")
# A file system's limit for one name is 255 bytes; ours get endings on top.
_MOST_NAME_BYTES = 200
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read. `name` is what it is called in reports, in the journal and, with an ending
    added, in the output folder: its place below the operand, with slashes."""

    path: Path
    name: str
    n_bytes: int


@dataclass(slots=True)
class Found:
    """What lies under the operands: files to read, those that cannot be, and what was left out."""

    inputs: list[Input] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def find_inputs(operands: Sequence[str], out: Path, *, hidden: bool) -> Found:
    """Files and everything in folders, by name. Hidden and generated entries of
    folders are left out unless `hidden`, the output folder always; both are said. Raises
    UsageError for an operand that is not there, and where nothing is left to read."""
    return _Search(out, hidden).run(operands)


class _Search:
    def __init__(self, out: Path, hidden: bool) -> None:
        self._out = os.path.realpath(out)
        self._hidden = hidden
        self._found = Found()
        self._left_out: list[str] = []
        self._twice: list[str] = []
        self._loops: list[str] = []
        self._folders: set[tuple[int, int]] = set()
        self._files: set[str] = set()
        self._names: set[str] = set()

    def run(self, operands: Sequence[str]) -> Found:
        roots = [expand(operand) for operand in operands]
        for root in roots:
            if not os.path.lexists(root):
                raise UsageError(f"no file or folder {str(root)!r}")
        found = self._found
        for root in roots:
            first = len(found.inputs)
            if root.is_dir():
                self._walk(root, "" if len(roots) == 1 else f"{_root_name(root)}/")
            else:
                self._add(root, _shown(root.name))
            found.inputs[first:] = sorted(found.inputs[first:], key=lambda i: i.name.split("/"))
        if self._left_out:
            found.notices.append(f"left out, hidden or generated: {_some(self._left_out)}"
                                 " (--hidden takes them)")  # fmt: skip
        if self._twice:
            found.notices.append(f"met twice, taken once: {_some(self._twice)}")
        if self._loops:
            found.notices.append(f"links to a folder already seen: {_some(self._loops)}")
        if not found.inputs and not found.unreadable:
            raise UsageError(f"no files to read in {', '.join(map(str, roots))}")
        return found

    def _walk(self, folder: Path, prefix: str) -> None:
        # What links lead to is looked at last: a file goes by its own name if it is here too.
        pending, links = deque([(folder, prefix)]), deque[tuple[Path, str]]()
        while pending or links:
            folder, prefix = pending.popleft() if pending else links.popleft()
            if not os.path.isdir(folder):
                self._add(folder, prefix)
                continue
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                reason = error.strerror or str(error)
                self._found.unreadable.append((prefix.rstrip("/") or str(folder), reason))
                continue
            here = (status.st_dev, status.st_ino)
            if here in self._folders:
                self._loops.append(prefix.rstrip("/") or str(folder))
                continue
            self._folders.add(here)
            for entry in entries:
                path, name = Path(entry.path), prefix + _shown(entry.name)
                if self._leaves_out(entry.name):
                    self._left_out.append(name)
                elif os.path.realpath(path) == self._out:
                    self._found.notices.append(f"left out, the output folder: {name}")
                elif os.path.isdir(path):
                    (links if entry.is_symlink() else pending).append((path, f"{name}/"))
                elif entry.is_symlink():
                    links.append((path, name))
                else:
                    self._add(path, name)

    def _leaves_out(self, name: str) -> bool:
        return not self._hidden and (name.startswith(".") or name in _GENERATED)

    def _add(self, path: Path, name: str) -> None:
        try:
            status = path.stat()
        except OSError as error:
            broken = path.is_symlink()
            reason = "a link that leads nowhere" if broken else error.strerror or str(error)
            self._found.unreadable.append((name, reason))
            return
        if not stat.S_ISREG(status.st_mode):
            self._found.unreadable.append((name, "not a regular file"))
            return
        real = os.path.realpath(path)
        if real in self._files:
            self._twice.append(name)
            return
        self._files.add(real)
        self._found.inputs.append(Input(path, self._unused(name), status.st_size))

    def _unused(self, name: str) -> str:
        """The name, or one with a number where another input has it."""
        for candidate in _candidates(name):
            if candidate.casefold() not in self._names:
                self._names.add(candidate.casefold())
                return candidate
        raise AssertionError("numbers do not end")


def output_name(name: str, suffix: str) -> str:
    """The output's place in the output folder: the input's, with an ending added, so that
    `a.txt` and `a.md` stay apart. Long names are cut and numbered by their hash, and so are
    folders that end as outputs do: `a` and the folder `a.md` may both be inputs."""
    *folders, last = name.split("/")
    return "/".join([*(_folder(part, suffix) for part in folders), _fitting(last) + suffix])


def _folder(part: str, suffix: str) -> str:
    return _numbered(part) if part.casefold().endswith(suffix) else _fitting(part)


def _fitting(part: str) -> str:
    return part if len(part.encode()) <= _MOST_NAME_BYTES else _numbered(part)


def _numbered(part: str) -> str:
    data = part.encode()
    kept = data[: _MOST_NAME_BYTES - 20].decode(errors="ignore")
    return f"{kept}-{xxhash.xxh3_64_hexdigest(data)}"


def _candidates(name: str) -> Iterator[str]:
    yield name
    head, slash, last = name.rpartition("/")
    number = 2
    while True:
        yield f"{head}{slash}{number}-{last}"
        number += 1


def _root_name(root: Path) -> str:
    return _shown(root.resolve().name or "root")


def _shown(name: str) -> str:
    """A file's name as text that can be stored and printed: bytes that are no UTF-8, and control
    characters, as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
