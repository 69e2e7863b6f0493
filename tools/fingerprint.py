"""A name for the contents of a checkpoint: equal files give equal names, wherever they lie.

Hashing reads everything once; the result is remembered with the size and times of each file, so
that a checkpoint that nobody touched is not read again.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hga.runtime.durable import named
from hga.tools.status import Report

_BLOCK = 4 << 20
# The files of a Hugging Face folder that a pack depends on.
_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def fingerprint(
    source: Path, memo: Path, report: Report, check: Callable[[], None] | None = None
) -> str:
    """32 hexadecimal digits over names and contents of a GGUF file or a folder's checkpoint
    files; `memo` is the file of remembered results, `report` hears (bytes, total bytes), `check`
    may refuse the source before all of it is read."""
    files = _files(source)
    stamp = _stamp(files)
    known = _read(memo)
    place = str(source.resolve())
    entry = known.get(place)
    if isinstance(entry, dict) and entry.get("stamp") == stamp:
        found = entry.get("fingerprint")
        if isinstance(found, str) and len(found) == 32:
            return found
    if check is not None:
        check()
    found = _hash(files, report)
    # Where the cache cannot be written the next start hashes again.
    with suppress(OSError):
        if _stamp(files) == stamp:
            _remember(memo, {**known, place: {"stamp": stamp, "fingerprint": found}})
    return found


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    return sorted(p for p in source.iterdir() if p.suffix in _SUFFIXES and p.is_file())


def _stamp(files: Sequence[Path]) -> list[list[object]]:
    stats = [(path.name, path.stat()) for path in files]
    # The time of a file's contents can be set, by a copy that keeps it or by a clock that is put
    # back; that of its last change of any kind cannot.
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]


def _hash(files: Sequence[Path], report: Report) -> str:
    import xxhash

    hasher = xxhash.xxh3_128()
    total = sum(path.stat().st_size for path in files)
    done = 0
    for path in files:
        # The name of a lone file is the user's; within a folder names have a meaning.
        name = path.name if len(files) > 1 else ""
        hasher.update(f"{name}\0{path.stat().st_size}\0".encode())
        with named(path), path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
                done += len(block)
                report(done, total)
    return str(hasher.hexdigest())


def _read(memo: Path) -> dict[str, object]:
    try:
        # A pipe would be waited for.
        table = json.loads(memo.read_text(encoding="utf-8")) if memo.is_file() else {}
    except (OSError, ValueError, RecursionError):
        # Only a cache of hashes: without it they are computed.
        return {}
    return table if isinstance(table, dict) else {}


def _remember(memo: Path, table: dict[str, object]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".memo-", dir=memo.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
    os.replace(name, memo)
