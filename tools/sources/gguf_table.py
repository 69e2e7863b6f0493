"""What stands before the data of a GGUF file, versions 2 and 3: metadata and tensor table.

Source: ggml/docs/gguf.md. Nothing is believed: every count, length and offset is checked against
the real size of the file before it is used, and no tensor overlaps another.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from hga.models.plan import UnsupportedError

from .source import ByteFile, SourceError


@dataclass(frozen=True, slots=True)
class BlockType:
    """A tensor type: `values` consecutive values of a row take `nbytes`."""

    name: str
    values: int
    nbytes: int
    supported: bool = False


# ggml_type numbers. The ones without support are listed so that a message can name them.
BLOCK_TYPES: Final[Mapping[int, BlockType]] = {
    0: BlockType("F32", 1, 4, True),
    1: BlockType("F16", 1, 2, True),
    2: BlockType("Q4_0", 32, 18, True),
    3: BlockType("Q4_1", 32, 20, True),
    6: BlockType("Q5_0", 32, 22, True),
    7: BlockType("Q5_1", 32, 24, True),
    8: BlockType("Q8_0", 32, 34, True),
    9: BlockType("Q8_1", 32, 36),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144, True),
    13: BlockType("Q5_K", 256, 176, True),
    14: BlockType("Q6_K", 256, 210, True),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, True),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
}
SUPPORTED: Final = ", ".join(t.name for t in BLOCK_TYPES.values() if t.supported)

# Value type -> numpy type of the fixed-size ones; 8 is a string, 9 an array.
_SCALARS: Final[Mapping[int, str]] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4
_MAX_NAME_BYTES = 1 << 16
# Vocabularies of 262,144 tokens take 6 MiB of metadata; the cap keeps Python objects in bounds.
_MAX_METADATA_BYTES = 128 << 20
_WINDOW_BYTES = 4 << 20
# Python objects that all of it may become, and what a pair and a tensor count for: Gemma 3 makes
# 1.3 million. More would take seconds to read and a GiB to keep.
_MOST_VALUES = 1 << 22
_PAIR_VALUES, _TENSOR_VALUES = 8, 16


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One tensor as the table states it; `shape` in numpy order, `offset` from the file start."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """Everything before the data section. Arrays are lists; numbers are Python numbers."""

    version: int
    metadata: Mapping[str, object]
    tensors: tuple[TableEntry, ...]
    alignment: int
    data_offset: int


class _Cursor:
    """Reads the header front to back through a window of a few MiB."""

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        self.at = 0
        self._left = _MOST_VALUES
        self._start = 0
        self._window = b""

    @property
    def remaining(self) -> int:
        return self.file.size - self.at

    def error(self, text: str) -> SourceError:
        return SourceError(f"{self.file.path}: {text} (offset {self.at})")

    def spend(self, n_values: int, what: str) -> None:
        """Count objects about to be made; SourceError where there are too many."""
        self._left -= n_values
        if self._left < 0:
            raise self.error(f"{what}: more than {_MOST_VALUES} values before the data")

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.remaining:
            raise self.error(
                f"{what} needs {nbytes} bytes, {self.remaining} are left: "
                "the file is truncated or damaged"
            )
        if self.at + nbytes > _MAX_METADATA_BYTES:
            raise self.error(f"{what}: metadata beyond {_MAX_METADATA_BYTES} bytes")
        begin = self.at - self._start
        if begin + nbytes > len(self._window):
            self._window = self.file.read(
                self.at, min(self.remaining, max(nbytes, _WINDOW_BYTES))
            ).tobytes()
            self._start, begin = self.at, 0
        self.at += nbytes
        return self._window[begin : begin + nbytes]

    def number(self, code: str, what: str) -> int:
        size = struct.calcsize(code)
        return int(struct.unpack(code, self.take(size, what))[0])

    def string(self, what: str, limit: int = _MAX_METADATA_BYTES) -> str:
        length = self.number("<Q", what)
        if length > limit:
            raise self.error(f"{what}: expected at most {limit} bytes, found length {length}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what}: not UTF-8: {error.reason}") from error


def _value(cursor: _Cursor, kind: int, what: str, depth: int = 0) -> object:
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        return _array(cursor, what, depth + 1)
    dtype = _SCALARS.get(kind)
    if dtype is None:
        raise cursor.error(f"{what}: unknown value type {kind}; expected 0..12")
    return _scalars(cursor, dtype, 1, what)[0]


def _scalars(cursor: _Cursor, dtype: str, count: int, what: str) -> list[object]:
    size = np.dtype(dtype).itemsize
    raw = cursor.take(count * size, what)
    if dtype == "?" and raw.strip(b"\0\1"):
        raise cursor.error(f"{what}: a boolean must be 0 or 1")
    values: list[object] = np.frombuffer(raw, dtype).tolist()
    return values


def _array(cursor: _Cursor, what: str, depth: int) -> list[object]:
    if depth > _MAX_NESTING:
        raise cursor.error(f"{what}: arrays nested deeper than {_MAX_NESTING}")
    kind = cursor.number("<I", what)
    count = cursor.number("<Q", what)
    dtype = _SCALARS.get(kind)
    if dtype is not None:
        if count * np.dtype(dtype).itemsize <= cursor.remaining:
            cursor.spend(count, what)
        return _scalars(cursor, dtype, count, what)
    # A string takes at least its 8-byte length, an array 12 bytes of type and count.
    least = {_STRING: 8, _ARRAY: 12}.get(kind)
    if least is None:
        raise cursor.error(f"{what}: unknown array element type {kind}; expected 0..12")
    if count * least > cursor.remaining:
        raise cursor.error(
            f"{what}: an array of {count} elements does not fit in the {cursor.remaining} bytes "
            "left: the file is truncated or damaged"
        )
    cursor.spend(count, what)
    return [_value(cursor, kind, what, depth) for _ in range(count)]


def _check_head(cursor: _Cursor) -> int:
    magic = cursor.take(4, "magic") if cursor.remaining >= 4 else b""
    if magic != b"GGUF":
        raise SourceError(
            f"{cursor.file.path}: not a GGUF file: expected the bytes b'GGUF' at offset 0, "
            f"found {magic!r}"
        )
    version = cursor.number("<I", "version")
    if version & 0xFFFF == 0 and version:
        raise SourceError(
            f"{cursor.file.path}: a big-endian GGUF (version field {version:#010x}); "
            "only little-endian files are read"
        )
    if version not in (2, 3):
        raise SourceError(
            f"{cursor.file.path}: GGUF version {version}; supported: 2 and 3 (offset 4)"
        )
    return version


def _entries(cursor: _Cursor, n_tensors: int) -> list[TableEntry]:
    """The table with offsets still relative to the data section."""
    out: dict[str, TableEntry] = {}
    for i in range(n_tensors):
        name = cursor.string(f"name of tensor {i}", _MAX_NAME_BYTES)
        what = f"tensor {name!r:.200}"
        if name in out:
            raise cursor.error(f"{what} is in the table twice")
        n_dims = cursor.number("<I", what)
        if not 1 <= n_dims <= 4:
            raise cursor.error(f"{what}: expected 1 to 4 dimensions, found {n_dims}")
        dims = [cursor.number("<Q", what) for _ in range(n_dims)]
        type_id = cursor.number("<I", what)
        offset = cursor.number("<Q", what)
        block = BLOCK_TYPES.get(type_id)
        if block is None:
            raise UnsupportedError(
                f"{cursor.file.path}: {what}: unknown tensor type {type_id}; supported: {SUPPORTED}"
            )
        size = 1
        for dim in dims:
            size *= dim
            # One value takes at least 1/8 byte in every type: more cannot be in the file.
            if not 0 < size <= cursor.file.size * 8:
                raise cursor.error(
                    f"{what}: dimensions {dims} do not fit in a file of {cursor.file.size} bytes"
                )
        if dims[0] % block.values:
            raise cursor.error(
                f"{what}: {block.name} needs rows of a multiple of {block.values} values, "
                f"found {dims[0]}"
            )
        nbytes = size // block.values * block.nbytes
        out[name] = TableEntry(name, block, tuple(reversed(dims)), offset, nbytes)
    return list(out.values())


def _placed(
    cursor: _Cursor, entries: list[TableEntry], alignment: int, data_offset: int
) -> tuple[TableEntry, ...]:
    """Offsets made absolute, after checks of alignment, file size and overlap."""
    path = cursor.file.path
    end, last = 0, ""
    for entry in sorted(entries, key=lambda e: e.offset):
        if entry.offset % alignment:
            raise SourceError(
                f"{path}: tensor {entry.name!r}: data offset {entry.offset} is not a multiple of "
                f"the alignment {alignment}"
            )
        if entry.offset < end:
            raise SourceError(
                f"{path}: tensor {entry.name!r} at data offset {entry.offset} overlaps {last!r}, "
                f"which ends at {end}"
            )
        end, last = entry.offset + entry.nbytes, entry.name
        if data_offset + end > cursor.file.size:
            raise SourceError(
                f"{path}: tensor {entry.name!r} ends at byte {data_offset + end}, the file has "
                f"{cursor.file.size}: it is truncated or damaged"
            )
    return tuple(
        TableEntry(e.name, e.type, e.shape, data_offset + e.offset, e.nbytes) for e in entries
    )


def read_table(file: ByteFile) -> Table:
    """Parse and check everything before the data; raises SourceError, or UnsupportedError for an
    unknown tensor type. Does not look at the architecture."""
    cursor = _Cursor(file)
    version = _check_head(cursor)
    n_tensors = cursor.number("<Q", "tensor count")
    n_pairs = cursor.number("<Q", "metadata count")
    # Smallest pair: empty name, type, one byte. Smallest tensor: empty name, one dimension.
    if n_pairs * 13 > cursor.remaining or n_tensors * 32 > cursor.remaining:
        raise cursor.error(
            f"{n_tensors} tensors and {n_pairs} metadata pairs do not fit in the "
            f"{cursor.remaining} bytes left: the file is truncated or damaged"
        )
    cursor.spend(n_pairs * _PAIR_VALUES + n_tensors * _TENSOR_VALUES, "pairs and tensors")
    metadata: dict[str, object] = {}
    for i in range(n_pairs):
        key = cursor.string(f"name of metadata pair {i}", _MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error(f"metadata key {key!r:.200} stands there twice")
        what = f"metadata {key!r:.200}"
        metadata[key] = _value(cursor, cursor.number("<I", what), what)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment & (alignment - 1):
        raise SourceError(
            f"{file.path}: general.alignment: expected a power of two in 8..65536, "
            f"found {alignment!r:.80}"
        )
    entries = _entries(cursor, n_tensors)
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = _placed(cursor, entries, alignment, data_offset)
    return Table(version, metadata, tensors, alignment, data_offset)
