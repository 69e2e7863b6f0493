"""Forging files: the bytes of GGUF, safetensors, packed files and session heads with any content,
their checksums made good again, so that what is refused is refused for what it says."""

import copy
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from hga.kvstore import head as heads
from hga.runtime import container_index
from hga.runtime.container_index import PAGE_BYTES, Header

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12
_INDEX_AT = 24


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    """A GGUF metadata pair."""
    return text(key) + struct.pack("<I", kind) + payload


def string(key: str, value: str) -> bytes:
    """A pair with a text."""
    return pair(key, STRING, text(value))


def u32(key: str, value: int) -> bytes:
    """A pair with a number."""
    return pair(key, U32, struct.pack("<I", value))


def f32(key: str, value: float) -> bytes:
    """A pair with a float."""
    return pair(key, F32, struct.pack("<f", value))


def array(key: str, kind: int, count: int, payload: bytes) -> bytes:
    """A pair with an array; `count` may lie."""
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + payload)


def strings(key: str, values: Sequence[str | bytes]) -> bytes:
    """A pair with an array of texts."""
    return array(key, STRING, len(values), b"".join(map(text, values)))


def tensor(name: str, dims: Sequence[int], type_id: int = 0, offset: int = 0) -> bytes:
    """A row of GGUF's tensor table."""
    head = text(name) + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", type_id, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; `counts` (tensors, pairs) may lie."""
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + b"".join([*pairs, *tensors])
    return head + b"\0" * (-len(head) % alignment) + data


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` of the header may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def index_of(raw: bytes) -> dict[str, Any]:
    """The index of a packed file."""
    start = int.from_bytes(raw[_INDEX_AT : _INDEX_AT + 8], "little")
    index: dict[str, Any] = json.loads(raw[start:])
    return index


def with_index(raw: bytes, index: Mapping[str, Any] | bytes) -> bytes:
    """A packed file with another index, sealed anew: checksums and, where it can be, digest."""
    start = int.from_bytes(raw[_INDEX_AT : _INDEX_AT + 8], "little")
    body = index if isinstance(index, bytes) else json.dumps(index).encode()
    digest = raw[48:64]
    try:
        decoded = container_index.decode_index(body)
        plan = container_index.decode_plan(decoded.plan)
        digest = container_index.digest_of(plan, decoded.segments)
    except (ValueError, struct.error):
        pass
    header = Header(start + len(body), start, len(body), xxhash.xxh3_64_intdigest(body), digest)
    return header.encode() + raw[PAGE_BYTES:start] + body


def edited_index(raw: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """A packed file whose index `edit` has changed."""
    index = copy.deepcopy(index_of(raw))
    edit(index)
    return with_index(raw, index)


def sealed_head(body: bytes, generation: int = 1, body_bytes: int | None = None) -> bytes:
    """A session's head file with this body and good checksums; `body_bytes` may lie."""
    stated = len(body) if body_bytes is None else body_bytes
    header = struct.pack(
        "<8sIIQQ16s", b"HGAHEAD\0", 1, 0, generation, stated, heads.digest_128(body)
    )
    sealed = header + struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
    return sealed.ljust(heads.HEADER_BYTES, b"\0") + body
