"""A GGUF file as a Source: plan, tensors and sampling defaults from a checked table."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from hga.models.plan import UnsupportedError
from hga.models.registry import plan_from_gguf

from .gguf_table import BLOCK_TYPES, SUPPORTED, TableEntry, read_table
from .source import (
    PLAIN_DTYPES,
    ByteFile,
    Source,
    SourceError,
    SourceTensor,
    check_tensors,
    naming,
    plain_dtype,
    sampling_defaults,
)

if TYPE_CHECKING:
    from hga.runtime.tokenizer import TokenizerSpec


def _tensor(entry: TableEntry, file: ByteFile) -> SourceTensor:
    """A 3-D stack of experts becomes one matrix of all their rows."""
    plain = entry.type.name in PLAIN_DTYPES
    element = plain_dtype(entry.type.name) if plain else np.dtype(np.uint8)
    cols = entry.shape[-1]
    n_rows = entry.nbytes // (cols // entry.type.values * entry.type.nbytes)
    shape = (cols,) if len(entry.shape) == 1 else (n_rows, cols)
    return SourceTensor(
        entry.name, entry.type.name, shape, entry.nbytes // n_rows, entry.offset, file, element
    )


def _decimal(value: object) -> object:
    """A float32 as the number that was meant: 0.6 and not 0.6000000238."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


# Tensors that some converters leave behind and that nothing computes with.
_LEFTOVER: Final = ("rope_freqs.weight", "attn_rot_embd", "rope.freqs")


def open_gguf(path: Path) -> Source:
    """Open a GGUF file; raises SourceError, ConfigError or UnsupportedError."""
    file = ByteFile(path)
    try:
        return _open(path, file)
    except BaseException:
        file.close()
        raise


def _open(path: Path, file: ByteFile) -> Source:
    table = read_table(file)
    shapes = {entry.name: entry.shape for entry in table.tensors}
    tensors = {entry.name: _tensor(entry, file) for entry in table.tensors}
    divisors = None
    if "rope_freqs.weight" in tensors:
        freqs = tensors["rope_freqs.weight"]
        if freqs.dtype != "F32" or len(freqs.shape) != 1:
            raise SourceError(
                f"{path}: rope_freqs.weight: expected an F32 vector, found {freqs.dtype} "
                f"{list(freqs.shape)}"
            )
        divisors = freqs.vector().tolist()
    with naming(path):
        plan, specs = plan_from_gguf(table.metadata, shapes, divisors)
    check_tensors(path, specs, shapes, "")
    used = {spec.source: spec for spec in specs}
    for name, spec in used.items():
        dtype = tensors[name].dtype
        if len(spec.shape) == 1 and dtype not in PLAIN_DTYPES:
            raise UnsupportedError(f"{path}: vector {name} is {dtype}; supported: F32, F16, BF16")
        if not any(t.supported for t in BLOCK_TYPES.values() if t.name == dtype):
            raise UnsupportedError(f"{path}: tensor {name} is {dtype}; supported: {SUPPORTED}")
    for name in shapes:
        if name not in used and not any(part in name for part in _LEFTOVER):
            raise SourceError(
                f"{path}: tensor {name!r:.200} {list(shapes[name])} is not part of a "
                f"{plan.architecture} model; what it would change is unknown"
            )
    short = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
    stated = {
        short.get(key.rsplit(".", 1)[1], key.rsplit(".", 1)[1]): _decimal(value)
        for key, value in table.metadata.items()
        if key.startswith("general.sampling.")
    }

    def tokenizer() -> "TokenizerSpec":
        from hga.runtime.tokenizer import spec_from_gguf

        return spec_from_gguf(table.metadata)

    return Source(
        kind="gguf",
        path=path,
        plan=plan,
        specs=specs,
        metadata=table.metadata,
        tensors=tensors,
        notices=(),
        files=(file,),
        sampling=sampling_defaults(stated, path),
        tokenizer=tokenizer,
    )
