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
from .placement import SEGMENT_TOKENS, SHARE_OF_FREE, Placement

# Of what the trunk and the least cache leave, the frames' part where keys and values lie on disk:
# at least, and at most for what they want.
_FRAMES_SHARE, _MOST_FRAMES_SHARE = 1 / 4, 1 / 2
# Keys and values go to disk where the cache would hold less than two tokens' experts, and half as
# many again otherwise: below that most of what a token reads are experts.
_FEW_TOKENS, _MORE = 2, 1.5
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


def token_experts(plan: ModelPlan) -> int:
    """Experts that a token uses in all layers."""
    return sum(x.mlp.n_experts_used for x in plan.layers if isinstance(x.mlp, MoePlan))


def _prompt_bytes(plan: ModelPlan, ctx: int) -> int:
    """The residual stream of a prompt that passes layer by layer, and the activations of the
    experts of a call."""
    widths = [x.mlp.n_experts_used * x.mlp.width for x in plan.layers if isinstance(x.mlp, MoePlan)]
    return 4 * plan.hidden * min(SEGMENT_TOKENS, ctx) + 10 * max(widths) * min(PREFILL_TOKENS, ctx)


def place_experts(
    model: ModelFile,
    options: Options,
    fixed: Sequence[BillLine],
    place: Callable[[Sequence[BillLine], bool], Placement],
    free: int,
) -> ExpertPlacement:
    """Choose the slots. fixed: what every bill has besides the weights; place: where keys and
    values go beside so many lines (true: to disk, if the options leave the choice); free: bytes of
    free memory."""
    plan, slot = model.plan, blob_bytes(model) + _TABLE_BYTES
    every, trunk = n_experts(plan), BillLine("trunk", trunk_bytes(model))
    if every == 0:
        return ExpertPlacement(0, place([BillLine("weights", trunk.n_bytes), *fixed], False))

    scratch = BillLine("activations", _prompt_bytes(plan, options.ctx or plan.ctx_train))
    limit = options.mem if options.mem is not None else int(SHARE_OF_FREE * free)

    def with_slots(n: int, to_disk: bool = False) -> ExpertPlacement:
        kv = place([trunk, BillLine("experts", n * slot), scratch, *fixed], to_disk)
        return ExpertPlacement(n, kv)

    def fitting(to_disk: bool) -> ExpertPlacement:
        """As many slots as the budget holds."""
        least = least_slots(plan)
        kv = with_slots(least, to_disk).kv
        # Frames take what they find: the experts' part of it is set aside first.
        left = limit - total(kv.bill) + kv.frame_bytes
        if kv.on_disk:
            wanted = min(kv.wanted_frame_bytes, int(_MOST_FRAMES_SHARE * left))
            part = max(int(_FRAMES_SHARE * left), wanted, kv.least_frame_bytes)
            # Of a short context, or its half, they hold no more than that.
            left -= min(part, kv.frame_bytes)
        return with_slots(min(max(least, least + left // slot), every), to_disk)

    if options.expert_cache is not None:
        return with_slots(min(max(options.expert_cache // slot, 1), every))
    whole = with_slots(every)
    if total(whole.kv.bill) <= limit:
        return ExpertPlacement(0, whole.kv) if every * slot <= _MAPPED_BYTES else whole
    chosen = fitting(False)
    if not chosen.kv.on_disk and chosen.n_slots < _FEW_TOKENS * token_experts(plan):
        # A token reads a small part of its keys and values, and these would take the room.
        other = fitting(True)
        if other.n_slots > _MORE * chosen.n_slots and total(other.kv.bill) <= limit:
            return other
    return chosen
