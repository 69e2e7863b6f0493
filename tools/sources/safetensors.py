"""The safetensors header, checked before any view: one JSON object, then the values without holes.

Source: huggingface/safetensors, README "Format". The first 8 bytes are the header's length; the
tensors' data_offsets count from the end of the header.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .jsonfile import parse_object
from .source import ByteFile, SourceError

# A checkpoint of a hundred thousand tensors in one file takes 15 MB of header.
_MAX_HEADER_BYTES = 32 << 20
_MAX_DIMS = 8
_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a safetensors file; `offset` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: ByteFile


def _entry(name: str, fields: object, data_offset: int, file: ByteFile) -> Entry:
    where = f"{file.path}: tensor {name!r:.200}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise SourceError(f"{where}: expected dtype, shape and data_offsets, found {fields!r:.80}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise SourceError(
            f"{where}: unknown dtype {dtype!r:.80}; expected one of {', '.join(_BYTES)}"
        )
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise SourceError(f"{where}: {what}: expected sizes, found {numbers!r:.80}")
        if any(n > file.size * 8 for n in numbers):
            raise SourceError(
                f"{where}: {what} {numbers!r:.80}: more than a file of {file.size} bytes can "
                "hold: it is truncated or damaged"
            )
    if len(shape) > _MAX_DIMS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SourceError(f"{where}: shape {shape!r:.80}, data_offsets {offsets!r:.80}")
    nbytes = offsets[1] - offsets[0]
    if math.prod(shape) * _BYTES[dtype] != nbytes:
        raise SourceError(
            f"{where}: shape {shape} of {dtype} takes {math.prod(shape) * _BYTES[dtype]} bytes, "
            f"data_offsets {offsets} hold {nbytes}"
        )
    return Entry(name, dtype, tuple(shape), data_offset + offsets[0], nbytes, file)


def read_header(file: ByteFile) -> dict[str, Entry]:
    """The tensors of one file by name, in file order; SourceError unless they cover the data
    section exactly, without overlap or hole."""
    path = file.path
    if file.size < 8:
        raise SourceError(
            f"{path}: not a safetensors file: expected a length of 8 bytes, found {file.size}"
        )
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > min(_MAX_HEADER_BYTES, file.size - 8):
        raise SourceError(
            f"{path}: header length {length} at offset 0: expected at most "
            f"{min(_MAX_HEADER_BYTES, file.size - 8)}; the file is truncated, damaged or no "
            "safetensors file"
        )
    header = parse_object(file.read(8, length).tobytes(), f"{path}: header")
    header.pop("__metadata__", None)
    data_offset = 8 + length
    entries = [_entry(name, fields, data_offset, file) for name, fields in header.items()]
    entries.sort(key=lambda e: (e.offset, e.nbytes))
    end = data_offset
    for entry in entries:
        if entry.offset != end:
            what = "overlaps the tensor before it" if entry.offset < end else "leaves a hole"
            raise SourceError(
                f"{path}: tensor {entry.name!r:.200} {what}: expected data offset "
                f"{end - data_offset}, found {entry.offset - data_offset}"
            )
        end += entry.nbytes
    if end != file.size:
        raise SourceError(
            f"{path}: the header describes {end} bytes, the file has {file.size}: "
            "it is truncated or damaged"
        )
    return {entry.name: entry for entry in entries}
