"""Header and index of a packed file: their bytes, and every check that precedes the first view.

`Header` is the first 4096 bytes, `Index` the JSON at the end; docs/format.md has the diagrams. The
invariant after `check_index`: each tensor that the plan implies exists once, in a known format
whose size follows from its shape, inside a page-aligned segment that overlaps nothing.
"""

import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import xxhash

from hga.kernels.formats import FORMATS, FormatError
from hga.models.plan import ModelPlan, MoePlan, tensor_roles

from .container_plan import ContainerError, decode_plan, encode_plan
from .json_size import most_values

MAGIC = b"HGAPACK\x00"
VERSION = 1
PAGE_BYTES = 4096
# Alignment of a tensor inside its segment: one cache line, one vector register.
TENSOR_ALIGN = 64
# The index of a model of 70,000 tensors takes 10 MB and has 800,000 values.
MAX_INDEX_BYTES = 64 << 20
_MOST_VALUES = 4 << 20
MAX_TEXT_BYTES = 128 << 20
REPACK = "pack the model again with `hga pack`"

_HEAD = struct.Struct("<8sIIQQQQ16s")
_CHECKSUM = struct.Struct("<Q")
_HEX = re.compile(r"[0-9a-f]{16}")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


def align(offset: int, step: int) -> int:
    """The first multiple of step at or after offset."""
    return -(-offset // step) * step


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a packed file; sizes and offsets in bytes."""

    file_bytes: int
    index_offset: int
    index_bytes: int
    index_xxh3: int
    digest: bytes

    def encode(self) -> bytes:
        """The header as PAGE_BYTES bytes."""
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            PAGE_BYTES,
            self.file_bytes,
            self.index_offset,
            self.index_bytes,
            self.index_xxh3,
            self.digest,
        )
        return (head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))).ljust(PAGE_BYTES, b"\0")

    @staticmethod
    def decode(raw: bytes, actual_bytes: int) -> "Header":
        """The header of a file that really has `actual_bytes`; raises ContainerError."""
        if raw[:8] != MAGIC:
            raise ContainerError(f"not a packed model: starts with {raw[:8]!r}, expected {MAGIC!r}")
        if len(raw) < PAGE_BYTES:
            raise ContainerError(
                f"packed file is cut short: {len(raw)} bytes, the header takes {PAGE_BYTES}"
            )
        _, version, header_bytes, *rest = _HEAD.unpack_from(raw)
        if version != VERSION:
            raise ContainerError(
                f"packed file has format version {version}, this hga reads {VERSION}: {REPACK}"
            )
        (checksum,) = _CHECKSUM.unpack_from(raw, _HEAD.size)
        if xxhash.xxh3_64_intdigest(raw[: _HEAD.size]) != checksum:
            raise ContainerError(f"packed file: header checksum differs: {REPACK}")
        if header_bytes != PAGE_BYTES or any(raw[_HEAD.size + _CHECKSUM.size : PAGE_BYTES]):
            raise ContainerError(f"packed file: header needs {PAGE_BYTES} bytes, zero at its end")
        header = Header(*rest)
        header._check(actual_bytes)
        return header

    def _check(self, actual_bytes: int) -> None:
        if self.file_bytes != actual_bytes:
            raise ContainerError(
                f"packed file should have {self.file_bytes} bytes, found {actual_bytes}: {REPACK}"
            )
        if not 0 < self.index_bytes <= MAX_INDEX_BYTES:
            raise ContainerError(
                f"packed file: index of {self.index_bytes} bytes, expected 1 to {MAX_INDEX_BYTES}"
            )
        if self.index_offset < PAGE_BYTES or self.index_offset % PAGE_BYTES:
            raise ContainerError(f"packed file: index at unaligned offset {self.index_offset}")
        if self.index_offset + self.index_bytes != self.file_bytes:
            raise ContainerError(
                f"packed file: index at {self.index_offset} of {self.index_bytes} bytes should "
                f"end at {self.file_bytes}"
            )


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checksummed, page-aligned range of the file; xxh3 is 16 hexadecimal digits."""

    name: Name
    offset: Size
    nbytes: Size
    xxh3: str


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor: `offset` is relative to its segment, shape is (rows, columns) or (n,)."""

    role: Name
    segment: Name
    offset: Size
    format: str
    shape: tuple[int, ...]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A UTF-8 text in its own segment, as an lz4 frame; nbytes is the decoded size."""

    name: Name
    segment: Name
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_TEXT_BYTES)]


class ReportRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What packing did to the tensors of one kind, source type and format: how many, how many of
    them hold other values than the source, and their RMS error relative to the source's RMS."""

    kind: str
    source: str
    format: str
    tensors: int
    nbytes: int
    changed: int
    rms: float


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about the file but its tensors' bytes."""

    plan: dict[str, Any]
    segments: tuple[Segment, ...]
    tensors: tuple[Tensor, ...]
    texts: tuple[Text, ...]
    tokenizer: dict[str, Any]
    generation: dict[str, Any]
    source: dict[str, Any]
    report: tuple[ReportRow, ...]


def encode_index(index: Index) -> bytes:
    """The index as JSON, the same bytes for the same index."""
    return msgspec.json.encode(index)


def decode_index(raw: bytes) -> Index:
    """The index from JSON; raises ContainerError for anything but the fields above."""
    if (n_values := most_values(raw)) > _MOST_VALUES:
        raise ContainerError(
            f"packed file: index: expected at most {_MOST_VALUES} JSON values, found {n_values}"
        )
    try:
        return msgspec.json.decode(raw, type=Index)
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"packed file: index: {error}") from None


