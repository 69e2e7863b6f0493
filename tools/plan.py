"""`hga plan`: the memory bill of a model and a context, line by line, before anything is loaded."""

import argparse
import json
from collections.abc import Sequence

from hga.runtime import budget
from hga.runtime.planning import MemoryPlan, plan_memory
from hga.tools.errors import OK
from hga.tools.resolve import resolve
from hga.tools.run import engine_options
from hga.tools.status import Status, size


def plan(model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code, or raises BudgetError (3) where it cannot fit."""
    options = engine_options(values)
    path = resolve(model, status, accept_terms=values.accept_gemma_terms)
    found = plan_memory(path, options)
    fits = options.mem is None or budget.total(found.placement.bill) <= options.mem
    if values.json:
        print(json.dumps(_data(found, options.mem, options.gpu_mem, fits)))
    else:
        print("\n".join(_lines(found, options.mem, options.gpu_mem)))
    budget.check(found.placement.bill, options.mem)
    return OK


def _data(found: MemoryPlan, mem: int | None, gpu_mem: int | None, fits: bool) -> dict[str, object]:
    bill, card = found.placement.bill, found.card
    kv = "disk" if found.placement.on_disk else "ram"
    data: dict[str, object] = {
        "ctx": found.ctx,
        "kv": kv if card is None or card.kv_on_host or kv == "disk" else "card",
        "bill": _items(bill),
        "total_bytes": budget.total(bill),
        "disk_bytes": found.disk_bytes,
        "mem": mem,
        "fits": fits,
    }
    if card is not None:
        data["card_bill"] = _items(card.card)
        data["card_total_bytes"] = budget.total(card.card)
        data["gpu_mem"] = gpu_mem
    return data


def _items(bill: Sequence[budget.BillLine]) -> list[dict[str, object]]:
    return [
        {"name": line.name, "bytes": line.n_bytes, "by_context": line.by_context} for line in bill
    ]


def _lines(found: MemoryPlan, mem: int | None, gpu_mem: int | None) -> list[str]:
    where = "in memory"
    if found.placement.on_disk:
        where = f"on disk, {size(found.disk_bytes)}"
    lines = []
    card = found.card
    if card is not None:
        if not found.placement.on_disk:
            where = "in host memory" if card.kv_on_host else "on the card"
        lines += ["on the card", *_bill(card.card, "--gpu-mem", gpu_mem), "in host memory"]
    lines += _bill(found.placement.bill, "--mem", mem)
    lines.append(f"{found.name}, {found.ctx:,} tokens; keys and values {where}")
    return lines


def _bill(bill: Sequence[budget.BillLine], flag: str, limit: int | None) -> list[str]:
    width = max(len(line.name) for line in bill)
    lines = [
        f"{line.name:<{width}}  {size(line.n_bytes):>10}{'  grows with --ctx' * line.by_context}"
        for line in bill
    ]
    lines.append(f"{'total':<{width}}  {size(budget.total(bill)):>10}")
    if limit is not None:
        lines.append(f"{flag:<{width}}  {size(limit):>10}")
    return lines
