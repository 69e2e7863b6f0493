"""pack: a checkpoint to a packed model file, streaming, resumable, exact unless asked otherwise.

Memory stays at some row ranges of one tensor whatever the checkpoint's size. An interrupted pack
leaves OUT.partial and its journal; the same call goes on from there if source and format are the
same, and the result has the same bytes as an uninterrupted one.
"""

import errno
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hga.models.plan import TensorSpec
from hga.runtime.container_index import ReportRow
from hga.runtime.container_layout import Layout, SegmentPlan, plan_layout
from hga.runtime.container_tokenizer import split_tokenizer
from hga.runtime.container_writer import ContainerWriter
from hga.runtime.durable import named

from .pack_tensor import Piece, format_for, home_of, kind_of, pieces
from .sources import Source, SourceError, open_source

REQUESTS = ("auto", "q4", "q8", "fp8", "bf16")
# numpy packs without the interpreter lock. More threads would need more than the 1 GiB that pack
# promises: a row range takes up to 100 MiB of temporaries.
_MAX_THREADS = 4

Progress = Callable[[int, int], None]
Part = tuple[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What a pack did: sizes in bytes, errors per kind of tensor, the roles whose values changed.

    `resumed_nbytes` were taken over from an interrupted try. `notices` are the source's.
    """

    path: Path
    nbytes: int
    source_nbytes: int
    resumed_nbytes: int
    seconds: float
    rows: tuple[ReportRow, ...]
    changed: tuple[str, ...]
    notices: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people, a line per kind of tensor."""
        return [*report_lines(self.rows), _summary(self.rows)]


def pack(
    source_path: str | Path,
    out_path: str | Path,
    fmt: str = "auto",
    progress: Progress | None = None,
    resume: bool = True,
) -> PackReport:
    """Pack a GGUF file or a Hugging Face folder to `out_path`, which appears only when complete.

    `fmt` is one of REQUESTS; `progress` hears (bytes, total bytes). Raises SourceError,
    ConfigError, UnsupportedError or TokenizerError for a checkpoint that cannot be packed, OSError
    (ENOSPC) with the bytes needed where the disk is too small.
    """
    if fmt not in REQUESTS:
        raise ValueError(f"--format {fmt}: expected one of {', '.join(REQUESTS)}")
    begin = time.perf_counter()
    out = Path(out_path)
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; -o names a file", str(out))
    with open_source(source_path) as source:
        if any(out.exists() and out.samefile(file.path) for file in source.files):
            raise SourceError(f"{out}: the result would overwrite its source; choose another -o")
        files = _files(source)
        # Of a link, or other rights, which change a file's last time too, only a resumed try asks.
        identity = {
            "path": _as_text(str(source.path.resolve())),
            "format": fmt,
            "files": [
                [*each, file.path.stat().st_ctime_ns] for each, file in zip(files, source.files)
            ],
        }
        tokenizer, texts = split_tokenizer(source.tokenizer_spec())
        formats = {
            spec.role: format_for(spec.role, source.tensor(spec.source), fmt)
            for spec in source.specs
        }
        layout = plan_layout(source.plan, formats, texts)
        with named(out), ContainerWriter(out, layout, identity, resume, progress) as writer:
            resumed = sum(s.nbytes for s in layout.segments if s.name in writer.done)
            writer.write_text_segments()
            _write_tensors(writer, source, progress)
            if _files(source) != files:
                raise SourceError(f"{source.path}: the checkpoint changed while it was packed")
            rows, changed = _report(layout, writer.done)
            nbytes = writer.finish(
                tokenizer=tokenizer,
                generation=source.generation(),
                source={
                    "name": _as_text(source.path.resolve().name),
                    "kind": source.kind,
                    "nbytes": source.nbytes,
                    "format": fmt,
                },
                report=rows,
            )
        seconds = time.perf_counter() - begin
        return PackReport(
            out, nbytes, source.nbytes, resumed, seconds, rows, changed, source.notices
        )


def _as_text(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _files(source: Source) -> list[list[Any]]:
    """Names, sizes and times of the checkpoint's files as they are now."""
    stats = [(_as_text(file.path.name), file.path.stat()) for file in source.files]
    return [[name, found.st_size, found.st_mtime_ns] for name, found in stats]


def _write_tensors(writer: ContainerWriter, source: Source, progress: Progress | None) -> None:
    """Pack ahead in a few threads, write in the order of the file."""
    specs = {spec.role: spec for spec in source.specs}
    waiting = [s for s in writer.layout.segments if s.name not in writer.done]
    total = sum(segment.nbytes for segment in writer.layout.segments)
    finished = total - sum(segment.nbytes for segment in waiting)
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        results = _ahead(
            pool, (job for segment in waiting for job in _jobs(source, specs, segment))
        )
        for segment in waiting:
            notes: dict[str, list[Any]] = {}
            parts = _parts(segment, results, notes, specs, source)
            if progress is not None:
                parts = _counted(parts, progress, finished, total)
            writer.write_segment(segment.name, parts, notes.copy)
            finished += segment.nbytes
            if progress is not None:
                progress(finished, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _jobs(
    source: Source, specs: dict[str, TensorSpec], segment: SegmentPlan
) -> Iterator[Callable[[], Piece]]:
    for record in segment.tensors:
        spec = specs[record.role]
        yield from pieces(source.spec_tensor(spec), spec, record.format)


def _ahead(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], Piece]]) -> Iterator[Piece]:
    """The jobs' results in order, a bounded number of them computed in advance."""
    futures: deque[Future[Piece]] = deque()
    for job in jobs:
        futures.append(pool.submit(job))
        if len(futures) > _MAX_THREADS:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _parts(
    segment: SegmentPlan,
    results: Iterator[Piece],
    notes: dict[str, list[Any]],
    specs: dict[str, TensorSpec],
    source: Source,
) -> Iterator[Part]:
    """The bytes of a segment's tensors; notes gets [source type, difference, square] by role."""
    for record, nbytes in zip(segment.tensors, segment.tensor_nbytes(), strict=True):
        note: list[Any] = [source.tensor(specs[record.role].source).dtype, 0.0, 0.0]
        notes[record.role] = note
        while nbytes > 0:
            piece = next(results)
            note[1] += piece.difference
            note[2] += piece.square
            nbytes -= piece.data.size
            yield piece.role, piece.data