def digest_of(plan: ModelPlan, segments: tuple[Segment, ...]) -> bytes:
    """16 bytes that identify the model: every segment's checksum in file order, then the plan."""
    hasher = xxhash.xxh3_128()
    for segment in segments:
        hasher.update(_CHECKSUM.pack(int(segment.xxh3, 16)))
    hasher.update(msgspec.json.encode(encode_plan(plan)))
    return hasher.digest()


def tensor_nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor; ContainerError unless its format and shape agree."""
    fmt = FORMATS.get(tensor.format)
    if fmt is None:
        raise ContainerError(f"tensor {tensor.role}: unknown format {tensor.format!r}: {REPACK}")
    if (fmt.step == 0) != (len(tensor.shape) == 1):
        raise ContainerError(
            f"tensor {tensor.role}: format {fmt.name} does not go with shape {list(tensor.shape)}"
        )
    try:
        return fmt.nbytes(tensor.shape[0], tensor.shape[1] if len(tensor.shape) == 2 else 1)
    except FormatError as error:
        raise ContainerError(f"tensor {tensor.role}: {error}") from None


def check_index(index: Index, header: Header) -> ModelPlan:
    """Check the whole index against the header and the plan; returns the plan."""
    plan = decode_plan(index.plan)
    segments = _check_segments(index.segments, header)
    if digest_of(plan, index.segments) != header.digest:
        raise ContainerError(f"packed file: the digest is not that of its segments: {REPACK}")
    of_tensors = _check_tensors(index, plan, segments)
    of_texts = _check_texts(index.texts, segments)
    for name in segments:
        if (name in of_tensors) + (name in of_texts) != 1:
            raise ContainerError(f"segment {name} needs one use: for tensors or for a text")
    _check_experts(index.tensors, plan, segments)
    return plan


def _check_segments(segments: tuple[Segment, ...], header: Header) -> dict[str, Segment]:
    by_name = {segment.name: segment for segment in segments}
    if len(by_name) != len(segments):
        raise ContainerError("packed file: two segments have one name")
    end = PAGE_BYTES
    for segment in segments:
        at = f"segment {segment.name}: {segment.nbytes} bytes at offset {segment.offset}"
        if segment.offset % PAGE_BYTES or segment.nbytes == 0:
            raise ContainerError(f"{at}, expected a page-aligned range that is not empty")
        if segment.offset < end:
            raise ContainerError(f"{at} overlaps what comes before it, which ends at {end}")
        end = segment.offset + segment.nbytes
        if end > header.index_offset:
            raise ContainerError(f"{at} runs past the index at {header.index_offset}")
        if _HEX.fullmatch(segment.xxh3) is None:
            raise ContainerError(f"segment {segment.name}: malformed checksum")
    return by_name


def _check_tensors(index: Index, plan: ModelPlan, segments: dict[str, Segment]) -> set[str]:
    by_role = {tensor.role: tensor for tensor in index.tensors}
    if len(by_role) != len(index.tensors):
        raise ContainerError("packed file: two tensors have one role")
    expected = 0
    for role, shape in tensor_roles(plan):
        expected += 1
        tensor = by_role.get(role)
        if tensor is None:
            raise ContainerError(f"tensor {role} {list(shape)} is missing: {REPACK}")
        if tensor.shape != shape:
            raise ContainerError(
                f"tensor {role}: the plan implies shape {list(shape)}, "
                f"found {list(tensor.shape)[:8]}"
            )
    if expected != len(by_role):
        raise ContainerError(
            f"packed file holds {len(by_role)} tensors, the plan implies {expected}"
        )
    placed: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in index.tensors:
        nbytes = tensor_nbytes(tensor)
        segment = segments.get(tensor.segment)
        if segment is None:
            raise ContainerError(f"tensor {tensor.role}: no segment {tensor.segment!r}")
        if tensor.offset % TENSOR_ALIGN or tensor.offset + nbytes > segment.nbytes:
            raise ContainerError(
                f"tensor {tensor.role}: {nbytes} bytes at offset {tensor.offset} of segment "
                f"{segment.name}, which has {segment.nbytes}; expected alignment {TENSOR_ALIGN}"
            )
        ranges = placed.setdefault(tensor.segment, [])
        ranges.append((tensor.offset, tensor.offset + nbytes, tensor.role))
    for ranges in placed.values():
        for before, after in pairwise(sorted(ranges)):
            if after[0] < before[1]:
                raise ContainerError(f"tensor {after[2]} overlaps tensor {before[2]}")
    return set(placed)


def _check_texts(texts: tuple[Text, ...], segments: dict[str, Segment]) -> set[str]:
    if len({text.name for text in texts}) != len(texts):
        raise ContainerError("packed file: two texts have one name")
    if len({text.segment for text in texts}) != len(texts):
        raise ContainerError("packed file: two texts have one segment")
    for text in texts:
        if text.segment not in segments:
            raise ContainerError(f"text {text.name}: no segment {text.segment!r}")
    return {text.segment for text in texts}


def _check_experts(
    tensors: tuple[Tensor, ...], plan: ModelPlan, segments: dict[str, Segment]
) -> None:
    """The experts of a layer share one blob layout, so that any blob fits any cache slot."""
    by_role = {tensor.role: tensor for tensor in tensors}
    for i, layer in enumerate(plan.layers):
        if not isinstance(layer.mlp, MoePlan):
            continue
        layouts = set()
        for e in range(layer.mlp.n_experts):
            name = f"layers.{i}.experts.{e}"
            parts = [by_role[f"{name}.{part}"] for part in ("gate", "up", "down")]
            if any(part.segment != name for part in parts):
                raise ContainerError(f"expert {name} needs gate, up and down in segment {name}")
            sizes = tuple((part.format, part.offset) for part in parts)
            layouts.add((segments[name].nbytes, *sizes))
        if len(layouts) > 1:
            raise ContainerError(f"layers.{i}: its experts differ in format or layout")
