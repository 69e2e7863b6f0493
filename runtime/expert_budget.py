"""Where the experts of a model go, memory or a cache of slots, and what that leaves for keys and
values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hga.models.plan import ModelPlan, MoePlan

from .budget import BillLine, total
from .container import ModelFile
from .experts import blob_bytes, most_used, n_experts
from .forward import PREFILL_TOKENS
from .options import Options
from .placement import SEGMENT_TOKENS, Placement

# Without --mem, of the memory that is free when the engine opens (as runtime/placement.py).
_SHARE_OF_FREE = 0.8
# Of what the trunk, the least cache and the least frames leave, where keys and values lie on disk.
_EXPERTS_SHARE = 0.75
# Tables of a slot and of an expert (runtime/experts.py).
_TABLE_BYTES = 64
# Experts that lie in memory whole are mapped from the file up to this: a cache would start threads
# for what the page cache holds anyway.
_MAPPED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """n_slots of the cache of experts; 0: they are mapped from the file, all of them."""

    n_slots: int
    kv: Placement


def trunk_bytes(model: ModelFile) -> int:
    """Bytes of all but the experts."""
    return sum(s.nbytes for s in model.segments if ".experts." not in s.name)


def least_slots(plan: ModelPlan) -> int:
    """Slots with which a token's experts of a layer are computed while the next are read."""
    return min(2 * most_used(plan), n_experts(plan))


def _prompt_bytes(plan: ModelPlan, ctx: int) -> int:
    """The residual stream of a prompt that passes layer by layer, and the activations of the
    experts of a call."""
    widths = [x.mlp.n_experts_used * x.mlp.width for x in plan.layers if isinstance(x.mlp, MoePlan)]
    return 4 * plan.hidden * min(SEGMENT_TOKENS, ctx) + 10 * max(widths) * min(PREFILL_TOKENS, ctx)


def place_experts(
    model: ModelFile,
    options: Options,
    fixed: Sequence[BillLine],
    place: Callable[[Sequence[BillLine]], Placement],
    free: int,
) -> ExpertPlacement:
    """Choose the slots. fixed: what every bill has besides the weights; place: where keys and
    values go beside so many lines; free: bytes of free memory."""
    plan, slot = model.plan, blob_bytes(model) + _TABLE_BYTES
    every, trunk = n_experts(plan), BillLine("trunk", trunk_bytes(model))
    if every == 0:
        return ExpertPlacement(0, place([BillLine("weights", trunk.n_bytes), *fixed]))

    scratch = BillLine("a part of a prompt", _prompt_bytes(plan, options.ctx or plan.ctx_train))

    def with_slots(n: int) -> Placement:
        return place([trunk, BillLine("experts", n * slot), scratch, *fixed])

    if options.expert_cache is not None:
        n = min(max(options.expert_cache // slot, 1), every)
        return ExpertPlacement(n, with_slots(n))
    limit = options.mem if options.mem is not None else int(_SHARE_OF_FREE * free)
    whole = with_slots(every)
    if total(whole.bill) <= limit:
        small = every * slot <= _MAPPED_BYTES
        return ExpertPlacement(0 if small else every, whole)
    least = least_slots(plan)
    kv = with_slots(least)
    # Frames take what they find: the experts' part of it is set aside first.
    left = limit - total(kv.bill) + kv.frame_bytes
    if kv.on_disk:
        left = int(_EXPERTS_SHARE * left)
    n = min(max(least, least + left // slot), every)
    return ExpertPlacement(n, with_slots(n))
