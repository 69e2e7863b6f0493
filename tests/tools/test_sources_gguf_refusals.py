"""One damaged GGUF per check of the parser, each refused with its name, and random damage."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hga.models.plan import ConfigError, UnsupportedError
from hga.tools.sources import SourceError, open_source
from hga.tools.sources.gguf_table import read_table
from hga.tools.sources.source import ByteFile

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def tensor(name: str, dims: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", type_id, offset)
    )


def gguf_bytes(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 256,
    alignment: int = 32,
    version: int = 3,
    magic: bytes = b"GGUF",
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A whole file; `counts` (tensors, pairs) may lie."""
    pairs, tensors = pairs or [], tensors or []
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + b"\0" * data


@pytest.fixture
def table_of(tmp_path):
    """Parses bytes as a GGUF file and gives back its table."""

    def parse(content: bytes):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        file = ByteFile(path)
        try:
            return read_table(file)
        finally:
            file.close()

    return parse


ALIGN_64 = pair("general.alignment", U32, struct.pack("<I", 64))


def test_a_sound_file(table_of):
    numbers = struct.pack("<IQ3i", 5, 3, -1, 0, 7)
    strings = struct.pack("<IQ", STRING, 2) + text("a") + text("ü")
    table = table_of(
        gguf_bytes(
            [ALIGN_64, pair("n", ARRAY, numbers), pair("s", ARRAY, strings)],
            [tensor("a", (8,)), tensor("b", (32, 4), 8, 64)],
            data=64 + 4 * 34,
            alignment=64,
        )
    )
    assert table.metadata == {"general.alignment": 64, "n": [-1, 0, 7], "s": ["a", "ü"]}
    a, b = table.tensors
    assert (a.shape, a.nbytes, b.shape, b.nbytes) == ((8,), 32, (4, 32), 136)
    assert b.offset == a.offset + 64 == table.data_offset + 64
    assert table.data_offset % 64 == 0


def test_version_2_is_the_same(table_of):
    assert table_of(gguf_bytes(tensors=[tensor("a", (8,))], version=2)).version == 2


