"""The two pictures of the comparison: distance against training seconds, and against milliseconds per image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.curves import Point, frontier

COLOURS = {"ladder": "#c2410c", "single": "#0f766e", "diffusers": "#475569", "diffusers-patched": "#94a3b8"}
LABELS = {
    "ladder": "sfumato", "single": "sfumato, one stage", "diffusers": "diffusers", "diffusers-patched": "diffusers, patched",
}  # fmt: skip

Table = dict[str, dict[float, list[Point]]]  # arm -> minutes -> points


def _style(axes: Any, x: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set(xscale="log", yscale="log", xlabel=x)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.12, y=0.12)


def _label(axes: Any, x: float, y: float, arm: str) -> None:
    axes.annotate(
        LABELS[arm], (x, y), xytext=(-4, 8), textcoords="offset points", color=COLOURS[arm], fontsize=9, ha="left"
    )


def training(table: Table, out: Path) -> None:
    """The best distance of each arm and budget against the seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm, by_minutes in table.items():
        best = [(60 * minutes, min(points, key=lambda p: p.distance)) for minutes, points in sorted(by_minutes.items())]
        seconds = [s for s, _ in best]
        spread = [0.0 if math.isnan(p.deviation) else p.deviation for _, p in best]
        axes.errorbar(
            seconds, [p.distance for _, p in best], spread, color=COLOURS[arm], marker="o", markersize=4, capsize=2
        )
        _label(axes, seconds[0], best[0][1].distance, arm)
    _style(axes, "seconds of training")
    axes.set_ylabel("Frechet distance at the best sampler setting")
    figure.savefig(out, dpi=130)


def sampling(table: Table, out: Path) -> None:
    """Distance against milliseconds per image: every setting a dot, the best for its time a line; a panel a budget."""
    from matplotlib.figure import Figure

    budgets = sorted({minutes for by_minutes in table.values() for minutes in by_minutes})
    figure = Figure(figsize=(1.5 + 4 * len(budgets), 4), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    for axes, minutes in zip(panels, budgets, strict=True):
        for arm, by_minutes in table.items():
            if minutes not in by_minutes:
                continue
            points = by_minutes[minutes]
            curve = frontier([p.milliseconds for p in points], [p.distance for p in points])
            axes.scatter(
                [p.milliseconds for p in points], [p.distance for p in points], s=10, color=COLOURS[arm], alpha=0.4
            )
            axes.plot(*zip(*curve, strict=True), color=COLOURS[arm], marker="o", markersize=4)
            _label(axes, *curve[0], arm)
        _style(axes, "milliseconds per image")
        axes.set_title(f"{minutes:g} min of training", fontsize=10)
    panels[0].set_ylabel("Frechet distance")
    figure.savefig(out, dpi=130)
