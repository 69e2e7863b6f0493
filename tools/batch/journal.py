"""The journal of a batch: what became of every input, in a file that only grows.

One JSON object a line: the settings of a run, or what became of one input. Invariant: a line is on
the disk before anything else is done, so a process that is killed loses only the input that it was
at; a line that was cut short is dropped when the journal is opened. An input is done if its last
line says so under the same content and settings.
"""

import contextlib
import os
from pathlib import Path
from typing import IO, Any

import msgspec
import xxhash

from hga.kernels.system import sync, sync_folder
from hga.runtime.durable import open_locked
from hga.tools.errors import UsageError

JOURNAL_NAME = "journal.jsonl"


class Settings(msgspec.Struct, frozen=True, tag="settings", tag_field="line"):
    """What shapes every answer of a run; `key` names it."""

    key: str
    values: dict[str, Any]

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """Settings with their key."""
        ordered = msgspec.json.encode(values, order="sorted")
        return cls(xxhash.xxh3_64_hexdigest(ordered), values)


class Record(msgspec.Struct, frozen=True, tag="input", tag_field="line", omit_defaults=True):
    """What became of one input. `content` is the hash of its bytes ("" where it could not be
    read), `output` the file written for it, `text` the answer where it has no file of its own."""

    input: str
    content: str
    settings: str
    status: str
    reason: str = ""
    note: str = ""
    output: str = ""
    text: str = ""
    n_parts: int = 1
    cut: bool = False
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reply_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def done(self) -> bool:
        """Whether there is an answer."""
        return self.status == "done"


def content_hash(data: bytes) -> str:
    """What an input's bytes are known by."""
    return xxhash.xxh3_128_hexdigest(data)


_decoder = msgspec.json.Decoder(Settings | Record)


class Journal:
    """Open for one process; `records` has the last line of each input."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.notices: list[str] = []
        self._file = file
        self._end = 0
        self._last: Settings | None = None

    @classmethod
    def open(cls, folder: Path, *, resume: bool, overwrite: bool) -> "Journal":
        """Open or begin the journal of an output folder, which is made where it is missing.

        UsageError where there is one and neither `resume` nor `overwrite` is asked for;
        `overwrite` also removes the outputs that it lists. BlockingIOError: another process has
        it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JOURNAL_NAME
        file = open_locked(path)
        journal = cls(file, path)
        try:
            journal._read()
            if journal._end and not (resume or overwrite):
                done = sum(record.done for record in journal.records.values())
                raise UsageError(
                    f"{folder} holds a batch with {done:,} inputs done: --resume goes on with it,"
                    " --overwrite begins anew"
                )
            if journal._end and not resume:
                journal._restart(folder)
        except BaseException:
            file.close()
            raise
        sync_folder(folder)
        return journal

    def begin(self, settings: Settings) -> None:
        """Say what the lines that follow are made with."""
        self.settings[settings.key] = settings.values
        if settings != self._last:
            self._append(settings)
            self._last = settings

    def append(self, record: Record) -> None:
        """Add a line and make it durable; OSError leaves the journal as it was."""
        self._append(record)
        self.records[record.input] = record

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def _append(self, line: Settings | Record) -> None:
        data = msgspec.json.encode(line) + b"\n"
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            sync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
                self._file.seek(self._end)
            raise OSError(
                error.errno, f"{error.strerror}: {len(data):,} bytes were to be added",
                str(self.path),
            ) from error  # fmt: skip
        self._end += len(data)

    def _read(self) -> None:
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                found = _decoder.decode(line)
            except (msgspec.MsgspecError, RecursionError):
                self.notices.append(
                    f"{self.path}: line {number} is damaged: what it told of is done again"
                )
                continue
            if isinstance(found, Settings):
                self.settings[found.key] = found.values
                self._last = found
            else:
                self.records[found.input] = found
        if whole < len(data):
            self.notices.append(f"{self.path}: the last line was cut short and is dropped")
            self._file.truncate(whole)
        self._file.seek(whole)
        self._end = whole

    def _restart(self, folder: Path) -> None:
        """Forget everything, and remove the outputs that are listed."""
        for record in self.records.values():
            output = _inside(folder, record.output)
            if output is not None and output != self.path:
                output.unlink(missing_ok=True)
        self._file.truncate(0)
        self._file.seek(0)
        self._end, self._last = 0, None
        self.records.clear()
        self.settings.clear()
        self.notices.clear()


def _inside(folder: Path, name: str) -> Path | None:
    """A listed output that is a file, None where the name leads out of the folder or to none: a
    journal may be damaged."""
    path = folder / name
    if not os.path.isfile(path):
        return None
    return path if path.resolve().is_relative_to(folder.resolve()) else None