BIG = 1 << 60
CASES = [
    ("empty", b"", r"expected the bytes b'GGUF' at offset 0, found b''"),
    ("magic", gguf_bytes(magic=b"GGML"), r"found b'GGML'"),
    ("version 1", gguf_bytes(version=1), "GGUF version 1; supported: 2 and 3"),
    ("version 4", gguf_bytes(version=4), "GGUF version 4"),
    ("big endian", gguf_bytes(version=3 << 24), "big-endian"),
    ("cut in head", gguf_bytes()[:20], "truncated"),
    ("tensor count", gguf_bytes(counts=(BIG, 0)), "do not fit"),
    ("pair count", gguf_bytes(counts=(0, BIG)), "do not fit"),
    (
        "string length",
        gguf_bytes([text("k") + struct.pack("<IQ", STRING, BIG)]),
        "found length 1152921504606846976",
    ),
    ("key length", gguf_bytes([struct.pack("<Q", 70000)], data=80000), "at most 65536 bytes"),
    ("not utf-8", gguf_bytes([pair("k", STRING, text(b"\xff\xfe"))]), "not UTF-8"),
    ("value type", gguf_bytes([pair("k", 13, b"")]), "unknown value type 13"),
    ("bool", gguf_bytes([pair("k", 7, b"\2")]), "boolean must be 0 or 1"),
    (
        "array count",
        gguf_bytes([pair("k", ARRAY, struct.pack("<IQ", U32, BIG))]),
        "truncated or damaged",
    ),
    (
        "string array count",
        gguf_bytes([pair("k", ARRAY, struct.pack("<IQ", STRING, BIG))]),
        "array of 1152921504606846976 elements does not fit",
    ),
    (
        "array element type",
        gguf_bytes([pair("k", ARRAY, struct.pack("<IQ", 99, 1))]),
        "unknown array element type 99",
    ),
    (
        "nesting",
        gguf_bytes([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 10)]),
        "nested deeper than 4",
    ),
    (
        "duplicate key",
        gguf_bytes([pair("k", U32, b"\0\0\0\0")] * 2),
        "'k' stands there twice",
    ),
    (
        "alignment not a power of two",
        gguf_bytes([pair("general.alignment", U32, struct.pack("<I", 48))]),
        "power of two in 8..65536, found 48",
    ),
    (
        "alignment 0",
        gguf_bytes([pair("general.alignment", U32, struct.pack("<I", 0))]),
        "found 0",
    ),
    (
        "alignment too large",
        gguf_bytes([pair("general.alignment", U32, struct.pack("<I", 1 << 17))]),
        "found 131072",
    ),
    (
        "alignment a float",
        gguf_bytes([pair("general.alignment", F32, struct.pack("<f", 32))]),
        "found 32.0",
    ),
    ("duplicate tensor", gguf_bytes(tensors=[tensor("a", (8,))] * 2), "'a' is in the table twice"),
    ("no dimensions", gguf_bytes(tensors=[tensor("a", ())]), "1 to 4 dimensions, found 0"),
    ("5 dimensions", gguf_bytes(tensors=[tensor("a", (1,) * 5)]), "1 to 4 dimensions, found 5"),
    ("zero dimension", gguf_bytes(tensors=[tensor("a", (8, 0))]), "do not fit"),
    ("overflow", gguf_bytes(tensors=[tensor("a", (1 << 32, 1 << 32))]), "do not fit"),
    ("overflow to 0", gguf_bytes(tensors=[tensor("a", (1 << 62, 4))]), "do not fit"),
    ("partial block", gguf_bytes(tensors=[tensor("a", (33, 2), 8)]), "multiple of 32 values"),
    ("misaligned", gguf_bytes(tensors=[tensor("a", (8,), 0, 8)]), "multiple of the alignment 32"),
    (
        "overlap",
        gguf_bytes(tensors=[tensor("a", (16,)), tensor("b", (8,), 0, 32)]),
        "'b' at data offset 32 overlaps 'a', which ends at 64",
    ),
    (
        "past the end",
        gguf_bytes(tensors=[tensor("a", (8,), 0, 256)]),
        "'a' ends at byte",
    ),
    ("huge offset", gguf_bytes(tensors=[tensor("a", (8,), 0, 1 << 63)]), "'a' ends at byte"),
    ("truncated data", gguf_bytes(tensors=[tensor("a", (64,))])[:-1], "truncated or damaged"),
]


@pytest.mark.parametrize(("content", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(table_of, content, message):
    with pytest.raises(SourceError, match=message):
        table_of(content)


def test_unknown_tensor_type(table_of):
    with pytest.raises(UnsupportedError, match="unknown tensor type 77; supported: F32, F16"):
        table_of(gguf_bytes(tensors=[tensor("a", (8,), 77)]))


def test_control_characters_never_reach_the_terminal(table_of):
    with pytest.raises(SourceError) as caught:
        table_of(gguf_bytes(tensors=[tensor("a\x1b[2J\n", (8,), 0, 8)]))
    assert str(caught.value).isprintable()


def test_unsupported_type_is_named(tiny, tiny_gguf, tmp_path):
    content = bytearray(tiny_gguf("llama", "F16")[0].read_bytes())
    at = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert content[at] == 1
    content[at] = 25
    path = tmp_path / "i16.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.weight is I16; supported: F32"):
        open_source(path)


def rewritten(tiny_gguf, tmp_path, old: bytes, new: bytes, arch: str = "llama"):
    content = tiny_gguf(arch)[0].read_bytes()
    assert len(old) == len(new) and old in content
    path = tmp_path / "changed.gguf"
    path.write_bytes(content.replace(old, new))
    return path


def test_unknown_architecture(tiny_gguf, tmp_path):
    path = rewritten(tiny_gguf, tmp_path, text("llama"), text("mamba"))
    with pytest.raises(UnsupportedError, match="'mamba'; supported: llama, qwen2, qwen3, qwen3moe"):
        open_source(path)


def test_missing_and_extra_tensor(tiny_gguf, tmp_path):
    path = rewritten(tiny_gguf, tmp_path, b"blk.1.ffn_up.weight", b"blk.1.ffn_ux.weight")
    with pytest.raises(SourceError, match=r"blk\.1\.ffn_up\.weight \[128, 64\] is missing"):
        open_source(path)


def test_extra_tensor(tiny, tmp_path):
    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, tiny.config("llama"), metadata={"llama.block_count": 1})
    with pytest.raises(SourceError, match=r"'blk\.1\.attn_norm\.weight' \[64\] is not part of a"):
        open_source(path)


