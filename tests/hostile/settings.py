"""GGUF files whose metadata says strange things: some are refused, some are only strange.

`cases` maps a name to the bytes of a file; what they have in common is that a command either takes
one or refuses it as it refuses any.
"""

import struct
from types import ModuleType
from typing import Final

MAX: Final = (1 << 32) - 1
_COUNTS: Final = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "rope.dimension_count"),
)


def cases(forge: ModuleType, sources: ModuleType, dense: bytes, moe: bytes) -> dict[str, bytes]:
    """`dense` and `moe` are sound files of llama and qwen3moe."""
    f = forge
    changed: dict[str, tuple[bytes, dict[str, bytes]]] = {}

    def whole(value: int) -> bytes:
        return bytes(f.pair("", f.I32, struct.pack("<i", value)))

    def add(name: str, base: bytes = dense, **pairs: bytes) -> None:
        changed[name] = base, {key.replace("__", "."): value for key, value in pairs.items()}

    def types(*values: int) -> bytes:
        return bytes(f.array("", f.I32, len(values), struct.pack(f"<{len(values)}i", *values)))

    for name, merges in {
        "three-parts": ["a b c"], "no-left": [" a"], "no-right": ["a "], "empty": [""],
        "none": [], "twice": ["t h"] * 1000, "newline": ["a\nb"], "itself": ["a a", "aa aa"],
    }.items():  # fmt: skip
        add(f"merges-{name}", tokenizer__ggml__merges=f.strings("", merges))
    for name, kinds in {
        "unknown": [99] * 320, "negative": [-1] * 320, "control": [3] * 320, "unused": [5] * 320,
        "bytes": [6] * 320, "few": [1] * 3,
    }.items():  # fmt: skip
        add(f"types-{name}", tokenizer__ggml__token_type=types(*kinds))
    for role in ("eos", "bos", "eot"):
        for name, value in {"vocab": 320, "negative": -1, "far": 10**6}.items():
            add(f"{role}-{name}", **{f"tokenizer__ggml__{role}_token_id": whole(value)})
    add("tokens-no-text", tokenizer__ggml__tokens=f.strings(
        "", [b"\xff\xfe" + bytes((i % 256, i // 256)) for i in range(320)]))  # fmt: skip
    add("tokens-a-megabyte", tokenizer__ggml__tokens=f.strings(
        "", ["x" * 1_000_000, *(f"t{i}" for i in range(319))]))  # fmt: skip
    add("tokens-more", tokenizer__ggml__tokens=f.strings("", [f"t{i}" for i in range(400)]))
    add("tokens-empty", tokenizer__ggml__tokens=f.strings("", ["", *(f"t{i}" for i in range(319))]))
    for name, kind, factor, length in (
        ("zero", "linear", 0.0, 1), ("negative", "linear", -2.0, 1), ("huge", "linear", 1e38, 1),
        ("tiny", "linear", 1e-38, 1), ("nan", "linear", float("nan"), 1),
        ("infinite", "yarn", float("inf"), 64), ("yarn-zero", "yarn", 0.0, 0),
        ("yarn-huge", "yarn", 1e30, 1), ("yarn-long", "yarn", 4.0, MAX), ("none", "none", 1.0, 1),
        ("unknown", "dynamic", 1.0, 1),
    ):  # fmt: skip
        add(f"rope-{name}", llama__rope__scaling__type=f.string("", kind),
            llama__rope__scaling__factor=f.f32("", factor),
            llama__rope__scaling__original_context_length=f.u32("", length))  # fmt: skip
    for value in (0.0, -1.0, 1e-45, 1e38):
        add(f"theta-{value}", llama__rope__freq_base=f.f32("", value))
        add(f"eps-{value}", llama__attention__layer_norm_rms_epsilon=f.f32("", value))
    for key in _COUNTS:
        for name, pair in {"zero": f.u32("", 0), "three": f.u32("", 3), "most": f.u32("", MAX),
                           "negative": whole(-8), "float": f.f32("", 8.0)}.items():  # fmt: skip
            changed[f"{key}-{name}"] = dense, {f"llama.{key}": pair}
    for key in ("expert_count", "expert_used_count", "expert_feed_forward_length"):
        for value in (0, 1, 100, MAX):
            changed[f"{key}-{value}"] = moe, {f"qwen3moe.{key}": f.u32("", value)}
    add("name-of-lines", general__name=f.string("", "\x1b[31mX\x07\n\r" + "y" * 100_000))
    add("name-no-text", general__name=f.string("", b"\xff\xfe"))
    add("split", split__count=f.pair("", 2, struct.pack("<H", 3)))
    add("an-adapter", general__type=f.string("", "adapter"))
    made = {name: sources.replace_pairs(base, pairs) for name, (base, pairs) in changed.items()}
    for version in (0, 1, 2, 4, 3 << 24):
        made[f"version-{version}"] = dense[:4] + struct.pack("<I", version) + dense[8:]
    at = dense.index(b"token_embd.weight") + len(b"token_embd.weight")
    for kind in (2, 12, 24, 28, 30, 39, 200):
        other = bytearray(dense)
        struct.pack_into("<I", other, at + 4 + 8 * 2, kind)
        made[f"embedding-of-type-{kind}"] = bytes(other)
    end = 200_000
    made["values-nan"] = dense[:-end] + b"\xff" * end
    made["values-huge"] = dense[:-end] + struct.pack("<f", 3e38) * (end // 4)
    made["values-zero"] = dense[:-end] + bytes(end)
    return made
