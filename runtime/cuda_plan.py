"""Where a model's weights, keys and values go between a card's memory and the host's, and the bill
of each. Needs no card: `hga plan` says it of any.

Keys and values leave the card first: a routed token reads a small part of them, and of the experts
an eighth or less. Where the host's budget does not hold them either they go to disk. Experts that
the card cannot hold lie in pinned host memory, read by the kernels over the bus.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hga.kernels.formats import FORMATS
from hga.kvstore.geometry import BLOCK_TOKENS, CELLS_PER_BLOCK, Geometry, n_blocks
from hga.kvstore.route import Budget, Router
from hga.models.plan import ModelPlan, MoePlan

from .budget import BillLine, BudgetError, total
from .container import ModelFile
from .options import OptionError, Options
from .placement import Placement, place

# What the driver, the libraries and compiled kernels take of a card: nvidia-smi less what torch
# counts, measured on an H100.
CONTEXT_BYTES = 700 << 20
# Python, torch and its libraries in host memory.
_HOST_BYTES = 3 << 30
# Freed parts of blocks that no later tensor fits in.
_GAPS_BYTES = 256 << 20
# Tokens of a prompt that pass the layers together.
PREFILL_TOKENS = 2048
# Of a prompt whose keys and values go to disk, what passes a layer together: the more, the less
# often earlier pages are read. At least so many tokens; at most this share of the cap, or so much.
_LEAST_PART, _MOST_PART_SHARE, _MOST_PART_BYTES = 8192, 0.02, 1 << 30
# Blocks of a layer that go between card and host at a time.
CHUNK_BLOCKS = 64
# The least room for widened weights (kernels/triton/model.py), elements of two bytes.
_LEAST_SCRATCH = 96 << 20


@dataclass(frozen=True, slots=True)
class CudaPlan:
    """card: the bill; host: that of the host, and whether keys and values go to disk from there;
    kv_on_host: whether they lie there or on the card; n_resident: experts of each layer that lie on
    the card (0 or all of them for a dense model); part_tokens: of a prompt, that pass a layer
    together where keys and values go to disk."""

    card: tuple[BillLine, ...]
    host: Placement
    kv_on_host: bool
    n_resident: int
    part_tokens: int = _LEAST_PART


def require_known(options: Options) -> None:
    """OptionError where options ask for what is not built for a card."""
    refused = {
        "attention": (options.attention, "hga-paper"),
        "prefill": (options.prefill, "hga"),
        "kv_type": (options.kv_type, "q8"),
        "sketch_bits": (options.sketch_bits, 1),
    }
    for name, (value, bad) in refused.items():
        if value == bad:
            raise OptionError(f"{name} {value!r} is not available with device 'cuda' yet")


def scratch_bytes(plan: ModelPlan) -> int:
    """Room for widened weights."""
    return 2 * max(_LEAST_SCRATCH, *(3 * plan.hidden * layer.mlp.width for layer in plan.layers))


def _activation_bytes(plan: ModelPlan, tokens: int) -> int:
    """What a block of a prompt takes at its widest: rows of projections, or of experts."""
    most = 0
    for layer in plan.layers:
        a, m = layer.attention, layer.mlp
        heads = (3 * a.n_heads + 4 * a.n_kv_heads) * a.head_dim * 4
        used = m.n_experts_used if isinstance(m, MoePlan) else 1
        most = max(most, heads, used * (4 * plan.hidden + 2 * m.width) + 8 * plan.hidden)
    # Twice: a result is made while what it is made of is still held.
    return tokens * (2 * most + 16 * plan.hidden)


def _matrix_bytes(model: ModelFile, role: str) -> int:
    """Bytes of a tensor on the card, where formats without kernels are float16."""
    record = model.record(role)
    n = 1
    for size in record.shape:
        n *= size
    if len(record.shape) == 1:
        return 4 * n
    known = record.format in ("f32", "f16", "bf16", "fp8", "q8", "q4")
    bits = FORMATS[record.format].bits_per_weight if known else 16.0
    return int(n * bits / 8) + 64


def place_on_card(
    model: ModelFile, geometry: Geometry, ctx: int, options: Options, free: int | None = None
) -> CudaPlan:
    """The plan for a cap of options.gpu_mem bytes (None: everything on the card); free: bytes of
    free host memory (None: as it is).

    Raises BudgetError where not even the trunk and one expert a layer fit.
    """
    import psutil

    free = psutil.virtual_memory().available if free is None else free
    plan = model.plan
    trunk, experts = 0, 0
    for role in model.roles:
        if ".experts." in role:
            experts += _matrix_bytes(model, role)
        else:
            trunk += _matrix_bytes(model, role)
    n_experts = max((x.mlp.n_experts for x in plan.layers if isinstance(x.mlp, MoePlan)), default=0)
    block = min(PREFILL_TOKENS, ctx)
    fixed = [
        BillLine("CUDA context and kernels", CONTEXT_BYTES),
        BillLine("trunk", trunk),
        BillLine("widened weights", scratch_bytes(plan)),
        BillLine("activations", _activation_bytes(plan, block)),
        BillLine("gaps of the allocator", _GAPS_BYTES),
        BillLine("key sketches", _sketch_bytes(geometry, ctx), True),
    ]
    kv = BillLine("keys and values", geometry.kv_bytes(ctx), True)
    expert_line = [BillLine("experts", experts)] if experts else []
    limit = options.gpu_mem
    everything = [*fixed, *expert_line, kv]
    runtime = BillLine("runtime", _HOST_BYTES)
    if options.kv == "auto" and (limit is None or total(everything) <= limit):
        return CudaPlan(tuple(everything), Placement(False, 0, 0, (runtime,)), False, n_experts)
    pages = max(geometry.layer_bytes(i) for i in range(len(geometry.layers))) * n_blocks(ctx)
    fixed.append(BillLine("keys and values of a layer", pages, True))

    def placed(kv: str) -> CudaPlan:
        lines, n_resident, part = list(fixed), 0, _LEAST_PART
        host = [runtime]
        if kv == "disk":
            line, part = _part_of_prompt(plan, ctx, limit)
            lines.append(line)
            host.append(BillLine("lists of cells, part of a layer", _lists_bytes(geometry, ctx)))
        left = (limit if limit is not None else total(lines) + experts) - total(lines)
        if left < 0 or (experts and left < experts // n_experts):
            raise BudgetError(_too_small([*lines, *expert_line[:1]], limit or 0))
        if experts:
            each = -(-experts // n_experts)
            n_resident = min(n_experts, left // each)
            name = f"experts, {n_resident} of {n_experts} a layer"
            lines.append(BillLine(name, n_resident * each))
            if n_resident < n_experts:
                host.append(BillLine("experts", (n_experts - n_resident) * each))
        windows = [layer.attention.window for layer in plan.layers]
        router = Router(options.attention, Budget.parse(options.budget))
        found = place(
            geometry, windows, ctx, 0, router, host, kv, options.mem, free, has_index=False
        )
        return CudaPlan(tuple(lines), found, True, n_resident, part)

    chosen = placed(options.kv)
    return placed("disk") if chosen.host.on_disk else chosen


def _lists_bytes(geometry: Geometry, ctx: int) -> int:
    """When cells were used, cells that are asked for, and blocks on their way to the card."""
    heads = [s.n_kv_heads for s in geometry.layers]
    lists = 4 * (sum(heads) + max(heads)) * n_blocks(ctx) * CELLS_PER_BLOCK
    return lists + CHUNK_BLOCKS * max(geometry.layer_bytes(i) for i in range(len(heads)))


def _part_of_prompt(plan: ModelPlan, ctx: int, limit: int | None) -> tuple[BillLine, int]:
    """What a part of a prompt takes on the card that passes a layer together, and its tokens."""
    # The residual stream; cosines and sines for every RoPE of the model.
    ropes = {(layer.attention.rope, layer.attention.head_dim) for layer in plan.layers}
    half = max(layer.attention.head_dim for layer in plan.layers) // 2 + 16
    each = 4 * plan.hidden + 8 * half * len(ropes)
    most = _MOST_PART_BYTES
    if limit is not None:
        most = min(most, int(_MOST_PART_SHARE * limit))
    # All of a context, and where that is a multiple of what passes the kernels together.
    whole = -(-(ctx + 63) // PREFILL_TOKENS) * PREFILL_TOKENS
    tokens = min(max(_LEAST_PART, most // each // PREFILL_TOKENS * PREFILL_TOKENS), whole)
    return BillLine("a part of a prompt", each * tokens, True), tokens


def _sketch_bytes(geometry: Geometry, ctx: int) -> int:
    capacity, size = n_blocks(ctx) * BLOCK_TOKENS, 0
    for shape in geometry.layers:
        if shape.routed:
            width = max(64, 1 << (shape.head_dim - 1).bit_length())
            size += shape.n_kv_heads * (width // 4 + 2) * capacity
    return size


def _too_small(bill: Sequence[BillLine], limit: int) -> str:
    lines = ", ".join(f"{line.name} {line.n_bytes / 2**20:.0f} MiB" for line in bill)
    return (
        f"{limit / 2**20:.0f} MiB of GPU memory cannot hold what has to lie there: {lines}"
        " (--gpu-mem sets the cap; a smaller --ctx needs less)"
    )
