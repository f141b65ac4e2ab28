"""Curves of distance against cost: the mean over seeds, and what one arm costs where another is as good."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.records import Record


class Point(NamedTuple):
    """One arm at one budget and sampler setting, over its seeds."""

    setting: str
    distance: float
    deviation: float  # standard deviation of the distance over seeds; nan for a single one
    accuracy: float
    evaluations: float
    gflop: float
    milliseconds: float
    seeds: int


def points(found: Iterable[Record]) -> list[Point]:
    """A point for each setting, cheapest first, from the records of one arm and budget."""
    by_setting: dict[str, list[Record]] = {}
    for record in found:
        by_setting.setdefault(record["setting"], []).append(record)
    made = []
    for setting, group in by_setting.items():
        mean = {
            k: statistics.fmean(r[k] for r in group)
            for k in ("distance", "accuracy", "evaluations", "gflop", "milliseconds")
        }
        deviation = statistics.stdev(r["distance"] for r in group) if len(group) > 1 else math.nan
        made.append(Point(setting, deviation=deviation, seeds=len(group), **mean))
    return sorted(made, key=lambda point: point.milliseconds)


def frontier(costs: Sequence[float], distances: Sequence[float]) -> list[tuple[float, float]]:
    """The (cost, distance) pairs than which nothing cheaper is as good, cheapest first."""
    best: list[tuple[float, float]] = []
    for cost, distance in sorted(zip(costs, distances, strict=True)):
        if not best or distance < best[-1][1]:
            best.append((cost, distance))
    return best


class Cost(NamedTuple):
    """A cost, and whether it is only an upper bound (the cheapest setting measured is better than was asked)."""

    value: float
    bound: bool


def cost_at(curve: Sequence[tuple[float, float]], distance: float) -> Cost | None:
    """What a frontier costs at ``distance``, log-linear between its points; None where it never gets there."""
    if not curve or curve[-1][1] > distance:
        return None
    if curve[0][1] <= distance:
        return Cost(curve[0][0], curve[0][1] < distance)
    for (cost, worse), (next_cost, better) in pairwise(curve):
        if better <= distance:
            share = math.log(worse / distance) / math.log(worse / better)
            return Cost(cost * (next_cost / cost) ** share, False)
    raise AssertionError("a frontier falls")


def distance_at(curve: Sequence[tuple[float, float]], cost: float) -> float | None:
    """How good a frontier is for ``cost``, log-linear between its points; None below its cheapest point."""
    if not curve or cost < curve[0][0]:
        return None
    for (low, worse), (high, better) in pairwise(curve):
        if cost < high:
            return worse * (better / worse) ** (math.log(cost / low) / math.log(high / low))
    return curve[-1][1]
