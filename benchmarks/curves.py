"""Curves of distance against cost: the mean over seeds, what one arm costs where another is as good, and two pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.base.record import Record, groups
from benchmarks.base.table import mean

LABELS = {"ladder": "sfumato", "single": "sfumato, one stage", "diffusers": "diffusers"}
LABELS["diffusers-patched"] = "diffusers, patched"
COLOURS = {"ladder": "#c2410c", "single": "#0f766e", "diffusers": "#475569", "diffusers-patched": "#94a3b8"}


class Point(NamedTuple):
    """One arm at one budget and sampler setting, over its seeds."""

    setting: str
    distances: tuple[float, ...]  # one a seed
    distance: float
    accuracy: float
    evaluations: float
    gflop: float
    milliseconds: float


Table = dict[str, dict[float, list[Point]]]  # arm -> minutes -> points


def points(found: Iterable[Record]) -> list[Point]:
    """A point for each setting, cheapest first, from the records of one arm and budget."""
    made = [
        Point(setting, tuple(each["distance"] for each in group), *(mean(group, key) for key in Point._fields[2:]))
        for (setting,), group in groups(found, "setting").items()
    ]
    return sorted(made, key=lambda point: point.milliseconds)


def curve(found: Sequence[Point], cost: str) -> list[tuple[float, float]]:
    """The (cost, distance) pairs than which nothing cheaper is as good, cheapest first; cost: milliseconds or gflop."""
    best: list[tuple[float, float]] = []
    for spent, distance in sorted((getattr(p, cost), p.distance) for p in found):
        if not best or distance < best[-1][1]:
            best.append((spent, distance))
    return best


class Cost(NamedTuple):
    """A cost, and whether it is only an upper bound (the cheapest setting measured is better than was asked)."""

    value: float
    bound: bool

    def __str__(self) -> str:
        return f"{'≤ ' if self.bound else ''}{self.value:.2f}"


def cost_at(curve: Sequence[tuple[float, float]], distance: float) -> Cost | None:
    """What a curve costs at ``distance``, log-linear between its points; None where it never gets there."""
    if not curve or curve[-1][1] > distance:
        return None
    if curve[0][1] <= distance:
        return Cost(curve[0][0], curve[0][1] < distance)
    for (cost, worse), (next_cost, better) in pairwise(curve):
        if better <= distance:
            share = math.log(worse / distance) / math.log(worse / better)
            return Cost(cost * (next_cost / cost) ** share, False)
    raise AssertionError("a curve falls")


def cost_ratio(ours: Sequence[Point], theirs: Sequence[Point], cost: str, distance: float) -> Cost | None:
    """Our cost by theirs at equal distance; None where one of them is never as good."""
    mine, other = cost_at(curve(ours, cost), distance), cost_at(curve(theirs, cost), distance)
    return Cost(mine.value / other.value, mine.bound) if mine and other else None


def distance_at(curve: Sequence[tuple[float, float]], cost: float) -> float | None:
    """How good a curve is for ``cost``, log-linear between its points; None below its cheapest point."""
    if not curve or cost < curve[0][0]:
        return None
    for (low, worse), (high, better) in pairwise(curve):
        if cost < high:
            return worse * (better / worse) ** (math.log(cost / low) / math.log(high / low))
    return curve[-1][1]


def worst_at_equal_time(ours: Sequence[Point], theirs: Sequence[Point]) -> float | None:
    """Our distance by theirs at the milliseconds of each of their settings, the largest; None where we have none."""
    mine = curve(ours, "milliseconds")
    found = [(distance_at(mine, spent), distance) for spent, distance in curve(theirs, "milliseconds")]
    return max((here / distance for here, distance in found if here is not None), default=None)


def draw_training(table: Table, out: Path) -> None:
    """The best distance of each arm and budget against the seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm, budgets in table.items():
        best = [min(found, key=lambda p: p.distance) for _, found in sorted(budgets.items())]
        seconds, distances = [60 * minutes for minutes in sorted(budgets)], [p.distance for p in best]
        error = [_deviation(p.distances) for p in best]
        axes.errorbar(seconds, distances, error, color=COLOURS[arm], marker="o", markersize=4, capsize=2)
        _label(axes, seconds[0], distances[0], arm)
    _style(axes, "seconds of training")
    axes.set_ylabel("Fréchet distance at the best sampler setting")
    figure.savefig(out, dpi=130)


def draw_sampling(table: Table, out: Path) -> None:
    """Distance against milliseconds per image: every setting a dot, the best for its time a line; a panel a budget."""
    from matplotlib.figure import Figure

    budgets = sorted({minutes for by_minutes in table.values() for minutes in by_minutes})
    figure = Figure(figsize=(1.5 + 4 * len(budgets), 4), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    for axes, minutes in zip(panels, budgets, strict=True):
        for arm, found in ((arm, by_minutes[minutes]) for arm, by_minutes in table.items() if minutes in by_minutes):
            spent, distances = [p.milliseconds for p in found], [p.distance for p in found]
            axes.scatter(spent, distances, s=10, color=COLOURS[arm], alpha=0.4)
            line = curve(found, "milliseconds")
            axes.plot(*zip(*line, strict=True), color=COLOURS[arm], marker="o", markersize=4)
            _label(axes, *line[0], arm)
        _style(axes, "milliseconds per image")
        axes.set_title(f"{minutes:g} min of training", fontsize=10)
    panels[0].set_ylabel("Fréchet distance")
    figure.savefig(out, dpi=130)


def _deviation(values: Sequence[float]) -> float:
    import statistics

    return statistics.stdev(values) if len(values) > 1 else 0.0


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
    style = {"xytext": (-4, 8), "textcoords": "offset points", "color": COLOURS[arm], "fontsize": 9, "ha": "left"}
    axes.annotate(LABELS[arm], (x, y), **style)
