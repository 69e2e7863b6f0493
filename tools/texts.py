"""Text of files and streams that must be UTF-8: read as it is, or refused with the offset."""

from pathlib import Path
from typing import BinaryIO

from hga.runtime.durable import named
from hga.tools.errors import UsageError

# What is read of a file or of standard input: no context holds so much, and a pipe may not end.
MOST_INPUT_BYTES = 64 << 20


def bounded(stream: BinaryIO, name: str, whole: bool = True) -> bytes:
    """The rest of a stream, or a line of it; UsageError past MOST_INPUT_BYTES."""
    read = stream.read if whole else stream.readline
    data = read(MOST_INPUT_BYTES + 1)
    if len(data) > MOST_INPUT_BYTES:
        raise UsageError(
            f"{name} has more than {MOST_INPUT_BYTES:,} bytes: no context holds so much"
        )
    return data


def read_text(path: Path) -> str:
    """The text of a file; raises UsageError where it is not UTF-8 text, or too much of it."""
    with named(path), path.open("rb") as file:
        return decode(bounded(file, str(path)), str(path))


def decode(data: bytes, name: str) -> str:
    """UTF-8 text, without a byte-order mark; raises UsageError for anything else."""
    if b"\0" in data:
        raise UsageError(f"{name} is not text: it holds a zero byte at offset {data.index(0)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: byte offset {error.start}") from None