def _counted(parts: Iterator[Part], progress: Progress, start: int, total: int) -> Iterator[Part]:
    for role, data in parts:
        yield role, data
        start += data.size
        progress(start, total)


def _report(
    layout: Layout, done: dict[str, dict[str, Any]]
) -> tuple[tuple[ReportRow, ...], tuple[str, ...]]:
    """Rows per kind, source type and format in the order of the file; roles with other values."""
    groups: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {}
    changed: list[str] = []
    for segment in layout.segments:
        for record, nbytes in zip(segment.tensors, segment.tensor_nbytes(), strict=True):
            dtype, difference, square = done[segment.name][record.role]
            key = (kind_of(record.role), dtype, record.format)
            groups.setdefault(key, []).append((nbytes, difference, square))
            if difference > 0:
                changed.append(record.role)
    rows = [
        ReportRow(
            kind=kind,
            source=dtype,
            format=fmt,
            tensors=len(items),
            nbytes=sum(item[0] for item in items),
            changed=sum(item[1] > 0 for item in items),
            rms=_relative(sum(item[1] for item in items), sum(item[2] for item in items)),
        )
        for (kind, dtype, fmt), items in groups.items()
    ]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    rows.sort(key=lambda row: kinds.index(row.kind))
    return tuple(rows), tuple(changed)


def _relative(difference: float, square: float) -> float:
    return math.sqrt(difference / square) if square > 0 else 0.0


def report_lines(rows: tuple[ReportRow, ...]) -> list[str]:
    """A line per kind of tensor: source type, format, size, and what changed."""
    lines = []
    for row in rows:
        exact = row.format == "vec" or row.format == home_of(row.source)
        said = "exact" if exact else f"relative RMS error {row.rms:.2e}, {row.changed} changed"
        lines.append(
            f"{row.kind:8} {row.tensors:6} x {row.source:>7} -> {row.format:4} "
            f"{row.nbytes / 2**20:9.1f} MiB  {said}"
        )
    return lines


def _summary(rows: tuple[ReportRow, ...]) -> str:
    changed = sum(row.changed for row in rows)
    total = sum(row.tensors for row in rows)
    if changed == 0:
        return f"all {total} tensors keep every value of the source"
    kinds = dict.fromkeys(row.kind for row in rows if row.changed)
    return f"{changed} of {total} tensors changed values, as --format asks: {', '.join(kinds)}"
