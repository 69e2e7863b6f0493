"""Pictures of evaluations, drawn by matplotlib (the extra `plot`) without a display.

Colours are told apart by everybody (Okabe and Ito's palette; red to blue for shares found), and a
rule has the same colour in every picture.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hga.tools.arms import Arm
from hga.tools.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = {"hga": "#0072B2", "hga-paper": "#D55E00", "oracle": "#009E73", "dense": "#555555"}
_MARKERS = {"hga": "o", "hga-paper": "s", "oracle": "^", "dense": "D"}
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 150,
}
# Gaps up to here are drawn to scale, larger ones logarithmically.
_LINEAR_NATS = 0.01
_TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def check(path: Path | None) -> None:
    """Raise UsageError where a picture is asked for that could not be written at the end."""
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--plot {path}: expected a name ending in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'hga[plot]'")


def gap(depths: Sequence[Row], path: Path) -> None:
    """Loss above dense attention against tokens attended: a panel per length, a line per rule,
    bars for the 95 % intervals."""
    figure, axes = _panels(1, len(depths), 4.6, 3.6, share_y=True)
    rows = [row for depth in depths for row in depth["rows"]]
    largest = max((abs(row["gap"]) + row["gap_ci"] for row in rows), default=0.0)
    lowest = min((row["gap"] - row["gap_ci"] for row in rows), default=0.0)
    for axis, depth in zip(axes[0], depths, strict=True):
        axis.axhline(0, color=_COLOURS["dense"], linewidth=1)
        rules = list(dict.fromkeys(row["attention"] for row in depth["rows"]))
        for number, rule in enumerate(rules):
            mine = [row for row in depth["rows"] if row["attention"] == rule]
            mine = sorted((row for row in mine if row["attended_mean"]), key=_attended)
            axis.errorbar(
                # A little apart, so that rules at equal budgets do not hide each other's bars.
                [_attended(row) * (1 + 0.02 * number) for row in mine],
                [row["gap"] for row in mine],
                yerr=[row["gap_ci"] for row in mine],
                color=_COLOURS.get(rule), marker=_MARKERS.get(rule, "o"), label=rule,
                markersize=5, linewidth=1.4, elinewidth=1, capsize=3,
            )  # fmt: skip
        axis.set_title(f"{depth['ctx']:,} tokens of context, {_segments(depth)}")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_xlabel("tokens attended per decoded token")
        if largest > 5 * _LINEAR_NATS:
            axis.set_yscale("symlog", linthresh=_LINEAR_NATS)
            above = [t for t in _TICKS if t <= 1.3 * largest]
            below = [-t for t in _TICKS if t <= -lowest]
            axis.set_yticks([*below, 0, *above])
            axis.yaxis.set_minor_locator(_no_ticks())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")
        axis.grid(alpha=0.3, linewidth=0.6)
    axes[0][0].set_ylabel("loss above dense (nats)")
    axes[0][0].legend(frameon=False)
    _write(figure, path)


def needle(result: Row, path: Path) -> None:
    """Share of needles found at each depth and length: a column of panels per arm, a row per
    kind."""
    rows, lengths, depths = result["rows"], result["ctx"], result["depths"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    arms = list(dict.fromkeys(map(_arm, rows)))
    width, height = max(1.7, 0.55 * len(lengths) + 0.9), max(1.8, 0.24 * len(depths) + 0.8)
    figure, axes = _panels(len(kinds), len(arms), width, height, share_y=True)
    image = None
    for line, kind in zip(axes, kinds, strict=True):
        for axis, arm in zip(line, arms, strict=True):
            mine = {(r["depth"], r["ctx"]): r for r in rows if r["kind"] == kind and _arm(r) == arm}
            hits = [[mine[depth, ctx]["hits"] for ctx in lengths] for depth in depths]
            totals = [[mine[depth, ctx]["total"] for ctx in lengths] for depth in depths]
            image = axis.imshow(
                [[h / n for h, n in zip(*pair, strict=True)] for pair in zip(hits, totals)],
                vmin=0, vmax=1, cmap="RdYlBu", aspect="auto",
            )  # fmt: skip
            _annotate(axis, hits, totals)
            got, asked = sum(map(sum, hits)), sum(map(sum, totals))
            axis.set_title(f"{arm.label}\n{kind}: {got} of {asked}")
            axis.set_xticks(range(len(lengths)), [_tokens(n) for n in lengths])
            axis.set_yticks(range(len(depths)), [f"{100 * depth:.0f} %" for depth in depths])
            axis.tick_params(length=0)
            # White lines between the cells.
            axis.set_xticks([x - 0.5 for x in range(1, len(lengths))], minor=True)
            axis.set_yticks([y - 0.5 for y in range(1, len(depths))], minor=True)
            axis.grid(which="minor", color="white", linewidth=1.2)
            axis.tick_params(which="minor", length=0)
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel("depth of the needle")
    for axis in axes[-1]:
        axis.set_xlabel("context (tokens)")
    assert image is not None
    bar = figure.colorbar(image, ax=[axis for line in axes for axis in line], pad=0.02, aspect=30)
    bar.set_label("needles found")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    bar.outline.set_visible(False)
    _write(figure, path)


def ruler(result: Row, path: Path) -> None:
    """Score at each length of context: a panel per task, a bar per arm."""
    rows, lengths = result["rows"], result["ctx"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    arms = list(dict.fromkeys(map(_arm, rows)))
    bar = 0.8 / len(arms)
    width = max(2.4, 0.22 * len(arms) * len(lengths) + 1)
    figure, axes = _panels(1, len(tasks), width, 3.0, share_y=True)
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, arm in enumerate(arms):
            mine = {row["ctx"]: row for row in rows if row["task"] == task and _arm(row) == arm}
            same = [other for other in arms if other.attention == arm.attention]
            # Budgets of a rule differ in how solid its colour is.
            solid = 1 - 0.7 * same.index(arm) / len(same)
            bars = axis.bar(
                [x - 0.4 + bar * (number + 0.5) for x in range(len(lengths))],
                [100 * mine[n]["score"] for n in lengths], 0.9 * bar,
                label=arm.label, color=_COLOURS.get(arm.attention), alpha=solid,
            )  # fmt: skip
            axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        questions = max(row["questions"] for row in rows if row["task"] == task)
        axis.set_title(f"{task} ({questions} question{'s' if questions > 1 else ''})")
        axis.set_xticks(range(len(lengths)), [_tokens(n) for n in lengths])
        axis.tick_params(axis="x", length=0)
        axis.set_ylim(0, 108)
        axis.set_yticks(range(0, 101, 20))
        axis.set_xlabel("context (tokens)")
        axis.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes[0][0].set_ylabel("expected strings found (%)")
    axes[0][-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1))
    _write(figure, path)


def bench(result: Row, path: Path) -> None:
    """Speeds at each depth: decoding with its roofline, prompts; where experts are read, the share
    of uses that cost no read, layer by layer."""
    rows, by_layer = result["rows"], result.get("expert_layer_hit_rates")
    tests = list(dict.fromkeys(row["test"].split(" @ ")[0] for row in rows))
    kinds = [[t for t in tests if t.startswith(kind)] for kind in ("tg", "pp")]
    kinds = [kind for kind in kinds if kind]
    figure, axes = _panels(1, len(kinds) + (by_layer is not None), 4.2, 3.4, share_y=False)
    for axis, kind in zip(axes[0], kinds):
        for test, marker in zip(kind, "osD^v" * len(kind)):
            mine = [row for row in rows if row["test"].split(" @ ")[0] == test]
            depths = [row["depth"] for row in mine]
            axis.errorbar(
                depths, [row["tps"] for row in mine], yerr=[row["tps_std"] for row in mine],
                label=test, marker=marker, markersize=5, linewidth=1.4, capsize=3,
                color=_COLOURS["hga"] if len(kind) == 1 else None,
            )  # fmt: skip
            if mine[0]["roofline"]:
                roofs = [row["roofline"] for row in mine]
                axis.plot(depths, roofs, "--", color=_COLOURS["dense"], linewidth=1,
                          label="memory bandwidth allows")  # fmt: skip
        axis.set_title("decode" if kind[0].startswith("tg") else "prompts")
        axis.set_xscale("symlog", linthresh=1024)
        axis.set_xticks(depths, [_tokens(n) for n in depths])
        axis.xaxis.set_minor_locator(_no_ticks())
        axis.set_xlabel("tokens in the context")
        axis.set_ylabel("tokens a second")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.legend(frameon=False)
    if by_layer is not None:
        axis = axes[0][-1]
        axis.bar(range(len(by_layer)), [100 * (rate or 0) for rate in by_layer],
                 color=_COLOURS["hga"])  # fmt: skip
        axis.set_title("experts found in memory")
        axis.set_xlabel("layer")
        axis.set_ylabel("uses without a read (%)")
        axis.set_ylim(0, 100)
        axis.grid(axis="y", alpha=0.3, linewidth=0.6)
    _write(figure, path)


def _arm(row: Row) -> Arm:
    return Arm(row["attention"], row["budget"])


def _attended(row: Row) -> float:
    return float(row["attended_mean"])


def _segments(depth: Row) -> str:
    n = depth["segments"]
    return f"{n} segments" if n > 1 else "1 segment"


def _tokens(n: int) -> str:
    """A length as users write it: 64k, 1m, 1500."""
    for unit, name in ((1 << 20, "m"), (1 << 10, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def _annotate(axis: "Axes", hits: Sequence[Sequence[int]], totals: Iterable[Sequence[int]]) -> None:
    """Write `hits/total` into cells that missed something: a full picture needs no figures."""
    for y, (got, asked) in enumerate(zip(hits, totals, strict=True)):
        for x, (hit, total) in enumerate(zip(got, asked, strict=True)):
            if hit < total:
                dark = hit / total < 0.2 or hit / total > 0.8
                colour = "white" if dark else "black"
                axis.text(x, y, f"{hit}/{total}", ha="center", va="center", color=colour, size=7)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _panels(
    n_rows: int, n_columns: int, width: float, height: float, *, share_y: bool
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure of its own canvas, so that no display is asked for, and its panels."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        size = (width * n_columns + 0.9, height * n_rows + 0.2)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(n_rows, n_columns, sharey=share_y, squeeze=False)
    return figure, [list(line) for line in axes]


def _write(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=150)
