"""Every rule of the packed file refuses the file that breaks it, with checksums made good again."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kernels.formats import FORMATS
from hga.models.plan import AttentionPlan, LayerPlan, ModelPlan, MoePlan, RopePlan, tensor_roles
from hga.runtime import container_index
from hga.runtime.container import ContainerError, ModelFile
from hga.runtime.container_index import PAGE_BYTES, Header
from hga.runtime.container_layout import plan_layout
from hga.runtime.container_writer import ContainerWriter

# Byte offsets in the header, from docs/format.md.
VERSION_AT, HEADER_BYTES_AT, FILE_BYTES_AT, INDEX_AT, INDEX_BYTES_AT = 8, 12, 16, 24, 32
HEADER_XXH3_AT = 64


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A valid file: one mixture layer, a text."""
    path = tmp_path_factory.mktemp("refusals") / "m.hga"
    attention = AttentionPlan(2, 1, 16, 0.25, 0, RopePlan(10000.0))
    layer = LayerPlan(attention, MoePlan(2, 1, 32, "silu", True))
    plan = ModelPlan("test", 40, 32, 128, 1e-5, 1.0, True, (layer,))
    formats = {role: "q8" for role, shape in tensor_roles(plan) if len(shape) == 2}
    layout = plan_layout(plan, formats, {"note": "text"})
    with ContainerWriter(path, layout, {}) as writer:
        writer.write_text_segments()
        for segment in layout.segments:
            if segment.tensors:
                parts = [
                    (t.role, FORMATS["q8"].pack(np.ones(t.shape, "f4")))
                    if len(t.shape) == 2
                    else (t.role, np.zeros(4 * t.shape[0], "u1"))
                    for t in segment.tensors
                ]
                writer.write_segment(segment.name, parts)
        writer.finish({}, {}, {}, [])
    return path.read_bytes()


def index_of(raw: bytes) -> dict:
    start = int.from_bytes(raw[INDEX_AT : INDEX_AT + 8], "little")
    return json.loads(raw[start:])


def rebuilt(raw: bytes, index: dict | bytes, digest: bytes | None = None) -> bytes:
    """The file with another index; its checksums and, where possible, its digest are right."""
    start = int.from_bytes(raw[INDEX_AT : INDEX_AT + 8], "little")
    body = index if isinstance(index, bytes) else json.dumps(index).encode()
    if digest is None:
        digest = raw[48:64]
        try:
            decoded = container_index.decode_index(body)
            plan = container_index.decode_plan(decoded.plan)
            digest = container_index.digest_of(plan, decoded.segments)
        except ValueError:
            pass
    header = Header(start + len(body), start, len(body), xxhash.xxh3_64_intdigest(body), digest)
    return header.encode() + raw[PAGE_BYTES:start] + body


def patched(raw: bytes, at: int, value: int, size: int = 8, sealed: bool = True) -> bytes:
    """The file with another number in its header, its checksum made good if `sealed`."""
    head = bytearray(raw[:PAGE_BYTES])
    head[at : at + size] = value.to_bytes(size, "little")
    if sealed:
        checksum = xxhash.xxh3_64_intdigest(bytes(head[:HEADER_XXH3_AT]))
        head[HEADER_XXH3_AT : HEADER_XXH3_AT + 8] = checksum.to_bytes(8, "little")
    return bytes(head) + raw[PAGE_BYTES:]


def refused(tmp_path: Path, raw: bytes, match: str) -> None:
    path = tmp_path / "bad.hga"
    path.write_bytes(raw)
    with pytest.raises(ContainerError, match=match) as caught:
        ModelFile.open(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_unchanged_file_opens(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.hga"
    path.write_bytes(rebuilt(packed, index_of(packed)))
    ModelFile.open(path, verify=True).close()


# Header


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1])
def test_a_file_cut_in_the_header(packed: bytes, tmp_path: Path, size: int) -> None:
    refused(tmp_path, packed[:size], "cut short|not a packed model|should have")


def test_a_file_cut_or_extended(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, packed[:-1], "should have")
    refused(tmp_path, packed + b"x", "should have")


def test_another_magic(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, b"GGUF" + packed[4:], "not a packed model")


