"""The text of a file: plain text of any encoding, HTML, PDF; anything else is refused by name.

Invariant: what comes out is text that was in the file; a binary file is reported, never guessed
at. Nothing here trusts a file: sizes are bounded, and a PDF is read in a process of its own.
"""

import codecs
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_FILE_BYTES: Final = 128 << 20
MAX_TEXT_CHARS: Final = 32 << 20
PDF_SECONDS: Final = 120.0
_POLL_S: Final = 0.2

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAGIC = (
    (b"\x89PNG", "PNG image"), (b"\xff\xd8\xff", "JPEG image"), (b"GIF8", "GIF image"),
    (b"PK\x03\x04", "ZIP archive or Office document"), (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"), (b"\xfd7zXZ", "xz archive"), (b"7z\xbc\xaf", "7-Zip archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"), (b"\x7fELF", "program"), (b"MZ\x90", "program"),
    (b"\xd0\xcf\x11\xe0", "old Office document"), (b"SQLite format 3\0", "SQLite database"),
    (b"OggS", "Ogg audio"), (b"ID3", "MP3 audio"), (b"RIFF", "RIFF audio or video"),
    (b"GGUF", "GGUF model"), (b"{\\rtf", "RTF document"),
)  # fmt: skip
# Encodings that are told apart by their text, likeliest first where the text does not tell.
_ENCODINGS = (
    "cp1252", "cp932", "euc_jp", "cp949", "gb18030", "big5", "cp1250", "iso8859_2", "cp1251",
    "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256",
)  # fmt: skip
# Codecs of Python's that no page is written in: of names of hosts, of source code, and none at all.
_NO_TEXT = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"))
_SAMPLE_BYTES = 1 << 20
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I)
_HTML_START = re.compile(rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I)
_HTML_ENDINGS = (".html", ".htm", ".xhtml")


class DocumentError(ValueError):
    """A file has no text that could be read; the message is the reason for the report."""


@dataclass(frozen=True, slots=True)
class Document:
    """Text of a file, never blank; `note` says what was not plain about reading it."""

    text: str
    note: str = ""


def read_document(
    data: bytes, name: str, abandoned: Callable[[], bool] = lambda: False
) -> Document:
    """The text of a file's bytes; raises DocumentError, also where `abandoned` turns true."""
    if len(data) > MAX_FILE_BYTES:
        raise DocumentError(f"{len(data):,} bytes: at most {MAX_FILE_BYTES:,} are read")
    if b"%PDF-" in data[:1024]:
        found = Document(_pdf_text(data, abandoned))
    else:
        _refuse_binary(data)
        if name.lower().endswith(_HTML_ENDINGS) or _HTML_START.match(data[:2048]):
            found = _read_html(data)
        else:
            text, note = decode(data)
            found = Document(text, note)
    if len(found.text) > MAX_TEXT_CHARS:
        raise DocumentError(
            f"{len(found.text):,} characters of text: at most {MAX_TEXT_CHARS:,} are read"
        )
    if not found.text.strip():
        raise DocumentError("no text in it")
    return found


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, note) of bytes by their mark, as declared, as UTF-8, or as the text suggests; raises
    DocumentError. Line ends become newlines."""
    text, note = _decode(data, declared)
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def _decode(data: bytes, declared: str | None) -> tuple[str, str]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), "" if mark == codecs.BOM_UTF8 else encoding
            except UnicodeDecodeError as error:
                raise DocumentError(f"damaged {encoding} text: byte offset {error.start}") from None
    if b"\0" in data:
        raise DocumentError(f"binary file: a zero byte at offset {data.index(0):,}")
    if declared is not None:
        try:
            known = codecs.lookup(declared).name
            if known not in _NO_TEXT:
                return data.decode(declared), "" if known == "utf-8" else known
        except (LookupError, UnicodeError):
            pass
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        offset = error.start
    likely = _likely_encoding(data[:_SAMPLE_BYTES])
    if likely is not None:
        try:
            return data.decode(likely), f"read as {likely}, which its text suggests"
        except UnicodeDecodeError:
            pass
    raise DocumentError(f"not text of a known encoding: not UTF-8 from byte offset {offset:,} on")


def _likely_encoding(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    matches = list(from_bytes(sample, cp_isolation=list(_ENCODINGS)))
    if not matches:
        return None
    chaos = min(match.chaos for match in matches)
    calm = [match for match in matches if match.chaos == chaos]
    coherence = max(match.coherence for match in calm)
    equals = [match.encoding for match in calm if match.coherence >= coherence - 0.02]
    return min(equals, key=_ENCODINGS.index)


def _refuse_binary(data: bytes) -> None:
    for magic, kind in _MAGIC:
        # Text may begin with the letters of a magic that is all letters.
        if data.startswith(magic) and (not magic.isalnum() or b"\0" in data[:4096]):
            raise DocumentError(f"binary file: {kind}")


def _read_html(data: bytes) -> Document:
    from hga.tools.batch.html import html_text

    declared = _META_CHARSET.search(data[:4096])
    text, note = decode(data, declared[1].decode("ascii", "replace") if declared else None)
    return Document(html_text(text), note)


def _pdf_text(data: bytes, abandoned: Callable[[], bool]) -> str:
    """Read by a child process, which a hostile file may stall or crash."""
    command = [sys.executable, "-P", "-m", "hga.tools.batch.pdf", str(MAX_TEXT_CHARS)]
    # A session of its own: Ctrl-C is for this process to handle.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:  # fmt: skip
        deadline, given = time.monotonic() + PDF_SECONDS, data
        while True:
            try:
                text, complaint = child.communicate(given or None, timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                given = b""
            if abandoned() or time.monotonic() > deadline:
                child.kill()
                raise DocumentError(f"damaged PDF: not read within {PDF_SECONDS:.0f} s")
    if child.returncode:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        raise DocumentError(lines[-1] if lines else f"damaged PDF: exit code {child.returncode}")
    return text.decode("utf-8")
