"""ModelFile: a packed model, validated as a whole before any of it is handed out.

Invariant: an open ModelFile has a header, index and plan that agree with each other and with the
real size of the file; every view lies inside it and is read-only. Contents are checked by
`verify` alone (or open(verify=True)): opening reads the index, not the weights. docs/format.md.
"""

import contextlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt
import xxhash

from hga.kernels import system
from hga.kernels.formats import FORMATS, Format, n_groups
from hga.kvstore.memory import aligned_zeros
from hga.models.plan import ModelPlan

from .container_index import (
    MAGIC,
    PAGE_BYTES,
    REPACK,
    Header,
    Index,
    ReportRow,
    Segment,
    Tensor,
    check_index,
    decode_index,
    tensor_nbytes,
)
from .container_layout import decompress
from .container_plan import ContainerError
from .durable import named

if TYPE_CHECKING:
    from .tokenizer_spec import TokenizerSpec

__all__ = ["ContainerError", "ModelFile", "Segment", "TensorView", "is_packed"]

Load = Literal["mmap", "ram"]
Progress = Callable[[int, int], None]
U8 = npt.NDArray[np.uint8]

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor of an open ModelFile.

    `data` is read-only uint8: [ceil(rows / 16), group_bytes] of a matrix, [4 n] of a vector. It is
    valid while the ModelFile is open. `offset` is where it lies in the file.
    """

    role: str
    format: Format
    shape: tuple[int, ...]
    data: U8
    offset: int

    def vector(self) -> npt.NDArray[np.float32]:
        """The values of a vector [n]: a read-only view, no copy."""
        if self.format.step:
            raise TypeError(f"{self.role} is a {self.format.name} matrix, not a vector")
        return self.data.view("<f4")

    def values(self) -> npt.NDArray[np.float32]:
        """The values as a new float32 array of `shape`."""
        if self.format.step == 0:
            return self.vector().astype(np.float32)
        return self.format.unpack(self.data, *self.shape)


def _compare(segment: Segment, found: str) -> None:
    if found != segment.xxh3:
        raise ContainerError(
            f"segment {segment.name} at offset {segment.offset}: checksum {found}, expected "
            f"{segment.xxh3}: {REPACK}"
        )


def is_packed(path: Path) -> bool:
    """True if the file starts like a packed model; raises OSError if it cannot be read."""
    with named(path), open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class ModelFile:
    """A packed model open for reading; `close` it or use it in a `with` statement.

    With load="mmap" tensors are views of the mapped file. With load="ram" everything but the
    experts is read into memory of its own first, huge pages where the system grants them, and
    its checksums are compared: nothing of the trunk is ever read again from the disk. `is_mapped`
    tells whether a view of the mapping was handed out (experts that are few, a mapped trunk).
    """

    def __init__(self, path: Path, load: Load = "mmap") -> None:
        self.path = path
        self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            opened = os.fstat(self._file.fileno())
            size, self._written_ns = opened.st_size, opened.st_mtime_ns
            self.header = Header.decode(self._read(0, min(size, PAGE_BYTES)), size)
            raw = self._read(self.header.index_offset, self.header.index_bytes)
            if xxhash.xxh3_64_intdigest(raw) != self.header.index_xxh3:
                raise ContainerError(f"packed file: index checksum differs: {REPACK}")
            self._index: Index = decode_index(raw)
            self.plan: ModelPlan = check_index(self._index, self.header)
            self._segments = {segment.name: segment for segment in self._index.segments}
            self._tensors = {tensor.role: tensor for tensor in self._index.tensors}
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._map) != self.header.file_bytes:
                raise ContainerError(f"packed file {path} changed its size while it was opened")
            self._bytes: U8 | None = np.frombuffer(self._map, np.uint8)
            self._trunk: U8 | None = None
            self._trunk_range = (0, 0)
            self.is_mapped = False
            if load == "ram":
                self._load_trunk()
        except ContainerError as error:
            self._file.close()
            raise ContainerError(f"{path}: {error}") from None
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def open(cls, path: str | Path, verify: bool = False, load: Load = "mmap") -> Self:
        """Open and validate; with `verify` every checksum too. Raises ContainerError, OSError."""
        model = cls(Path(path), load)
        if verify:
            try:
                model.verify()
            except BaseException:
                model.close()
                raise
        return model

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that identify weights and plan."""
        return self.header.digest.hex()

    @property
    def fileno(self) -> int:
        """The descriptor of the open file."""
        return self._file.fileno()

    @property
    def generation(self) -> dict[str, Any]:
        """Sampling defaults of the checkpoint, as it stated them."""
        return self._index.generation

    @property
    def source(self) -> dict[str, Any]:
        """What was packed: name, kind, bytes, requested format."""
        return self._index.source

    @property
    def report(self) -> tuple[ReportRow, ...]:
        """Formats and errors per kind of tensor, as packing measured them."""
        return self._index.report

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment in file order."""
        return self._index.segments

    @property
    def roles(self) -> tuple[str, ...]:
        """Every tensor's role, in file order."""
        return tuple(self._tensors)

    @cached_property
    def tokenizer(self) -> "TokenizerSpec":
        """The tokenizer; raises TokenizerError or ContainerError if it is damaged."""
        from .container_tokenizer import join_tokenizer

        spec = join_tokenizer(self._index.tokenizer, self.text)
        if spec.n_vocab > self.plan.vocab_size:
            raise ContainerError(
                f"{self.path}: tokenizer of {spec.n_vocab} tokens, the model has "
                f"{self.plan.vocab_size}"
            )
        return spec

    def has(self, role: str) -> bool:
        """Whether the file holds a tensor of this role."""
        return role in self._tensors

    def tensor(self, role: str) -> TensorView:
        """The tensor of a role; KeyError if the plan has none."""
        tensor = self._tensors[role]
        start = self._segments[tensor.segment].offset + tensor.offset
        fmt = FORMATS[tensor.format]
        data = self._view(start, tensor_nbytes(tensor))
        if fmt.step:
            data = data.reshape(n_groups(tensor.shape[0]), -1)
        return TensorView(role, fmt, tensor.shape, data, start)

    def record(self, role: str) -> Tensor:
        """What the index says of a tensor, without a view of it."""
        return self._tensors[role]

    def segment(self, name: str) -> Segment:
        """Where a segment lies in the file; an expert's blob is `layers.{i}.experts.{e}`."""
        return self._segments[name]

    def text(self, name: str) -> str:
        """A text stored beside the weights; ContainerError if there is none of this name."""
        record = next((text for text in self._index.texts if text.name == name), None)
        if record is None:
            raise ContainerError(f"{self.path}: no text {name!r:.80} in the packed file")
        segment = self._segments[record.segment]
        raw = decompress(self._read(segment.offset, segment.nbytes), record.nbytes, name)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ContainerError(f"{self.path}: text {name}: {error}") from None

    def check_size(self) -> None:
        """Raise ContainerError if the file was cut or extended since it was opened: a view past a
        new end would kill the process."""
        size = os.fstat(self._file.fileno()).st_size
        if size != self.header.file_bytes:
            raise ContainerError(
                f"{self.path}: the file had {self.header.file_bytes} bytes when it was opened "
                f"and has {size} now"
            )

    def check_mapped(self) -> None:
        """Raise ContainerError if views of the mapping are in use and the file was cut or written
        to since it was opened: what they hold is not the model."""
        if not self.is_mapped:
            return
        self.check_size()
        if os.fstat(self._file.fileno()).st_mtime_ns != self._written_ns:
            raise ContainerError(f"{self.path}: the file was written to while it was open")

    def verify(self, progress: Progress | None = None) -> None:
        """Read every segment and compare its checksum; ContainerError names the first that
        differs. `progress` hears (bytes, total bytes)."""
        self.check_size()
        total = sum(segment.nbytes for segment in self.segments)
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        done = 0
        for segment in self.segments:
            hasher = xxhash.xxh3_64()
            for start in range(0, segment.nbytes, _BLOCK_BYTES):
                part = buffer[: min(_BLOCK_BYTES, segment.nbytes - start)]
                self._read_into(segment.offset + start, part)
                hasher.update(part)
                done += len(part)
                if progress is not None:
                    progress(done, total)
            try:
                _compare(segment, hasher.hexdigest())
            except ContainerError as error:
                raise ContainerError(f"{self.path}: {error}") from None

    def drop_page_cache(self) -> None:
        """Ask the system to forget what it keeps of the file, where it takes such advice."""
        system.forget(self._file.fileno())

    def close(self) -> None:
        """Close the file. Views still in use keep their memory until they are gone."""
        self._bytes = self._trunk = None
        self._file.close()
        # Where somebody holds a view, the mapping goes with the last of them.
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _view(self, start: int, nbytes: int) -> U8:
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        begin, end = self._trunk_range
        if self._trunk is not None and begin <= start and start + nbytes <= end:
            return self._trunk[start - begin : start - begin + nbytes]
        self.is_mapped = True
        return self._bytes[start : start + nbytes]

    def _load_trunk(self) -> None:
        trunk = [s for s in self.segments if ".experts." not in s.name and s.name[:5] != "text."]
        begin = trunk[0].offset
        end = trunk[-1].offset + trunk[-1].nbytes
        self._trunk = aligned_zeros(end - begin)
        for start in range(begin, end, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, end - start)
            self._read_into(start, self._trunk[start - begin : start - begin + size].data)
        # The bytes pass through the processor anyway: a damaged model is refused, not run.
        for segment in trunk:
            place = segment.offset - begin
            found = self._trunk[place : place + segment.nbytes]
            _compare(segment, xxhash.xxh3_64_hexdigest(found.data))
        self._trunk.flags.writeable = False
        self._trunk_range = (begin, end)

    def _read(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self._read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        with named(self.path):
            self._file.seek(offset)
            while done < len(view):
                got = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise ContainerError(
                        f"file ends at byte {offset + done}, {len(view)} were needed"
                    )
                done += got