@pytest.mark.parametrize("version", [0, 2, 1 << 31])
def test_another_version(packed: bytes, tmp_path: Path, version: int) -> None:
    refused(tmp_path, patched(packed, VERSION_AT, version, 4), f"format version {version}")


def test_a_header_checksum(packed: bytes, tmp_path: Path) -> None:
    for at in range(FILE_BYTES_AT, HEADER_XXH3_AT + 8):
        changed = bytearray(packed)
        changed[at] ^= 1
        refused(tmp_path, bytes(changed), "header checksum")


def test_another_header_size(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, patched(packed, HEADER_BYTES_AT, 8192, 4), "header needs 4096 bytes")


def test_a_header_with_something_after_its_fields(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, patched(packed, PAGE_BYTES - 1, 1, 1), "zero at its end")


@pytest.mark.parametrize("size", [0, (256 << 20) + 1, 1 << 63])
def test_an_index_size_out_of_bounds(packed: bytes, tmp_path: Path, size: int) -> None:
    refused(tmp_path, patched(packed, INDEX_BYTES_AT, size), f"index of {size} bytes")


@pytest.mark.parametrize("offset", [0, 4097, 1 << 62])
def test_an_index_out_of_place(packed: bytes, tmp_path: Path, offset: int) -> None:
    refused(tmp_path, patched(packed, INDEX_AT, offset), "unaligned offset|should end")


def test_an_index_that_ends_before_the_file(packed: bytes, tmp_path: Path) -> None:
    size = int.from_bytes(packed[INDEX_BYTES_AT : INDEX_BYTES_AT + 8], "little")
    refused(tmp_path, patched(packed, INDEX_BYTES_AT, size - 1), "should end")


# Index


def test_an_index_checksum(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, packed[:-1] + b" ", "index checksum")


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"{}", b"nul", b"\xff", b'{"plan": 1', b"[" * 100_000),
        b'{"generation": ' + b"[" * 100_000,
        b'{"plan":' + b'{"a":' * 100_000,
    ],
    ids=["list", "empty", "no-json", "no-utf8", "cut", "deep", "deep-field", "deep-plan"],
)
def test_an_index_that_is_something_else(packed: bytes, tmp_path: Path, body: bytes) -> None:
    refused(tmp_path, rebuilt(packed, body), "index: ")


def change_index(packed: bytes, path: list, value: object) -> bytes:
    """The file whose index has `value` at a path of keys and positions; "..." removes it."""
    index = index_of(packed)
    at = index
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return rebuilt(packed, index)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["extra"], 1, "unknown field"),
        (["plan"], ..., "missing required field"),
        (["segments", 0, "extra"], 1, "unknown field"),
        (["segments", 0, "offset"], -4096, "Expected `int` >= 0"),
        (["segments", 0, "offset"], 1 << 63, "Expected `int` <= "),
        (["segments", 0, "offset"], 0.5, "Expected `int`"),
        (["segments", 0, "name"], "", "length >= 1"),
        (["segments", 0, "name"], "x" * 300, "length <= 200"),
        (["segments", 0, "xxh3"], "xyz", "malformed checksum"),
        (["tensors", 0, "shape"], [1, "2"], "Expected `int`"),
        (["texts", 0, "nbytes"], 1 << 40, "<= "),
    ],
)
def test_a_malformed_index(packed: bytes, tmp_path: Path, path, value, match: str) -> None:
    refused(tmp_path, change_index(packed, path, value), match)


# Segments


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("offset", PAGE_BYTES * 2 + 64, "page-aligned"),
        ("nbytes", 0, "not empty"),
        ("offset", 0, "overlaps what comes before"),
        ("offset", PAGE_BYTES, "overlaps what comes before"),
        ("offset", 1 << 40, "runs past the index"),
        ("nbytes", 1 << 50, "runs past the index"),
        ("nbytes", PAGE_BYTES * 3, "overlaps what comes before"),
        ("name", "text.note", "two segments have one name"),
    ],
)
def test_a_bad_segment(packed: bytes, tmp_path: Path, field: str, value, match: str) -> None:
    refused(tmp_path, change_index(packed, ["segments", 1, field], value), match)


def test_segments_out_of_order(packed: bytes, tmp_path: Path) -> None:
    index = index_of(packed)
    index["segments"].reverse()
    refused(tmp_path, rebuilt(packed, index), "overlaps")


