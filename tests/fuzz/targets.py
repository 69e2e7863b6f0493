"""Every parser of what others wrote, as a function of bytes: it returns, or refuses by one of the
errors that a command turns into exit code 5; anything else is a bug.

Checksums are made good first, so that what is behind them is reached.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from hga.kvstore import head as heads
from hga.kvstore.errors import SessionError
from hga.models.plan import ConfigError, UnsupportedError
from hga.models.registry import plan_from_hf
from hga.runtime.container import ContainerError, ModelFile
from hga.runtime.hf_vocab import spec_from_hf
from hga.runtime.saved import note_of
from hga.runtime.template import ChatTemplate, TemplateError
from hga.runtime.tokenizer import Tokenizer
from hga.runtime.tokenizer_spec import TokenizerError, TokenizerSpec
from hga.tools import conversation_state as states
from hga.tools.errors import message
from hga.tools.pack import pack
from hga.tools.sources import SourceError, open_source
from hga.tools.sources.jsonfile import parse_object
from hga.tools.sources.safetensors import read_header
from hga.tools.sources.source import ByteFile

Target = Callable[[bytes], None]
REFUSALS: Final = (
    SourceError, ConfigError, UnsupportedError, TokenizerError, ContainerError, SessionError,
    TemplateError,
)  # fmt: skip
# Behind a header, holes: the values of any tensor of a small model.
_DATA_BYTES = 1 << 20
_MESSAGES = [{"role": "user", "content": "a <b>"}, {"role": "assistant", "content": "c"}]


def build(tiny: ModuleType, forge: ModuleType, folder: Path) -> dict[str, Target]:
    """The targets by name; `folder` is for their files."""
    checkpoint = tiny.write_hf(folder / "hf", tiny.config("llama"))
    pack(checkpoint, folder / "sound.hga")
    packed = (folder / "sound.hga").read_bytes()
    with ModelFile.open(folder / "sound.hga") as model:
        spec: TokenizerSpec = model.tokenizer
    tokenizer = Tokenizer(spec)
    path = folder / "x"

    def gguf(data: bytes) -> None:
        path.write_bytes(data)
        os.truncate(path, len(data) + _DATA_BYTES)
        with open_source(path) as source:
            source.tokenizer_spec()

    def safetensors(data: bytes) -> None:
        path.write_bytes(data)
        file = ByteFile(path)
        try:
            read_header(file)
        finally:
            file.close()

    def config(data: bytes) -> None:
        plan_from_hf(parse_object(data, "config.json"))

    def vocabulary(data: bytes) -> None:
        (checkpoint / "tokenizer.json").write_bytes(data)
        found = Tokenizer(spec_from_hf(checkpoint))
        found.decode(found.encode("hello \u00e9 world"))

    def index(data: bytes) -> None:
        path.write_bytes(forge.with_index(packed, data))
        with ModelFile.open(path) as model:
            _ = model.tokenizer

    def container(data: bytes) -> None:
        path.write_bytes(data)
        ModelFile.open(path).close()

    def head(data: bytes) -> None:
        found = heads.decode(forge.sealed_head(data), "head-1")
        if found is not None:
            states.decode(note_of(found.meta), 100, 320)

    def state(data: bytes) -> None:
        states.decode(data.decode("utf-8", "replace"), 100, 320)

    def template(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        found = ChatTemplate(with_template(spec, text), max_render_s=0.5)
        found.render_ids(_MESSAGES, tokenizer)

    return {
        "gguf": gguf, "safetensors": safetensors, "config": config, "tokenizer": vocabulary,
        "index": index, "container": container, "head": head, "state": state,
        "template": template,
    }  # fmt: skip


def with_template(spec: TokenizerSpec, template: str) -> TokenizerSpec:
    """The spec with another chat template."""
    import msgspec

    return msgspec.structs.replace(spec, chat_template=template)


def run(target: Target, data: bytes) -> bool:
    """Whether a parser took the bytes; raises what is no refusal."""
    try:
        target(data)
    except REFUSALS as error:
        text = message(error)
        if not text or re.search(r"[\0-\x1f\x7f]", text) or "internal error" in text:
            raise AssertionError(f"no refusal that a terminal should see: {text!r:.300}") from error
        return False
    return True
