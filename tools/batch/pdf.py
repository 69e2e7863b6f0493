"""PDF to text, as a program: the file on standard input, its text on standard output (pypdf).

A process of its own, because a hostile file can make a parser run, or take memory, without end.
Exit code 1: the reason is the last line of standard error.
"""

import io
import logging
import sys

from hga.kernels.system import limit_process

# What reading one file may take, where the system can bound it: bytes of memory, and seconds of
# the processor, which end the process where nobody waits for it any more.
_MOST_MEMORY = 4 << 30
_MOST_SECONDS = 180


def main() -> int:
    """Read standard input; the first argument is how many characters are wanted at most."""
    limit = int(sys.argv[1])
    limit_process(_MOST_MEMORY, _MOST_SECONDS)
    data = sys.stdin.buffer.read()
    try:
        from pypdf import PdfReader
    except ImportError:
        return _fail("PDF needs the package pypdf: pip install pypdf")
    # Its warnings about repairable faults are of no use to the reader of a report.
    logging.disable(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return _fail("PDF that needs a password")
        pages, n_chars = [], 0
        for page in reader.pages:
            pages.append(page.extract_text())
            n_chars += len(pages[-1])
            if n_chars > limit:
                break
    except Exception as error:
        return _fail(f"damaged PDF: {type(error).__name__}: {error}")
    text = "\n\n".join(pages)
    if pages and not text.strip():
        return _fail(f"PDF without text: {len(pages)} scanned pages")
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


def _fail(reason: str) -> int:
    line = " ".join(reason.split())[:300]
    sys.stderr.write(f"\n{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
