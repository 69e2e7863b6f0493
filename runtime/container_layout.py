"""Where everything goes in a packed file, decided before a byte is written.

Sizes follow from the plan and the formats alone, so that the layout of a resumed pack is that of
the first try. Order: texts, trunk (vectors of a layer share a segment), then experts layer by
layer, each one page-aligned blob of gate, up and down.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import xxhash

from hga.models.plan import ModelPlan, tensor_roles

from .container_index import (
    MAX_TEXT_BYTES,
    PAGE_BYTES,
    TENSOR_ALIGN,
    Tensor,
    Text,
    align,
    tensor_nbytes,
)
from .container_plan import ContainerError, decode_plan, encode_plan

_EXPERT = re.compile(r"(layers\.\d+\.experts\.\d+)\.\w+")
_LAYER = re.compile(r"(layers\.\d+)\.\w+")


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """A segment to be written: its tensors in order, or the payload of a text."""

    name: str
    offset: int
    nbytes: int
    tensors: tuple[Tensor, ...]
    payload: bytes | None

    def tensor_nbytes(self) -> list[int]:
        """Bytes of each of its tensors."""
        return [tensor_nbytes(tensor) for tensor in self.tensors]


@dataclass(frozen=True, slots=True)
class Layout:
    """All segments of a packed file in file order, and where the index begins."""

    plan: ModelPlan
    segments: tuple[SegmentPlan, ...]
    texts: tuple[Text, ...]
    index_offset: int

    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything that the layout fixes, text payloads included."""
        hasher = xxhash.xxh3_64(msgspec.json.encode(encode_plan(self.plan)))
        for segment in self.segments:
            hasher.update(segment.payload or msgspec.json.encode(segment.tensors))
        hasher.update(str([(s.name, s.offset, s.nbytes) for s in self.segments]).encode())
        return hasher.hexdigest()


def plan_layout(plan: ModelPlan, formats: Mapping[str, str], texts: Mapping[str, str]) -> Layout:
    """The layout of a model whose tensor `role` is stored in the format named formats[role].

    `texts` are stored compressed under their names. Raises ContainerError where the plan is out
    of range, a format is unknown or cannot hold the tensor's shape, or a text is too long.
    """
    decode_plan(encode_plan(plan))
    packed = {name: text.encode() for name, text in texts.items()}
    placed: list[SegmentPlan] = []
    records: list[Text] = []
    offset = PAGE_BYTES
    for name, raw in packed.items():
        if len(raw) > MAX_TEXT_BYTES:
            raise ContainerError(f"text {name}: {len(raw)} bytes, the limit is {MAX_TEXT_BYTES}")
        payload = _compress(raw)
        placed.append(SegmentPlan(f"text.{name}", offset, len(payload), (), payload))
        records.append(Text(name, f"text.{name}", len(raw)))
        offset = align(offset + len(payload), PAGE_BYTES)
    for name, roles in _grouped(plan):
        tensors: list[Tensor] = []
        end = 0
        for role, shape in roles:
            kind = "vec" if len(shape) == 1 else formats[role]
            if kind == "vec" and len(shape) != 1:
                raise ContainerError(f"tensor {role}: a matrix cannot be stored as a vector")
            tensor = Tensor(role, name, align(end, TENSOR_ALIGN), kind, shape)
            end = tensor.offset + tensor_nbytes(tensor)
            tensors.append(tensor)
        placed.append(SegmentPlan(name, offset, end, tuple(tensors), None))
        offset = align(offset + end, PAGE_BYTES)
    return Layout(plan, tuple(placed), tuple(records), offset)


def _grouped(plan: ModelPlan) -> Iterator[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """Segment names with their tensors: the trunk in the order of the plan, then the experts."""
    trunk: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    experts: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for role, shape in tensor_roles(plan):
        expert, layer = _EXPERT.fullmatch(role), _LAYER.fullmatch(role)
        if expert is not None:
            experts.setdefault(expert[1], []).append((role, shape))
        elif layer is not None and len(shape) == 1:
            trunk.setdefault(f"{layer[1]}.vectors", []).append((role, shape))
        else:
            trunk.setdefault(role, []).append((role, shape))
    yield from trunk.items()
    yield from experts.items()


def _compress(raw: bytes) -> bytes:
    import lz4.frame

    compressed: bytes = lz4.frame.compress(raw, store_size=True)
    return compressed


def decompress(payload: bytes, nbytes: int, name: str) -> bytes:
    """The `nbytes` that were compressed; ContainerError unless the frame holds exactly those."""
    import lz4.frame

    try:
        decoder = lz4.frame.LZ4FrameDecompressor()
        # One byte more than allowed: a frame that goes on is caught without unpacking it all.
        raw: bytes = decoder.decompress(payload, max_length=nbytes + 1)
        complete = decoder.eof and not decoder.unused_data
    except (RuntimeError, EOFError, ValueError) as error:
        raise ContainerError(f"text {name}: damaged lz4 frame: {error}") from None
    if len(raw) != nbytes or not complete:
        raise ContainerError(f"text {name}: expected {nbytes} bytes in one lz4 frame")
    return raw