def test_a_segment_that_nothing_uses(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, change_index(packed, ["texts"], []), "needs one use")


def test_a_segment_with_two_uses(packed: bytes, tmp_path: Path) -> None:
    raw = change_index(packed, ["texts", 0, "segment"], "embed")
    refused(tmp_path, raw, "needs one use")


def test_a_wrong_digest(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, rebuilt(packed, index_of(packed), digest=bytes(16)), "digest")


def test_a_text_without_segment_or_twice(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, change_index(packed, ["texts", 0, "segment"], "none"), "no segment")
    text = index_of(packed)["texts"][0]
    raw = change_index(packed, ["texts"], [text, text])
    refused(tmp_path, raw, "two texts have one name")
    raw = change_index(packed, ["texts"], [text, {**text, "name": "other"}])
    refused(tmp_path, raw, "two texts have one segment")


# Tensors


def role_at(packed: bytes, role: str) -> int:
    return next(i for i, t in enumerate(index_of(packed)["tensors"]) if t["role"] == role)


@pytest.mark.parametrize(
    ("role", "field", "value", "match"),
    [
        ("embed", "role", "final_norm", "two tensors have one role"),
        ("embed", "role", "other", "embed .*is missing"),
        ("embed", "format", "q3", "unknown format 'q3'"),
        ("embed", "format", "vec", "does not go with shape"),
        ("final_norm", "format", "q8", "does not go with shape"),
        ("embed", "format", "q4k", "multiple of 256"),
        ("embed", "format", "f32", "expected alignment|bytes at offset"),
        ("embed", "shape", [41, 32], "implies shape"),
        ("embed", "shape", [40], "implies shape"),
        ("embed", "shape", [], "implies shape"),
        ("embed", "shape", [1 << 62, 1 << 62], "implies shape"),
        ("embed", "shape", [-40, -32], "implies shape"),
        ("embed", "segment", "none", "no segment"),
        ("embed", "offset", 64, "bytes at offset 64"),
        ("embed", "offset", 1 << 59, "bytes at offset"),
        ("layers.0.mlp_norm", "offset", 1, "expected alignment 64"),
        ("layers.0.mlp_norm", "offset", 0, "overlaps tensor"),
        ("layers.0.experts.0.up", "segment", "layers.0.q", "bytes at offset|overlaps tensor"),
    ],
)
def test_a_bad_tensor(packed: bytes, tmp_path: Path, role, field, value, match: str) -> None:
    path = ["tensors", role_at(packed, role), field]
    refused(tmp_path, change_index(packed, path, value), match)


def test_a_missing_and_a_superfluous_tensor(packed: bytes, tmp_path: Path) -> None:
    raw = change_index(packed, ["tensors", role_at(packed, "layers.0.q")], ...)
    refused(tmp_path, raw, r"layers\.0\.q .*is missing")
    index = index_of(packed)
    index["tensors"].append({**index["tensors"][0], "role": "other"})
    refused(tmp_path, rebuilt(packed, index), "the plan implies")


def test_experts_of_one_layer_differ(packed: bytes, tmp_path: Path) -> None:
    path = ["tensors", role_at(packed, "layers.0.experts.1.down"), "format"]
    refused(tmp_path, change_index(packed, path, "q4"), "differ in format or layout")


def test_an_expert_outside_its_blob(packed: bytes, tmp_path: Path) -> None:
    index = index_of(packed)
    first, second = (role_at(packed, f"layers.0.experts.{e}.up") for e in (0, 1))
    tensors = index["tensors"]
    tensors[first]["segment"], tensors[second]["segment"] = (
        tensors[second]["segment"],
        tensors[first]["segment"],
    )
    refused(tmp_path, rebuilt(packed, index), "needs gate, up and down in segment")


