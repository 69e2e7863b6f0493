"""A Hugging Face folder: config.json, safetensors (one file, or shards with an index), FP8 blocks.

FP8 is the format of DeepSeek-V3 and Qwen3-FP8: e4m3 codes with one float32 factor per block of
128 x 128, stored beside each weight as `NAME_scale_inv`; value = code * factor.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hga.models.keys import Keys
from hga.models.plan import TensorSpec, UnsupportedError
from hga.models.registry import plan_from_hf

from .jsonfile import load_object
from .safetensors import Entry, read_header
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

_MAX_CONFIG_BYTES = 16 << 20
_MAX_INDEX_BYTES = 32 << 20
_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_OTHER_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_FP8: Final = "F8_E4M3"
_SCALE: Final = "_scale_inv"
_BLOCK = 128

# Not used by a text model's forward pass; all but the first are named in a notice.
_SILENT: Final = ("*.rotary_emb.inv_freq",)
_IMAGE: Final = (
    *("vision_tower.*", "multi_modal_projector.*"),
    *("model.vision_tower.*", "model.multi_modal_projector.*"),
)
_MTP: Final = ("mtp.*", "model.mtp.*")


def open_hf(folder: Path) -> Source:
    """Open a folder; raises SourceError, ConfigError or UnsupportedError."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise SourceError(
            f"{folder}: no config.json; expected a Hugging Face checkpoint folder or a GGUF file"
        )
    config = load_object(config_path, _MAX_CONFIG_BYTES)
    quantization = config.get("quantization_config")
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    unconverted = _fp8_exceptions(config_path, quantization) if quantization is not None else None
    with naming(folder):
        plan, specs = plan_from_hf(plain)
    files: dict[str, ByteFile] = {}
    try:
        entries = _entries(folder, files)
        if "text_config" in config:
            entries = _text_names(folder, entries)
        tensors = {name: _tensor(entry) for name, entry in entries.items() if _matrix(entry)}
        shapes = {name: entry.shape for name, entry in entries.items()}
        check_tensors(folder, specs, shapes, f" (looked in {', '.join(sorted(files))})")
        notices = _check_unused(folder, specs, entries, plan.tied_head)
        for spec in specs:
            tensors[spec.source] = _checked(spec, tensors[spec.source], entries, unconverted)
        stated: Mapping[str, object] = {}
        generation = folder / "generation_config.json"
        if generation.is_file():
            stated = load_object(generation, _MAX_CONFIG_BYTES)
        sampling = sampling_defaults(stated, generation)
    except BaseException:
        for file in files.values():
            file.close()
        raise

    def tokenizer() -> "TokenizerSpec":
        from hga.runtime.tokenizer import spec_from_hf

        return spec_from_hf(folder)

    return Source(
        kind="hf",
        path=folder,
        plan=plan,
        specs=specs,
        metadata=config,
        tensors=tensors,
        notices=notices,
        files=tuple(files.values()),
        sampling=sampling,
        tokenizer=tokenizer,
    )


def _fp8_exceptions(path: Path, quantization: object) -> tuple[str, ...]:
    """modules_to_not_convert of a quantization_config that this program can read."""
    if not isinstance(quantization, dict):
        raise SourceError(f"{path}: quantization_config: expected an object")
    keys = Keys(quantization, f"{path}: quantization_config")
    method = keys.text("quant_method")
    if method != "fp8":
        raise keys.unsupported("quant_method", "fp8", method)
    keys.expect("fmt", "e4m3")
    keys.expect("activation_scheme", "dynamic")
    keys.expect("scale_fmt", "float")
    keys.expect("dequantize", False, True)
    block = keys.raw("weight_block_size")
    if block != [_BLOCK, _BLOCK]:
        raise keys.unsupported("weight_block_size", f"[{_BLOCK}, {_BLOCK}]", block)
    names = keys.raw("modules_to_not_convert", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise keys.wrong("modules_to_not_convert", "a list of names", names)
    keys.finish()
    return tuple(names)


def _entries(folder: Path, files: dict[str, ByteFile]) -> dict[str, Entry]:
    """All tensors of the folder; opened files are added to `files` for the caller to close."""
    index_path = folder / _INDEX
    if not index_path.is_file():
        if not (folder / _SINGLE).is_file():
            found = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHER_WEIGHTS)
            raise SourceError(
                f"{folder}: expected {_SINGLE} or {_INDEX}, found "
                f"{', '.join(found[:8]) or 'no weights'}"
            )
        files[_SINGLE] = ByteFile(folder / _SINGLE)
        return read_header(files[_SINGLE])
    index = load_object(index_path, _MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index_path}: weight_map: expected an object of tensor names")
    out: dict[str, Entry] = {}
    for shard in sorted({_shard_name(index_path, value) for value in weight_map.values()}):
        if not (folder / shard).is_file():
            raise SourceError(f"{folder}: shard {shard!r:.200} of {_INDEX} is missing")
        files[shard] = ByteFile(folder / shard)
        for name, entry in read_header(files[shard]).items():
            if name not in weight_map or weight_map[name] != shard:
                raise SourceError(
                    f"{folder / shard}: tensor {name!r:.200}: {_INDEX} places it in "
                    f"{weight_map.get(name, 'no shard')}"
                )
            out[name] = entry
    for name, shard in weight_map.items():
        if name not in out:
            raise SourceError(f"{folder / shard}: tensor {name!r:.200} of {_INDEX} is not there")
    return out


