"""Text of files and streams that must be UTF-8: read as it is, or refused with the offset."""

from pathlib import Path

from hga.tools.errors import UsageError


def read_text(path: Path) -> str:
    """The text of a file; raises UsageError where it is not UTF-8 text."""
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, name: str) -> str:
    """UTF-8 text, without a byte-order mark; raises UsageError for anything else."""
    if b"\0" in data:
        raise UsageError(f"{name} is not text: it holds a zero byte at offset {data.index(0)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: byte offset {error.start}") from None
