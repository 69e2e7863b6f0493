"""Hostile checkpoints: GGUF files and Hugging Face folders, each wrong in one way.

`gguf_cases` and `folder_cases` map a name to what makes the file; none takes more than a few MiB on
the disk (holes aside), nor a second to make.
"""

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

HUGE = 1 << 63
DIMS_PRODUCT = (1 << 32, 1 << 32)
# Elements of arrays that fit in the largest metadata and would take gigabytes as objects.
MANY: Final = 5_000_000
# What `inspect` does not look at: weights.
UNREAD: Final = frozenset(("values-nan", "values-infinite"))


def gguf_cases(forge: ModuleType, sound: Path) -> dict[str, Callable[[Path], Path]]:
    """Names to makers: each writes a file into a folder and returns its path."""
    f = forge
    arch = f.string("general.architecture", "llama")
    nested = struct.pack("<IQ", f.ARRAY, 1) * 200 + struct.pack("<IQ", f.U8, 0)
    one = f.tensor("a", (8,))
    cases: dict[str, bytes] = {
        "empty": b"",
        "magic-alone": b"GGUF",
        "counts-2-63": f.gguf(counts=(HUGE, HUGE)),
        "pairs-2-63": f.gguf(counts=(0, HUGE)),
        "string-length-2-63": f.gguf([f.text("k") + struct.pack("<IQ", f.STRING, HUGE)]),
        "key-length-2-64": f.gguf([struct.pack("<Q", (1 << 64) - 1)]),
        "array-count-2-63": f.gguf([f.array("k", f.U32, HUGE, b"")]),
        "array-count-wraps": f.gguf([f.array("k", f.U64, (1 << 61) + 1, b"\0" * 8)]),
        "array-of-strings-2-63": f.gguf([f.array("k", f.STRING, HUGE, b"")]),
        "arrays-nested-200": f.gguf([f.pair("k", f.ARRAY, nested)]),
        "duplicate-key": f.gguf([arch, arch]),
        "duplicate-tensor": f.gguf([arch], [one, one], b"\0" * 32),
        "dims-overflow": f.gguf([arch], [f.tensor("a", DIMS_PRODUCT)], b"\0" * 64),
        "dims-zero": f.gguf([arch], [f.tensor("a", (0, 8))], b"\0" * 64),
        "dims-2-63": f.gguf([arch], [f.tensor("a", (HUGE,))], b"\0" * 64),
        "dims-none": f.gguf([arch], [f.tensor("a", ())], b"\0" * 64),
        "dims-count-2-32": f.gguf([arch], [f.text("a") + struct.pack("<I", (1 << 32) - 1)]),
        "offset-2-63": f.gguf([arch], [f.tensor("a", (8,), 0, HUGE)], b"\0" * 64),
        "offset-past-the-end": f.gguf([arch], [f.tensor("a", (8,), 0, 64)], b"\0" * 64),
        "offsets-overlap": f.gguf([arch], [one, f.tensor("b", (8,))], b"\0" * 64),
        "offset-unaligned": f.gguf([arch], [f.tensor("a", (8,), 0, 4)], b"\0" * 64),
        "type-unknown": f.gguf([arch], [f.tensor("a", (8,), 999)], b"\0" * 64),
        "alignment-zero": f.gguf([arch, f.u32("general.alignment", 0)], [one], b"\0" * 64),
        "alignment-huge": f.gguf([arch, f.u32("general.alignment", 1 << 31)], [one], b"\0" * 64),
        "alignment-odd": f.gguf([arch, f.u32("general.alignment", 33)], [one], b"\0" * 64),
        "alignment-text": f.gguf([arch, f.string("general.alignment", "32")], [one], b"\0" * 64),
        "boolean-7": f.gguf([f.pair("k", f.BOOL, b"\7")]),
        "architecture-list": f.gguf([f.array("general.architecture", f.U8, 1, b"a")]),
        "architecture-long": f.gguf([f.string("general.architecture", "x" * 60000)]),
        "control-characters": f.gguf([f.string("general.architecture", "\x1b[2J\x1b]0;x\x07\r\n")]),
        "pairs-in-bulk": f.gguf(
            [f.pair(f"{i:06x}", f.U8, b"\0") for i in range(400_000)],
        ),
        "tensors-in-bulk": f.gguf(
            [arch], [f.tensor(f"{i:06x}", (1,), 24, 32 * i) for i in range(400_000)], b"\0" * 64
        ),
    }  # fmt: skip

    def writer(name: str, raw: bytes) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            path = folder / f"{name}.gguf"
            path.write_bytes(raw)
            return path

        return write

    made = {name: writer(name, raw) for name, raw in cases.items()}
    whole = sound.read_bytes()
    for share in (1, 3, 7):
        made[f"cut-at-{share}-8"] = writer(f"cut-{share}", whole[: len(whole) * share // 8])
    made["longer-in-words-only"] = lambda folder: _holes(folder / "holes.gguf", b"GGUF", 1 << 40)
    # Of zeros all of them: numbers, empty texts, arrays of no bytes.
    for name, kind, size in (("numbers", f.U32, 4), ("strings", f.STRING, 8), ("arrays", 9, 12)):
        raw = f.gguf([f.array("k", kind, MANY, b"")])
        made[f"{name}-in-bulk"] = partial(_holes_at, f"{name}.gguf", raw, size * MANY)
    changed: dict[str, dict[str, bytes]] = {
        "bos-infinite": {"tokenizer.ggml.bos_token_id": f.f32("", float("inf"))},
        "bos-nan": {"tokenizer.ggml.bos_token_id": f.f32("", float("nan"))},
        "bos-huge": {"tokenizer.ggml.bos_token_id": f.pair("", f.U64, b"\xff" * 8)},
        "types-a-number": {"tokenizer.ggml.token_type": f.u32("", 5)},
        "types-texts": {"tokenizer.ggml.token_type": f.strings("", ["a"] * 320)},
        "scores-nan": {
            "tokenizer.ggml.scores": f.array("", f.F32, 320, struct.pack("<f", float("nan")) * 320),
            "tokenizer.ggml.model": f.string("", "llama"),
        },
        "tokens-numbers": {"tokenizer.ggml.tokens": f.array("", f.U8, 320, b"\0" * 320)},
        "tokens-one": {"tokenizer.ggml.tokens": f.strings("", ["a"])},
        "tokens-twice": {"tokenizer.ggml.tokens": f.strings("", ["a"] * 320)},
        "merges-foreign": {"tokenizer.ggml.merges": f.strings("", ["\u0100\u0101 \u0102"] * 9)},
        "merges-no-space": {"tokenizer.ggml.merges": f.strings("", ["abc"])},
        "template-a-number": {"tokenizer.chat_template": f.u32("", 1)},
        "template-too-long": {"tokenizer.chat_template": f.string("", "x" * 100_000)},
        "pre-unknown": {"tokenizer.ggml.pre": f.string("", "../../etc/passwd")},
        "temperature-nan": {"general.sampling.temp": f.f32("", float("nan"))},
        "eps-nan": {"llama.attention.layer_norm_rms_epsilon": f.f32("", float("nan"))},
        "rope-infinite": {"llama.rope.freq_base": f.f32("", float("inf"))},
        "layers-2-32": {"llama.block_count": f.u32("", (1 << 32) - 1)},
        "layers-1000": {"llama.block_count": f.u32("", 1000)},
        "heads-zero": {"llama.attention.head_count": f.u32("", 0)},
        "context-zero": {"llama.context_length": f.u32("", 0)},
        "key-of-another-model": {"llama.attention.mystery": f.u32("", 1)},
    }  # fmt: skip
    for name, pairs in changed.items():
        made[name] = writer(name, replace_pairs(whole, pairs))
    return made


def replace_pairs(raw: bytes, pairs: dict[str, bytes]) -> bytes:
    """A GGUF file with other values for some keys, or with keys that it lacked. Values are pairs
    with an empty key, whose type and payload are taken."""
    from gguf.constants import GGUFValueType

    at = 24
    n_tensors, n_pairs = struct.unpack_from("<QQ", raw, 8)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def end(at: int, kind: int) -> int:
        if kind == GGUFValueType.STRING:
            return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
        if kind == GGUFValueType.ARRAY:
            element, count = struct.unpack_from("<IQ", raw, at)
            at += 12
            for _ in range(count):
                at = end(at, element)
            return at
        return at + sizes[kind]

    out: list[bytes] = []
    left = dict(pairs)
    for _ in range(n_pairs):
        begin = at
        (length,) = struct.unpack_from("<Q", raw, at)
        key = raw[at + 8 : at + 8 + length].decode()
        at += 8 + length
        (kind,) = struct.unpack_from("<I", raw, at)
        at = end(at + 4, kind)
        instead = left.pop(key, None)
        name = raw[begin : begin + 8 + length]
        out.append(raw[begin:at] if instead is None else name + instead[8:])
    for key, value in left.items():
        out.append(struct.pack("<Q", len(key.encode())) + key.encode() + value[8:])
    head_end = at
    for _ in range(n_tensors):
        (length,) = struct.unpack_from("<Q", raw, head_end)
        head_end += 8 + length
        (n_dims,) = struct.unpack_from("<I", raw, head_end)
        head_end += 4 + 8 * n_dims + 12
    data = raw[-(-head_end // 32) * 32 :]
    head = raw[:8] + struct.pack("<QQ", n_tensors, len(out)) + b"".join(out) + raw[at:head_end]
    return head + b"\0" * (-len(head) % 32) + data


def _holes_at(name: str, start: bytes, size: int, folder: Path) -> Path:
    return _holes(folder / name, start, len(start) + size)


def _holes(path: Path, start: bytes, size: int) -> Path:
    path.write_bytes(start)
    os.truncate(path, size)
    return path


def folder_cases(
    forge: ModuleType, copy: Callable[[Path], Path]
) -> dict[str, Callable[[Path], Path]]:
    """The same for safetensors folders; `copy` makes a sound one at a path."""

    def weights(raw: bytes) -> Callable[[Path], None]:
        return lambda folder: write(folder, "model.safetensors", raw)

    def write(folder: Path, name: str, raw: bytes | str) -> None:
        data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    def text(name: str, raw: bytes | str) -> Callable[[Path], None]:
        return lambda folder: write(folder, name, raw)

    def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            values = json.loads((folder / name).read_text())
            change(values)
            write(folder, name, json.dumps(values))

        return apply

    def config(**values: object) -> Callable[[Path], None]:
        return edit("config.json", lambda found: found.update(values))

    def index(*pairs: tuple[str, object]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            write(folder, "model.safetensors.index.json", json.dumps({"weight_map": dict(pairs)}))
            os.rename(folder / "model.safetensors", folder / "a.safetensors")

        return apply

    def link(name: str, target: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            os.symlink(target, folder / name)

        return apply

    def fifo(name: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name)

        return apply

    def scale(value: float) -> Callable[[Path], None]:
        """Every value of the first matrix."""

        def apply(folder: Path) -> None:
            path = folder / "model.safetensors"
            raw = bytearray(path.read_bytes())
            path.unlink()
            begin = 8 + int.from_bytes(raw[:8], "little")
            raw[begin : begin + 4096] = struct.pack("<f", value) * 1024
            path.write_bytes(raw)

        return apply

    def vocabulary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
        return edit("tokenizer.json", change)

    def add(**entry: object) -> Callable[[Path], None]:
        return vocabulary(lambda file: file["added_tokens"].append(entry))

    st = forge.safetensors
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    bulk = b'{"a":[' + b"{}," * 1_000_000 + b"{}]}"
    edits: dict[str, Callable[[Path], None]] = {
        "header-length-2-64": weights(st({}, length=(1 << 64) - 1)),
        "header-past-the-end": weights(st({}, length=1000)),
        "header-nested": weights(st(b"[" * 200_000)),
        "header-nested-objects": weights(st(b'{"a":' * 100_000)),
        "header-bulk": weights(st(b'{"a":[' + b"{}," * 8_000_000 + b"{}]}")),
        "header-duplicate": weights(st(b'{"a":1,"a":2}')),
        "header-nan": weights(st(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}')),
        "shape-2-63": weights(st({"a": {**one, "shape": [HUGE]}}, b"\0" * 16)),
        "shape-overflow": weights(st({"a": {**one, "shape": [1 << 32, 1 << 32]}}, b"\0" * 16)),
        "shape-zeros": weights(st({"a": {**one, "shape": [0] * 8, "data_offsets": [0, 0]}})),
        "offsets-reversed": weights(st({"a": {**one, "data_offsets": [16, 0]}}, b"\0" * 16)),
        "offsets-past-the-end": weights(st({"a": {**one, "data_offsets": [16, 32]}}, b"\0" * 16)),
        "offsets-overlap": weights(
            st({"a": one, "b": {**one, "data_offsets": [8, 24]}}, b"\0" * 24)
        ),
        "pickle": weights(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."),
        "only-a-pickle": lambda folder: os.rename(
            folder / "model.safetensors", folder / "pytorch_model.bin"
        ),
        "weights-empty": weights(b""),
        "weights-a-hole": lambda folder: _sparse(folder / "model.safetensors", 1 << 40),
        "weights-a-pipe": fifo("model.safetensors"),
        "weights-a-device": link("model.safetensors", "/dev/zero"),
        "index-up": index(("model.norm.weight", "../outside.safetensors")),
        "index-absolute": index(("model.norm.weight", "/etc/x.safetensors")),
        "index-backslash": index(("model.norm.weight", "..\\x.safetensors")),
        "index-zero-byte": index(("model.norm.weight", "a\0.safetensors")),
        "index-number": index(("model.norm.weight", 5)),
        "index-list": index(("model.norm.weight", ["a.safetensors"])),
        "index-pickle": index(("model.norm.weight", "pytorch_model.bin")),
        "index-missing-shard": index(("model.norm.weight", "b.safetensors")),
        "index-control": index(("model.norm.weight", "\x1b[2J\n.safetensors")),
        "index-nested": text("model.safetensors.index.json", "[" * 100_000),
        "index-empty": text("model.safetensors.index.json", '{"weight_map": {}}'),
        "shard-linked-outside": lambda folder: (
            index(("model.norm.weight", "a.safetensors"))(folder),
            link("a.safetensors", "/etc/passwd")(folder),
        )[0],
        "config-empty": text("config.json", ""),
        "config-binary": text("config.json", bytes(range(256))),
        "config-list": text("config.json", "[]"),
        "config-nested": text("config.json", '{"a":' * 100_000),
        "config-bulk": text("config.json", bulk),
        "config-duplicate": text("config.json", '{"model_type": "llama", "model_type": "qwen2"}'),
        "config-digits": text("config.json", '{"vocab_size": ' + "9" * 100_000 + "}"),
        "config-surrogate": text("config.json", '{"model_type": "\\ud800"}'),
        "config-a-pipe": fifo("config.json"),
        "config-a-device": link("config.json", "/dev/zero"),
        "config-layers-2-63": config(num_hidden_layers=HUGE),
        "config-layers-float": config(num_hidden_layers=2.0),
        "config-layers-true": config(num_hidden_layers=True),
        "config-hidden-huge": config(hidden_size=1 << 19),
        "config-eps-infinite": text(
            "config.json", '{"model_type": "llama", "rms_norm_eps": 1e999}'
        ),
        "config-rope-object": config(rope_scaling={"rope_type": ["linear"]}),
        "config-rope-deep": config(rope_scaling={"a": {"b": {}}}),
        "config-type-list": config(model_type=["llama"]),
        "config-quantized-list": config(quantization_config=[1]),
        "config-code": config(auto_map={"AutoModel": "owned.Model"}),
        "experts-without-end": config(
            model_type="qwen3_moe", num_experts=65536, num_experts_per_tok=8,
            num_hidden_layers=1000, moe_intermediate_size=64, norm_topk_prob=True,
        ),
        "values-nan": scale(float("nan")),
        "values-infinite": scale(float("inf")),
        "generation-nan": text("generation_config.json", '{"temperature": NaN}'),
        "generation-huge": text("generation_config.json", '{"top_k": ' + "9" * 4000 + "}"),
        "generation-ids": text("generation_config.json", '{"eos_token_id": [[1]]}'),
        "tokenizer-missing": lambda folder: (folder / "tokenizer.json").unlink(),
        "tokenizer-empty": text("tokenizer.json", ""),
        "tokenizer-nested": text("tokenizer.json", '{"model":' * 100_000),
        "tokenizer-bulk": text("tokenizer.json", bulk),
        "tokenizer-vocab-list": vocabulary(lambda file: file["model"].update(vocab=[])),
        "tokenizer-ids-huge": vocabulary(lambda file: file["model"]["vocab"].update(zz=HUGE)),
        "tokenizer-ids-twice": vocabulary(lambda file: file["model"]["vocab"].update(zz=5)),
        "tokenizer-ids-text": vocabulary(lambda file: file["model"]["vocab"].update(zz="5")),
        "tokenizer-merge-foreign": vocabulary(lambda file: file["model"]["merges"].append("q zz")),
        "tokenizer-merge-number": vocabulary(lambda file: file["model"]["merges"].append(5)),
        "tokenizer-unigram": vocabulary(lambda file: file["model"].update(type="Unigram")),
        "tokenizer-type-list": vocabulary(lambda file: file["model"].update(type=["BPE"])),
        "tokenizer-prefix": vocabulary(
            lambda file: file["model"].update(continuing_subword_prefix="\u00e9\u00e9\u00e9")
        ),
        "tokenizer-dropout": vocabulary(lambda file: file["model"].update(dropout=0.5)),
        "tokenizer-pattern": vocabulary(
            lambda file: file.update(
                pre_tokenizer={
                    "type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
        "tokenizer-deep": vocabulary(lambda file: file.update(normalizer=_sequence(300))),
        "tokenizer-replace-nothing": vocabulary(
            lambda file: file.update(
                normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}
            )
        ),
        "tokenizer-decoder": vocabulary(lambda file: file.update(decoder={"type": "CTC"})),
        "tokenizer-added-number": add(id="x", content=5),
        "tokenizer-added-id": add(id=-5, content="zz"),
        "tokenizer-added-huge": add(id=HUGE, content="zz"),
        "tokenizer-added-nothing": add(id=400, content=""),
        "tokenizer-surrogate": vocabulary(
            lambda file: file["model"]["vocab"].update({"\ud800": 400})
        ),
        "template-list": edit(
            "tokenizer_config.json",
            lambda file: file.update(
                chat_template=[{"name": ["x"]}, {"name": "default", "template": 5}]
            ),
        ),
        "template-number": edit(
            "tokenizer_config.json", lambda file: file.update(chat_template=5)
        ),
        "template-too-long": edit(
            "tokenizer_config.json", lambda file: file.update(chat_template="x" * 100_000)
        ),
        "template-binary": text("chat_template.jinja", b"\xff\xfe\0"),
    }  # fmt: skip

    def maker(name: str, change: Callable[[Path], None]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            made = copy(folder / name)
            change(made)
            return made

        return make

    return {name: maker(name, change) for name, change in edits.items()}


def _sparse(path: Path, size: int) -> None:
    path.unlink()
    path.touch()
    os.truncate(path, size)


def _sequence(depth: int) -> dict[str, object]:
    part: dict[str, object] = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part