def _shard_name(index_path: Path, value: object) -> str:
    if (
        not isinstance(value, str)
        or not value.endswith(".safetensors")
        or any(c in value for c in "/\\:\0")
    ):
        raise SourceError(
            f"{index_path}: shard name: expected a plain *.safetensors file name, "
            f"found {value!r:.80}"
        )
    return value


def _text_names(folder: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Names of a multimodal checkpoint's language model as a text-only one has them."""
    out: dict[str, Entry] = {}
    for name, entry in entries.items():
        for prefix, instead in (("language_model.", ""), ("model.language_model.", "model.")):
            if name.startswith(prefix):
                name = instead + name.removeprefix(prefix)
                break
        if name in out:
            raise SourceError(f"{folder}: tensor {name!r:.200} is there under two names")
        out[name] = entry
    return out


def _matrix(entry: Entry) -> bool:
    return len(entry.shape) in (1, 2) and entry.nbytes > 0


def _tensor(entry: Entry) -> SourceTensor:
    element = plain_dtype(entry.dtype) if entry.dtype in PLAIN_DTYPES else np.dtype(np.uint8)
    n_rows = entry.shape[0] if len(entry.shape) == 2 else 1
    row_bytes = entry.nbytes // n_rows
    return SourceTensor(
        entry.name, entry.dtype, entry.shape, row_bytes, entry.offset, entry.file, element
    )


def _checked(
    spec: TensorSpec,
    tensor: SourceTensor,
    entries: Mapping[str, Entry],
    unconverted: tuple[str, ...] | None,
) -> SourceTensor:
    """The tensor if its dtype can be read, with its block scales if it is FP8."""
    where = f"{tensor.file.path}: tensor {tensor.name}"
    scale_name = spec.source + _SCALE
    if tensor.dtype in PLAIN_DTYPES:
        if scale_name in entries:
            raise SourceError(f"{where} is {tensor.dtype} but {scale_name} stands beside it")
        return tensor
    if tensor.dtype != _FP8 or len(tensor.shape) != 2:
        raise UnsupportedError(
            f"{where} is {tensor.dtype}; supported: F32, F16, BF16, and {_FP8} matrices with "
            "block scales"
        )
    if unconverted is None:
        raise SourceError(f"{where} is {_FP8} but config.json has no quantization_config")
    module = spec.source.removesuffix(".weight")
    for name in unconverted:
        if name and (module == name or module.endswith("." + name) or (name + ".") in module):
            raise SourceError(f"{where} is {_FP8}, but modules_to_not_convert names {name!r:.200}")
    entry = entries.get(scale_name)
    wanted = tuple(-(-n // _BLOCK) for n in tensor.shape)
    if entry is None:
        raise SourceError(f"{where} is {_FP8}: its block scales {scale_name} are missing")
    if entry.shape != wanted or entry.dtype not in PLAIN_DTYPES:
        raise SourceError(
            f"{tensor.file.path}: {scale_name}: expected float {list(wanted)}, "
            f"found {entry.dtype} {list(entry.shape)}"
        )
    return SourceTensor(
        tensor.name,
        tensor.dtype,
        tensor.shape,
        tensor.row_bytes,
        tensor.offset,
        tensor.file,
        tensor.element,
        _scales(entry),
    )


def _scales(entry: Entry) -> npt.NDArray[np.float32]:
    """Block scales as float32; they must be finite, and FP8 writers never make one negative."""
    raw = entry.file.read(entry.offset, entry.nbytes).view(plain_dtype(entry.dtype))
    scale = raw.astype(np.float32).reshape(entry.shape)
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise SourceError(f"{entry.file.path}: {entry.name}: expected finite scales >= 0")
    return scale


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_unused(
    folder: Path, specs: tuple[TensorSpec, ...], entries: Mapping[str, Entry], tied: bool
) -> tuple[str, ...]:
    """Sentences about tensors that are known not to matter; SourceError about any other."""
    used = {spec.source for spec in specs}
    used |= {name + _SCALE for name in used}
    notices: dict[str, int] = {}
    for name in entries:
        if name in used or _matches(name, _SILENT):
            continue
        if name == "lm_head.weight" and tied:
            what = "lm_head.weight, as config.json ties the head to the embedding"
        elif _matches(name, _IMAGE):
            what = "tensors of the image encoder: this program reads text only"
        elif _matches(name, _MTP):
            what = "tensors that predict further tokens (mtp)"
        else:
            raise SourceError(
                f"{folder}: tensor {name!r:.200} {list(entries[name].shape)} is not part of this "
                "model; what it would change is unknown"
            )
        notices[what] = notices.get(what, 0) + 1
    return tuple(f"ignored {count} {what}" for what, count in notices.items())
