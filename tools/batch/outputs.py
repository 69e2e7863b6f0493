"""What a batch writes: a file for each input, or one file of all answers.

Invariant: a file has its name only when it is whole and on the disk. The one file of all answers
is made from the journal, in the order of the inputs, whatever order they were answered in.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiofiles
import msgspec

from hga.kernels.system import sync, sync_folder
from hga.tools.batch.inputs import output_name
from hga.tools.batch.journal import Record
from hga.tools.errors import UsageError

FORMATS = ("files", "md", "jsonl")
_SCRATCH = ".unfinished"


class Outputs:
    """The output folder of one batch."""

    def __init__(self, folder: Path, form: str, *, json: bool) -> None:
        """form: one of FORMATS; json: answers are JSON values."""
        self.folder = folder
        self.form = form
        self._json = json
        self._scratch = folder / _SCRATCH
        self._n_written = 0

    def name_of(self, name: str) -> str:
        """The output of an input, below the folder; "" where it has no file of its own."""
        return output_name(name, ".json" if self._json else ".md") if self.form == "files" else ""

    @property
    def joined(self) -> Path | None:
        """The one file of all answers."""
        return None if self.form == "files" else self.folder / f"results.{self.form}"

    def refuse_existing(self, names: Iterable[str]) -> None:
        """UsageError where an output is there already."""
        for name in names:
            path = self.joined or self.folder / self.name_of(name)
            if path.exists():
                raise UsageError(
                    f"{path} exists and no journal says that a batch made it: --overwrite replaces"
                    " it"
                )

    def prepare(self) -> None:
        """Remove what a killed run left unfinished."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the folder of what is being written, where nothing is."""
        with contextlib.suppress(OSError):
            self._scratch.rmdir()

    async def write(self, name: str, text: str) -> None:
        """Write the output of an input, whole or not at all; OSError says how many bytes were to
        be written."""
        await self._replace(self.folder / self.name_of(name), _ending(text).encode())

    async def join(self, names: Iterable[str], records: dict[str, Record]) -> None:
        """Write the one file of all answers that there are."""
        path = self.joined
        if path is None:
            return
        known = [records[name] for name in names if name in records]
        if self.form == "md":
            data = "\n".join(map(_section, known)).encode()
        else:
            data = b"".join(msgspec.json.encode(self._row(each)) + b"\n" for each in known)
        await self._replace(path, data)

    def _row(self, record: Record) -> dict[str, Any]:
        row: dict[str, Any] = {"input": record.input}
        if not record.done:
            return row | {"error": record.reason}
        answer = msgspec.Raw(record.text.encode()) if self._json else record.text
        row |= {"output": answer, "prompt_tokens": record.prompt_tokens,
                "reply_tokens": record.reply_tokens}  # fmt: skip
        return row | ({"parts": record.n_parts} if record.n_parts > 1 else {})

    async def _replace(self, path: Path, data: bytes) -> None:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._n_written += 1
            unfinished = self._scratch / str(self._n_written)
            try:
                async with aiofiles.open(unfinished, "wb") as file:
                    await file.write(data)
                    await file.flush()
                    await asyncio.to_thread(sync, file.fileno())
                os.replace(unfinished, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    unfinished.unlink()
                raise
            await asyncio.to_thread(sync_folder, path.parent)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}: {len(data):,} bytes were to be written", str(path)
            ) from error


def _section(record: Record) -> str:
    body = record.text.strip() if record.done else f"*Failed: {record.reason}*"
    return f"## {record.input}\n\n{body}\n"


def _ending(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
