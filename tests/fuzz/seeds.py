"""Writes the seed corpus, `corpus/TARGET/NAME`: a few KB of every kind of file that is parsed.

    python tests/fuzz/seeds.py

Made from the tiny checkpoints of the tests; run again where a format changes.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
_ARCHS = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3")


def load(path: Path) -> ModuleType:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def corpus(
    tiny: ModuleType, forge: ModuleType, stores: ModuleType, folder: Path
) -> dict[str, bytes]:
    """Seeds by `TARGET/NAME`."""
    from hga.kvstore.store import SessionStore
    from hga.kvstore.store_layout import BlockShape
    from hga.runtime.saved import encode_text
    from hga.tools.conversation_state import SavedTurn, State, encode
    from hga.tools.pack import pack
    from hga.tools.sources.gguf_table import read_table
    from hga.tools.sources.source import ByteFile

    out: dict[str, bytes] = {}
    for arch in _ARCHS:
        config = tiny.config(arch)
        path = folder / f"{arch}.gguf"
        tiny.write_gguf(path, config, "Q4_0" if arch == "llama" else "F16")
        file = ByteFile(path)
        out[f"gguf/{arch}"] = path.read_bytes()[: read_table(file).data_offset]
        file.close()
        out[f"config/{arch}"] = json.dumps(config).encode()
    source = tiny.write_hf(folder / "hf", tiny.config("llama"))
    raw = (source / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    # Of no values at all, so that the header is the whole file.
    empty = {name: {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]} for name in "ab"}
    out["safetensors/empty"] = forge.safetensors({"__metadata__": {"a": "b"}, **empty})
    out["safetensors/llama"] = raw[:end]
    out["tokenizer/tiny"] = (source / "tokenizer.json").read_bytes()
    pack(source, folder / "m.hga")
    packed = (folder / "m.hga").read_bytes()
    out["index/llama"] = json.dumps(forge.index_of(packed)).encode()
    out["container/header"] = packed[:4096]
    state = State(True, "be brief", 1, [SavedTurn("a", "b", 0, 0, 1)], None, 7, None, 5, "1f", "1f")
    out["state/one-turn"] = encode(state).encode()
    shape = BlockShape(((2, 256), (1, 512)), 100)
    SessionStore.create(folder / "s", shape, {"a": 1}, encode_text(encode(state))).close()
    newest = max((folder / "s").glob("head-*"), key=lambda head: head.stat().st_size)
    out["head/empty"] = newest.read_bytes()[64:]
    out["template/chatml"] = tiny.CHATML.encode()
    for name in ("attribute", "doubling", "join-bomb", "recursive-macro", "string-bomb"):
        out[f"template/{name}"] = stores.TEMPLATES[name].encode()
    return out


def main() -> None:
    """Write the corpus."""
    hostile = _HERE.parent / "hostile"
    tiny, forge = load(_HERE.parent / "tiny_checkpoints.py"), load(hostile / "forge.py")
    with tempfile.TemporaryDirectory() as folder:
        found = corpus(tiny, forge, load(hostile / "stores.py"), Path(folder))
    for name, raw in found.items():
        path = _HERE / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


if __name__ == "__main__":
    main()
