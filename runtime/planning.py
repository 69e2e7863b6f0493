"""The memory bill of a model file under some options, before anything of it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hga.kvstore import slots
from hga.kvstore.geometry import Geometry, LayerShape, n_blocks, padded_head_dim
from hga.kvstore.route import Budget, Router
from hga.kvstore.store_layout import BlockShape, SegmentEntry
from hga.models.plan import ModelPlan

from . import budget
from .container import ModelFile
from .cuda_plan import CudaPlan, place_on_card, require_known
from .expert_budget import ExpertPlacement, place_experts
from .options import Options
from .placement import Placement, place

# Process, interpreter, libraries and compiled kernels, measured with the demo model.
_RUNTIME_BYTES = 160 << 20
# A token's id in the lists of session and conversation, and its text: measured with CPython 3.11.
TOKEN_BYTES = 176


def geometry_of(plan: ModelPlan, options: Options) -> Geometry:
    """Sizes of a model's keys, values and sketches."""
    return Geometry(
        tuple(
            LayerShape(a.n_kv_heads, padded_head_dim(a.head_dim), routed=a.window == 0)
            for a in (layer.attention for layer in plan.layers)
        ),
        options.sketch_bits,
        options.kv_type == "q8",
    )


def place_model(
    model: ModelFile, geometry: Geometry, ctx: int, options: Options
) -> ExpertPlacement:
    """Where experts, and keys and values of a context, go, and the bill."""
    import psutil

    free = psutil.virtual_memory().available
    fixed = [
        budget.BillLine("runtime and scratch", _RUNTIME_BYTES),
        budget.BillLine("token ids and text", TOKEN_BYTES * ctx, True),
    ]
    kv = options.kv
    if options.attention == "hga-paper":
        # It reads every key when a chunk closes.
        fixed.append(budget.BillLine("chunk summaries", geometry.summary_bytes(ctx), True))
        kv = "ram"

    def place_kv(lines: Sequence[budget.BillLine], to_disk: bool) -> Placement:
        return place(
            geometry,
            tuple(layer.attention.window for layer in model.plan.layers),
            ctx,
            model.plan.hidden,
            Router(options.attention, Budget.parse(options.budget)),
            lines,
            "disk" if to_disk and kv == "auto" else kv,
            options.mem,
            free,
        )

    return place_experts(model, options, fixed, place_kv, free)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model needs at a context: the bill, what keys and values take on disk, and with a
    card what lies there."""

    name: str
    ctx: int
    placement: Placement
    disk_bytes: int
    card: CudaPlan | None = None


def disk_bytes(geometry: Geometry, ctx: int) -> int:
    """What the keys and values of a context take on disk, with index, sums and free slots."""
    shape = BlockShape.of(geometry)
    sizes = slots.sizes_for(n_blocks(ctx))
    return sum(SegmentEntry(0, 0, size).file_bytes(shape) for size in sizes)


def plan_memory(path: Path, options: Options) -> MemoryPlan:
    """The plan for a packed file, of which only the index is read. Raises as Engine.open, except
    that a budget that is too small is left to `budget.check`."""
    with ModelFile.open(path) as model:
        ctx = options.ctx or model.plan.ctx_train
        geometry = geometry_of(model.plan, options)
        if options.device == "cuda":
            require_known(options)
            card = place_on_card(model, geometry, ctx, options)
            size = disk_bytes(geometry, ctx) if card.host.on_disk else 0
            return MemoryPlan(model.plan.architecture, ctx, card.host, size, card)
        placement = place_model(model, geometry, ctx, options).kv
        disk = 0
        if placement.on_disk:
            disk = disk_bytes(geometry, ctx)
        return MemoryPlan(model.plan.architecture, ctx, placement, disk)
