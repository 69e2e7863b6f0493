"""The bytes of a session's segments: a header, then slots of one block each (docs/format.md).

Invariant: nothing read from a file is used before it was checked against a checksum, the file's
real size and the limits written here. A checksum does not make a number true: files may be made to
harm.
"""

import struct
from dataclasses import dataclass

import xxhash

from .errors import SessionError
from .geometry import BLOCK_TOKENS, CELLS_PER_BLOCK, CELLS_PER_CHUNK, Geometry
from .memory import PAGE_BYTES

VERSION = 1
SEGMENT_HEADER = PAGE_BYTES

_SEGMENT_MAGIC = b"HGASEG\0\0"
# Magic, version, slots, segment id, bytes of a slot, digest of the block shape.
_SEGMENT = struct.Struct("<8sIIQQQ")
_SUM = struct.Struct("<Q")
_SEAL_MAGIC = b"SEAL"
# Magic, block, segment id, slot, generation; then the digest.
_SEAL = struct.Struct("<4sIQII")
SEAL_BYTES = _SEAL.size + _SUM.size

MOST_LAYERS = 1000
_MOST_HEADS = 4096
_MOST_CELL_BYTES = 1 << 20
_MOST_BLOCK_BYTES = 1 << 30
_MOST_SLOTS = 1024


def xxh3(*parts: bytes | memoryview) -> int:
    """xxh3_64 over parts."""
    hasher = xxhash.xxh3_64()
    for part in parts:
        hasher.update(part)
    return int(hasher.intdigest())