# Plan


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["extra"], 1, "unknown: extra"),
        (["hidden"], ..., "missing: hidden"),
        (["hidden"], "32", "plan.hidden: Expected `int`"),
        (["hidden"], True, "plan.hidden: Expected `int`"),
        (["hidden"], 0, "plan.hidden needs to be within"),
        (["hidden"], 1 << 40, "plan.hidden needs to be within"),
        (["vocab_size"], 1 << 40, "plan.vocab_size needs"),
        (["vocab_size"], -1, "plan.vocab_size needs"),
        (["ctx_train"], 0, "plan.ctx_train needs"),
        (["norm_eps"], -1.0, "plan.norm_eps needs"),
        (["norm_eps"], None, "plan.norm_eps: Expected `float`"),
        (["embed_scale"], 0.0, "plan.embed_scale needs"),
        (["architecture"], "", "plan.architecture needs"),
        (["tied_head"], 1, "plan.tied_head: Expected `bool`"),
        (["layers"], [], "1 to 1000 layers"),
        (["layers"], {}, "1 to 1000 layers"),
        (["layers", 0], 5, r"plan.layers\[0\] needs to be an object"),
        (["layers", 0, "post_norms"], 0, "post_norms"),
        (["layers", 0, "attention", "n_heads"], 3, r"layers\.0\.q: the plan implies shape"),
        (["layers", 0, "attention", "n_kv_heads"], 0, "n_kv_heads needs"),
        (["layers", 0, "attention", "n_kv_heads"], 4, "n_kv_heads needs"),
        (["layers", 0, "attention", "head_dim"], 17, "needs to be even"),
        (["layers", 0, "attention", "head_dim"], 1 << 20, "head_dim needs"),
        (["layers", 0, "attention", "scale"], 0, "scale needs"),
        (["layers", 0, "attention", "window"], -1, "window needs"),
        (["layers", 0, "attention", "rope", "theta"], 0.0, "theta needs"),
        (["layers", 0, "attention", "rope", "kind"], "other", "kind: Invalid enum"),
        (["layers", 0, "attention", "rope", "low_freq_factor"], -1.0, "low_freq_factor needs"),
        (["layers", 0, "attention", "rope", "extra"], 0, "unknown: extra"),
        (["layers", 0, "mlp", "n_experts"], 1 << 30, "n_experts needs"),
        (["layers", 0, "mlp", "n_experts_used"], 3, "n_experts_used needs"),
        (["layers", 0, "mlp", "n_experts"], ..., "missing: none; unknown"),
        (["layers", 0, "mlp", "width"], 0, "width needs"),
        (["layers", 0, "mlp", "activation"], "relu", "activation: Invalid enum"),
        (["layers", 0, "mlp"], [], "mlp needs to be an object"),
    ],
)
def test_a_bad_plan(packed: bytes, tmp_path: Path, path, value, match: str) -> None:
    refused(tmp_path, change_index(packed, ["plan", *path], value), match)


def test_more_heads_than_divide(packed: bytes, tmp_path: Path) -> None:
    index = index_of(packed)
    index["plan"]["layers"][0]["attention"] |= {"n_heads": 3, "n_kv_heads": 2}
    refused(tmp_path, rebuilt(packed, index), "multiple of n_kv_heads")


def test_a_thousand_layers_that_are_not_there_cost_nothing(packed: bytes, tmp_path: Path) -> None:
    index = index_of(packed)
    layer = copy.deepcopy(index["plan"]["layers"][0])
    layer["mlp"]["n_experts"] = 1 << 16
    index["plan"]["layers"] = [layer] * 1000
    refused(tmp_path, rebuilt(packed, index), "is missing|implies shape")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_refused_and_never_crashes(packed: bytes, tmp_path_factory, data) -> None:
    """Random bytes of the index exchanged, checksums made good: refused, or a file that holds."""
    body = bytearray(json.dumps(index_of(packed)).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from(b'0123456789"{}[],:-.e truefalsn'))
    path = tmp_path_factory.mktemp("fuzz") / "m.hga"
    path.write_bytes(rebuilt(packed, bytes(body)))
    try:
        with ModelFile.open(path) as model:
            for role in model.roles:
                model.tensor(role).values()
    except ContainerError:
        pass


def test_loading_the_trunk_compares_its_checksums(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.hga"
    path.write_bytes(packed)
    with ModelFile.open(path, load="ram") as model:
        segment = next(s for s in model.segments if s.name.startswith("layers.0"))
        assert ".experts." not in segment.name
    data = bytearray(packed)
    data[segment.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ContainerError, match=f"segment {segment.name} .* checksum"):
        ModelFile.open(path, load="ram")
