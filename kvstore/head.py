"""Head: what one commit of a session is, and the bytes of a head file (docs/format.md).

A head names everything that the commit consists of: fingerprint, segments, the place of every
block, the tokens' digest, and the text that goes with them. It is whole or it does not count.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import lz4.frame
import msgspec
import numpy as np
import xxhash

from .errors import SessionError
from .geometry import n_blocks
from .slots import Place
from .store_layout import (
    MOST_LAYERS,
    VERSION,
    BlockShape,
    SegmentEntry,
    xxh3,
)

Fingerprint = Mapping[str, str | int | float | bool]

_MAGIC = b"HGAHEAD\0"
# Magic, version, 0, generation, bytes of the body, xxh3_128 of the body; then xxh3_64 of these.
_HEADER = struct.Struct("<8sIIQQ16s")
HEADER_BYTES = 64
# Tokens, index bytes of a block, bytes of the text, bytes it is stored in, digest of the tokens;
# token file, bytes of the fingerprint, layers, segments, blocks, 0.
_BODY = struct.Struct("<QQQQ16sIIIIII")
_SEGMENT_ROW = struct.Struct("<QII")
_LAYER_ROW = struct.Struct("<II")
_BLOCKS = np.dtype([("segment", "<u4"), ("slot", "<u4"), ("digest", "<u8")])

_MOST_FINGERPRINT = 1 << 16
# Two id lists of a million tokens as text take 16 MB.
MOST_META = 1 << 26
MOST_HEAD = 1 << 27


class BlockEntry(NamedTuple):
    """Where a committed block lies, and the digest that its seal must state."""

    segment: int
    slot: int
    digest: int

    @property
    def place(self) -> Place:
        """Segment number and slot."""
        return self.segment, self.slot


@dataclass(frozen=True, slots=True)
class Head:
    """One commit. segments by number; blocks in order; meta: text of the caller's."""

    generation: int
    fingerprint: Fingerprint
    shape: BlockShape
    segments: Mapping[int, SegmentEntry]
    blocks: tuple[BlockEntry, ...]
    token_file: int
    n_tokens: int
    token_digest: bytes
    meta: str


def file_name(generation: int) -> str:
    """The head file of a generation: they take turns."""
    return f"head-{generation % 2}"


def digest_128(data: bytes | memoryview) -> bytes:
    """xxh3_128."""
    return bytes(xxhash.xxh3_128_digest(data))


def encode(head: Head) -> bytes:
    """The bytes of a head file; ValueError where the text is beyond its limit."""
    text = head.meta.encode()
    if len(text) > MOST_META:
        raise ValueError(f"{len(text)} bytes of text: a session holds {MOST_META}")
    stored = lz4.frame.compress(text)
    fingerprint = msgspec.json.encode(dict(head.fingerprint))
    blocks = np.array(list(head.blocks), _BLOCKS)
    body = b"".join(
        (
            _BODY.pack(
                head.n_tokens, head.shape.index_bytes, len(text), len(stored), head.token_digest,
                head.token_file, len(fingerprint), len(head.shape.layers), len(head.segments),
                len(head.blocks), 0,
            ),
            fingerprint,
            *(_LAYER_ROW.pack(*layer) for layer in head.shape.layers),
            *(_SEGMENT_ROW.pack(s.id, s.number, s.n_slots) for s in head.segments.values()),
            blocks.tobytes(),
            stored,
        )
    )  # fmt: skip
    header = _HEADER.pack(_MAGIC, VERSION, 0, head.generation, len(body), digest_128(body))
    return (header + struct.pack("<Q", xxh3(header))).ljust(HEADER_BYTES, b"\0") + body


def is_head(data: bytes) -> bool:
    """Whether a file begins as a head does."""
    return data[:8] == _MAGIC


def stated_bytes(header: bytes) -> int:
    """Bytes of the whole file as its first HEADER_BYTES state them, those alone where they are not
    whole: nothing else of such a file counts."""
    if not _is_whole(header):
        return HEADER_BYTES
    return HEADER_BYTES + int(_HEADER.unpack_from(header)[4])


def _is_whole(data: bytes) -> bool:
    """Whether a header matches its checksum."""
    stated = data[_HEADER.size : _HEADER.size + 8]
    return (
        len(data) >= HEADER_BYTES
        and is_head(data)
        and stated == struct.pack("<Q", xxh3(data[: _HEADER.size]))
    )


