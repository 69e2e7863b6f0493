"""`hga plan`: the memory bill of a model and a context, line by line, before anything is loaded."""

import argparse
import json

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
        print(json.dumps(_data(found, options.mem, fits)))
    else:
        print("\n".join(_lines(found, options.mem)))
    budget.check(found.placement.bill, options.mem)
    return OK


def _data(found: MemoryPlan, mem: int | None, fits: bool) -> dict[str, object]:
    bill = found.placement.bill
    return {
        "ctx": found.ctx,
        "kv": "disk" if found.placement.on_disk else "ram",
        "bill": [
            {"name": line.name, "bytes": line.n_bytes, "by_context": line.by_context}
            for line in bill
        ],
        "total_bytes": budget.total(bill),
        "disk_bytes": found.disk_bytes,
        "mem": mem,
        "fits": fits,
    }


def _lines(found: MemoryPlan, mem: int | None) -> list[str]:
    bill = found.placement.bill
    width = max(len(line.name) for line in bill)
    lines = [
        f"{line.name:<{width}}  {size(line.n_bytes):>10}{'  grows with --ctx' * line.by_context}"
        for line in bill
    ]
    lines.append(f"{'total':<{width}}  {size(budget.total(bill)):>10}")
    if mem is not None:
        lines.append(f"{'--mem':<{width}}  {size(mem):>10}")
    where = "in memory"
    if found.placement.on_disk:
        where = f"on disk, {size(found.disk_bytes)}"
    lines.append(f"{found.name}, {found.ctx:,} tokens; keys and values {where}")
    return lines