@dataclass(frozen=True, slots=True)
class CellPlace:
    """Where a cell belongs: 16 tokens of a KV head; chunk and cell count inside block and chunk."""

    layer: int
    chunk: int
    head: int
    cell: int

    def __str__(self) -> str:
        return f"layer {self.layer}, chunk {self.chunk}, KV head {self.head}, cell {self.cell}"


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a block of 128 tokens takes on disk.

    layers: (KV heads, bytes of a cell) of every layer; index_bytes: key sketches of all routed
    layers. Keys and values come first, layer after layer, then index, sums and seal.
    """

    layers: tuple[tuple[int, int], ...]
    index_bytes: int

    @classmethod
    def of(cls, geometry: Geometry) -> "BlockShape":
        """The shape of a model's blocks."""
        layers = ((s.n_kv_heads, geometry.cell_bytes(i)) for i, s in enumerate(geometry.layers))
        return cls(tuple(layers), geometry.block_index_bytes)

    @property
    def kv_bytes(self) -> int:
        """Keys and values."""
        return sum(CELLS_PER_BLOCK * heads * size for heads, size in self.layers)

    @property
    def n_cells(self) -> int:
        """Cells of all layers."""
        return sum(CELLS_PER_BLOCK * heads for heads, _ in self.layers)

    @property
    def tail_bytes(self) -> int:
        """Index, sums and seal, which follow keys and values."""
        return self.index_bytes + 4 * self.n_cells + SEAL_BYTES

    @property
    def block_bytes(self) -> int:
        """All of a slot: a multiple of 4096."""
        return -(-(self.kv_bytes + self.tail_bytes) // PAGE_BYTES) * PAGE_BYTES

    def layer_spans(self) -> list[tuple[int, int, int]]:
        """(first byte, first cell, bytes of a cell) of every layer, and of the end."""
        spans, at, cell = [], 0, 0
        for heads, size in self.layers:
            spans.append((at, cell, size))
            at, cell = at + CELLS_PER_BLOCK * heads * size, cell + CELLS_PER_BLOCK * heads
        return [*spans, (at, cell, 0)]

    def place(self, number: int) -> tuple[CellPlace, int]:
        """Where a cell belongs, counted in the order of bytes, and its offset in the block."""
        spans = self.layer_spans()
        layer = max(i for i, (_, first, _) in enumerate(spans[:-1]) if first <= number)
        at, first, size = spans[layer]
        chunk, rest = divmod(number - first, self.layers[layer][0] * CELLS_PER_CHUNK)
        head, cell = divmod(rest, CELLS_PER_CHUNK)
        return CellPlace(layer, chunk, head, cell), at + (number - first) * size

    def check(self, where: str) -> None:
        """SessionError unless a model could have this shape."""
        fits = 0 < len(self.layers) <= MOST_LAYERS and all(
            0 < heads <= _MOST_HEADS and size % 256 == 0 and 0 < size <= _MOST_CELL_BYTES
            for heads, size in self.layers
        )
        if not fits or self.index_bytes < 0 or self.block_bytes > _MOST_BLOCK_BYTES:
            raise SessionError(f"{where}: no model has blocks of this shape: the file is damaged")

    def digest(self) -> int:
        """A name for the shape."""
        return xxh3(repr((self.layers, self.index_bytes)).encode())


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment file: its number in the folder, its id and its slots."""

    number: int
    id: int
    n_slots: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"seg-{self.number:06d}.kv"

    def file_bytes(self, shape: BlockShape) -> int:
        """The file's size."""
        return SEGMENT_HEADER + self.n_slots * shape.block_bytes


def slot_offset(slot: int, shape: BlockShape) -> int:
    """Where a slot begins in its segment."""
    return SEGMENT_HEADER + slot * shape.block_bytes


def slot_seed(segment_id: int, slot: int, shape: BlockShape) -> int:
    """Seed of a slot's first cell; that of cell n is n more, modulo 2^64. No two cells of a
    segment share one."""
    return (segment_id + slot * shape.n_cells) % (1 << 64)


def segment_header(entry: SegmentEntry, shape: BlockShape) -> bytes:
    """The first 4096 bytes of a segment."""
    head = _SEGMENT.pack(
        _SEGMENT_MAGIC, VERSION, entry.n_slots, entry.id, shape.block_bytes, shape.digest()
    )
    return (head + _SUM.pack(xxh3(head))).ljust(SEGMENT_HEADER, b"\0")


def check_segment_header(data: bytes, where: str, shape: BlockShape, number: int) -> SegmentEntry:
    """What a segment says it is; SessionError where that cannot be."""
    head, stated = data[: _SEGMENT.size], data[_SEGMENT.size : _SEGMENT.size + _SUM.size]
    if len(data) < SEGMENT_HEADER or head[:8] != _SEGMENT_MAGIC:
        raise SessionError(f"{where} is not a segment: it begins with {head[:8]!r}")
    if stated != _SUM.pack(xxh3(head)):
        raise SessionError(f"{where}: the header does not match its checksum: it is damaged")
    _, version, n_slots, segment_id, block_bytes, digest = _SEGMENT.unpack(head)
    if version != VERSION:
        raise SessionError(f"{where} has format version {version}: this version reads {VERSION}")
    if block_bytes != shape.block_bytes or digest != shape.digest():
        raise SessionError(
            f"{where} is a foreign segment: its blocks of {block_bytes} bytes have another shape"
            f" than this session's of {shape.block_bytes}"
        )
    if not 0 < n_slots <= _MOST_SLOTS:
        raise SessionError(f"{where} has {n_slots} slots: expected 1 to {_MOST_SLOTS}")
    return SegmentEntry(number, segment_id, n_slots)


@dataclass(frozen=True, slots=True)
class Seal:
    """The last bytes of a slot: which block it holds, where it was written and in which save."""

    block: int
    segment_id: int
    slot: int
    generation: int

    def pack(self, tail: bytes | memoryview) -> bytes:
        """The seal of a tail (index and sums)."""
        body = _SEAL.pack(
            _SEAL_MAGIC, self.block, self.segment_id, self.slot, self.generation % (1 << 32)
        )
        return body + _SUM.pack(xxh3(tail, body))


def seal_digest(seal: bytes | memoryview) -> int:
    """The digest that a seal states."""
    return int(_SUM.unpack(seal[_SEAL.size : SEAL_BYTES])[0])


def open_seal(tail: memoryview) -> Seal | None:
    """The seal at the end of index, sums and seal, or None where they do not match it."""
    body, stated = tail[-SEAL_BYTES : -_SUM.size], tail[-_SUM.size :]
    if bytes(stated) != _SUM.pack(xxh3(tail[:-SEAL_BYTES], body)):
        return None
    magic, block, segment_id, slot, generation = _SEAL.unpack(body)
    return Seal(block, segment_id, slot, generation) if magic == _SEAL_MAGIC else None


def block_name(block: int) -> str:
    """A block for people."""
    first = block * BLOCK_TOKENS
    return f"block {block} (tokens {first} to {first + BLOCK_TOKENS - 1})"