def test_wrong_shape(tiny, tmp_path):
    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, tiny.config("llama"), metadata={"llama.feed_forward_length": 96})
    with pytest.raises(SourceError, match=r"expected shape \[96, 64\] .* found \[128, 64\]"):
        open_source(path)


def test_stack_of_experts_of_another_width(tiny, tmp_path):
    path = tmp_path / "x.gguf"
    changes = {"qwen3moe.expert_feed_forward_length": 32}
    tiny.write_gguf(path, tiny.config("qwen3_moe"), metadata=changes)
    with pytest.raises(SourceError, match=r"expected shape \[8, 32, 64\] .* found \[8, 64, 64\]"):
        open_source(path)


def test_missing_rope_base(tiny, tmp_path):
    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, tiny.config("llama"), drop=("llama.rope.freq_base",))
    with pytest.raises(ConfigError, match=r"llama\.rope\.freq_base is missing"):
        open_source(path)


def test_file_that_shrinks_after_opening(tiny_gguf, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny_gguf("llama")[0].read_bytes())
    with open_source(path) as source:
        last = max(source.tensors.values(), key=lambda t: t.offset)
        with path.open("r+b") as file:
            file.truncate(last.offset + 4)
        with pytest.raises(SourceError, match=r"ended at .* while it was read"):
            last.vector() if len(last.shape) == 1 else last.read(0, last.shape[0])


def test_nan_in_a_norm(tiny, tiny_gguf, tmp_path):
    content = bytearray(tiny_gguf("llama")[0].read_bytes())
    with open_source(tiny_gguf("llama")[0]) as source:
        offset = source.tensor("output_norm.weight").offset
    content[offset : offset + 4] = struct.pack("<f", float("nan"))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with (
        open_source(path) as source,
        pytest.raises(SourceError, match=r"output_norm\.weight: expected finite"),
    ):
        source.tensor("output_norm.weight").vector()


def test_paths_that_are_no_checkpoint(tmp_path, tiny_hf):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_source(tmp_path / "nothing.gguf")
    with pytest.raises(SourceError, match=r"no config\.json"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="give the folder"):
        open_source(tiny_hf("llama") / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("general.sampling.temp", 0.6, {"temperature": 0.6}),
        ("general.sampling.top_k", 20, {"top_k": 20}),
        ("general.sampling.penalty_repeat", 1.05, {"repetition_penalty": 1.05}),
    ],
)
def test_sampling_defaults(tiny, tmp_path, key, value, expected):
    path = tmp_path / "x.gguf"
    tiny.write_gguf(path, tiny.config("llama"), metadata={key: value})
    with open_source(path) as source:
        assert source.generation() == expected


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(tiny_gguf, tmp_path, data):
    """Any change to the header gives one of our errors or a file that opens; nothing else."""
    content = bytearray(tiny_gguf("qwen3_moe", "Q4_0")[0].read_bytes())
    with open_source(tiny_gguf("qwen3_moe", "Q4_0")[0]) as source:
        header = min(t.offset for t in source.tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        # Not the vocabulary in between, which is most of the bytes and all strings.
        at = data.draw(st.integers(0, 1500) | st.integers(header - 2500, header - 1))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        with open_source(path) as source:
            for spec in source.specs:
                tensor = source.spec_tensor(spec)
                assert tensor.offset + tensor.nbytes <= len(content)
    except (SourceError, ConfigError, UnsupportedError) as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("offset", "n_bytes"), [(0, 11), (10, 1), (11, 0), (-1, 1), (3, -1), (1 << 63, 1)]
)
def test_no_range_beyond_a_file_is_read(tmp_path, offset, n_bytes):
    (tmp_path / "x").write_bytes(b"0123456789")
    file = ByteFile(tmp_path / "x")
    with pytest.raises(SourceError, match="reach past the end of the file"):
        file.read(offset, n_bytes)
    assert file.read(4, 6).tobytes() == b"456789" and file.read(10, 0).size == 0
    file.close()