def decode(data: bytes, where: str) -> Head | None:
    """The commit in a head file's bytes; None where they are not whole (a commit that was cut
    short). SessionError where they are whole and cannot be right, or of another version."""
    if not _is_whole(data):
        return None
    _, version, _, generation, body_bytes, digest = _HEADER.unpack_from(data)
    if version != VERSION:
        raise SessionError(f"{where} has format version {version}: this version reads {VERSION}")
    body = data[HEADER_BYTES : HEADER_BYTES + body_bytes]
    if len(body) != body_bytes or digest_128(body) != digest:
        return None
    return _decode_body(body, generation, where)


def _decode_body(body: bytes, generation: int, where: str) -> Head:
    def refuse(what: str) -> SessionError:
        return SessionError(f"{where}: {what}: the file is damaged")

    if len(body) < _BODY.size:
        raise refuse(f"{len(body)} bytes are too few for a head")
    (n_tokens, index_bytes, meta_bytes, stored_bytes, token_digest, token_file, fingerprint_bytes,
     n_layers, n_segments, n_entries, _) = _BODY.unpack_from(body)  # fmt: skip
    sizes = (
        fingerprint_bytes, n_layers * _LAYER_ROW.size, n_segments * _SEGMENT_ROW.size,
        n_entries * _BLOCKS.itemsize, stored_bytes,
    )  # fmt: skip
    if _BODY.size + sum(sizes) != len(body):
        raise refuse(f"its parts take {_BODY.size + sum(sizes)} bytes and there are {len(body)}")
    if n_entries != n_blocks(n_tokens):
        raise refuse(f"{n_entries} blocks cannot be those of {n_tokens} tokens")
    if (
        not 0 < generation < 1 << 62
        or n_layers > MOST_LAYERS
        or fingerprint_bytes > _MOST_FINGERPRINT
    ):
        raise refuse("its counts are out of range")
    at, parts = _BODY.size, []
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    shape = BlockShape(tuple(_LAYER_ROW.iter_unpack(parts[1])), index_bytes)
    shape.check(where)
    segments = {n: SegmentEntry(n, i, s) for i, n, s in _SEGMENT_ROW.iter_unpack(parts[2])}
    if len(segments) != n_segments:
        raise refuse("a segment is listed twice")
    blocks = tuple(BlockEntry(*row) for row in np.frombuffer(parts[3], _BLOCKS).tolist())
    for number, block in enumerate(blocks):
        entry = segments.get(block.segment)
        if entry is None or block.slot >= entry.n_slots:
            raise refuse(f"block {number} lies in slot {block.slot} of segment {block.segment},"
                         " which there is not")  # fmt: skip
    if len({block.place for block in blocks}) != len(blocks):
        raise refuse("two blocks lie in one slot")
    try:
        fingerprint = msgspec.json.decode(parts[0], type=dict[str, str | int | float | bool])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise refuse("its fingerprint is not one") from None
    meta = _text(parts[4], meta_bytes)
    if meta is None:
        raise refuse("its text cannot be unpacked")
    return Head(
        generation, fingerprint, shape, segments, blocks, token_file, n_tokens, token_digest, meta
    )


def _text(stored: bytes, n_bytes: int) -> str | None:
    """The text, never more of it than is stated."""
    if n_bytes > MOST_META:
        return None
    try:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        text = decompressor.decompress(stored, max_length=n_bytes + 1)
        if not decompressor.eof or decompressor.unused_data or len(text) != n_bytes:
            return None
        return bytes(text).decode()
    except (RuntimeError, EOFError, UnicodeDecodeError):
        return None


# Keys of a fingerprint that are options of the same name.
_OPTIONS = ("attention", "budget", "prefill", "sketch_bits", "kv_type")


def require_match(session: str, stored: Fingerprint, now: Fingerprint | None) -> None:
    """SessionError naming every key in which two fingerprints differ; None: anything will do."""
    if now is None:
        return
    missing = "nothing"
    keys = [
        key
        for key in [*stored, *(key for key in now if key not in stored)]
        if stored.get(key, missing) != now.get(key, missing)
    ]
    if not keys:
        return
    different = "; ".join(
        f"{key}: stored {stored.get(key, missing)}, now {now.get(key, missing)}" for key in keys
    )
    helps = "it belongs to another model"
    if all(key in _OPTIONS and key in stored for key in keys):
        flags = (f"--{key.replace('_', '-')} {stored[key]}" for key in keys)
        helps = f"{' '.join(flags)} opens it"
    raise SessionError(f"session {session!r} does not fit: {different}: {helps}")
