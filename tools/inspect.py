"""inspect and verify: what is in a model file or a session, and whether all of it is intact.

Both take a packed file, a GGUF file, a safetensors folder or a session folder, and return text;
printing is the command's. Only packed files and sessions carry checksums: of a source, verify reads
every value instead.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hga.kvstore.errors import SessionError
from hga.kvstore.store_folder import is_session
from hga.models.plan import ModelPlan, MoePlan
from hga.runtime.container import ModelFile, is_packed
from hga.runtime.container_plan import encode_plan
from hga.runtime.tokenizer_spec import TokenizerSpec

from .pack import report_lines
from .pack_tensor import format_for, kind_of, pieces
from .sessions import describe_lines, look, verify_session
from .sources import Source, open_source

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Description:
    """What is in a file: `lines` for people, `data` for --json."""

    lines: tuple[str, ...]
    data: dict[str, Any]


def describe(path: str | Path) -> Description:
    """What is in a packed file, a GGUF file, a safetensors or session folder; reads no weights.

    Raises FileNotFoundError, and ContainerError, SourceError, SessionError, TokenizerError,
    ConfigError or UnsupportedError for one that cannot be used.
    """
    path = Path(path)
    if path.is_file() and is_packed(path):
        with ModelFile.open(path) as model:
            return _describe_packed(model)
    if is_session(path):
        found = look(path)
        if found.error is not None:
            raise SessionError(found.error)
        return Description(tuple(describe_lines(found)), {"kind": "session", **found.data})
    with open_source(path) as source:
        return _describe_source(source)


def verify(path: str | Path, progress: Progress | None = None) -> str:
    """Check everything about a file that can be checked; a sentence that says what was.

    `progress` hears (bytes, total bytes). Raises as `describe` at the first thing that is wrong.
    """
    path = Path(path)
    if path.is_file() and is_packed(path):
        with ModelFile.open(path) as model:
            model.verify(progress)
            _ = model.tokenizer
            n_segments = len(model.segments)
            return f"{path}: header, index and {n_segments} segments match their checksums"
    if is_session(path):
        return verify_session(path, progress)
    with open_source(path) as source:
        source.tokenizer_spec()
        _read_all(source, progress)
        return (
            f"{path}: all {len(source.specs)} tensors are whole and finite "
            f"({source.kind} has no checksums)"
        )


def _read_all(source: Source, progress: Progress | None) -> None:
    """Run every tensor through the packer, which refuses what no format can hold."""
    tensors = [(spec, source.spec_tensor(spec)) for spec in source.specs]
    total = sum(tensor.nbytes for _, tensor in tensors)
    done = 0
    for spec, tensor in tensors:
        for job in pieces(tensor, spec, format_for(spec.role, tensor, "auto")):
            job()
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)


def plan_lines(plan: ModelPlan) -> list[str]:
    """The architecture in a few lines."""
    first = plan.layers[0]
    attention = first.attention
    windows = sorted({layer.attention.window for layer in plan.layers} - {0})
    n_windowed = sum(layer.attention.window > 0 for layer in plan.layers)
    lines = [
        f"architecture  {plan.architecture}, {len(plan.layers)} layers, hidden {plan.hidden}, "
        f"vocabulary {plan.vocab_size}",
        f"context       {plan.ctx_train} tokens",
        f"attention     {attention.n_heads} heads, {attention.n_kv_heads} KV heads, "
        f"head_dim {attention.head_dim}, RoPE theta {attention.rope.theta:g}, "
        f"scaling {attention.rope.kind}",
    ]
    if windows:
        sizes = ", ".join(str(window) for window in windows)
        lines.append(f"window        {sizes} tokens in {n_windowed} of {len(plan.layers)} layers")
    if isinstance(first.mlp, MoePlan):
        moe = first.mlp
        lines.append(
            f"experts       {moe.n_experts_used} of {moe.n_experts} per token, width {moe.width}"
        )
    else:
        lines.append(f"feed-forward  width {first.mlp.width}")
    return lines


def _describe_packed(model: ModelFile) -> Description:
    trunk = sum(s.nbytes for s in model.segments if ".experts." not in s.name)
    experts = sum(s.nbytes for s in model.segments if ".experts." in s.name)
    tokenizer = model.tokenizer
    source = model.source
    lines = [
        f"{model.path}: packed model, {model.header.file_bytes} bytes, digest {model.digest}",
        f"packed from   {source.get('name')} ({source.get('kind')}, {source.get('nbytes')} bytes), "
        f"--format {source.get('format')}",
        *plan_lines(model.plan),
        f"weights       {len(model.roles)} tensors in {len(model.segments)} segments: "
        f"{_mib(trunk)} trunk, {_mib(experts)} experts",
        _tokenizer_line(tokenizer),
        f"sampling      {_pairs(model.generation)}",
        *report_lines(model.report),
    ]
    data = {
        "kind": "packed",
        "path": str(model.path),
        "nbytes": model.header.file_bytes,
        "digest": model.digest,
        "plan": encode_plan(model.plan),
        "source": source,
        "generation": model.generation,
        "n_tensors": len(model.roles),
        "n_segments": len(model.segments),
        "trunk_nbytes": trunk,
        "expert_nbytes": experts,
        "report": [
            {name: getattr(row, name) for name in row.__struct_fields__} for row in model.report
        ],
    }
    return Description(tuple(lines), data)


def _describe_source(source: Source) -> Description:
    kinds: dict[tuple[str, str], list[int]] = {}
    for spec in source.specs:
        tensor = source.spec_tensor(spec)
        entry = kinds.setdefault((kind_of(spec.role), tensor.dtype), [0, 0])
        entry[0] += 1
        entry[1] += tensor.nbytes
    tensors = [
        {"kind": kind, "dtype": dtype, "tensors": count, "nbytes": nbytes}
        for (kind, dtype), (count, nbytes) in kinds.items()
    ]
    what = "GGUF file" if source.kind == "gguf" else "safetensors folder"
    tokenizer = source.tokenizer_spec()
    lines = [
        f"{source.path}: {what}, {source.nbytes} bytes in {len(source.files)} file(s)",
        *plan_lines(source.plan),
        _tokenizer_line(tokenizer),
        f"sampling      {_pairs(source.generation())}",
        *(f"{t['kind']:8} {t['tensors']:6} x {t['dtype']:>7} {_mib(t['nbytes'])}" for t in tensors),
        *source.notices,
    ]
    data = {
        "kind": source.kind,
        "path": str(source.path),
        "nbytes": source.nbytes,
        "plan": encode_plan(source.plan),
        "generation": source.generation(),
        "tensors": tensors,
        "notices": list(source.notices),
    }
    return Description(tuple(lines), data)


def _tokenizer_line(spec: TokenizerSpec) -> str:
    template = "a" if spec.chat_template else "no"
    return f"tokenizer     {spec.n_vocab} tokens, {template} chat template"


def _mib(nbytes: Any) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _pairs(values: dict[str, Any]) -> str:
    items: Iterable[str] = (f"{key} {value}" for key, value in values.items())
    return ", ".join(items) or "nothing stated"
