"""Certified accuracy, a lower bound, and the accuracy under attack, an upper bound, against the radius."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

INK, LINE, ATTACK = "#222222", "#0072b2", "#c1121f"


def draw(report: Mapping[str, Any]) -> bytes:
    """A PNG of certified accuracy against the L2 radius, from the report of ``certify_data``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        curve, smoothing = report["curve"], report["smoothing"]
        axes.fill_between(curve["radius"], curve["low"], curve["high"], step="pre", color=LINE, alpha=0.18, linewidth=0)
        label = f"certified, {report['data']['images']:,} images (95% band)"
        axes.step(curve["radius"], curve["accuracy"], where="pre", color=LINE, linewidth=2, label=label)
        asked = [(row["radius"], row["certified"]["accuracy"]) for row in report["table"] if row["radius"] > 0]
        axes.plot(*zip(*asked, strict=True) if asked else ((), ()), "o", color=LINE, markersize=5)
        if report["attack"] is not None:
            _empirical(axes, report)
        axes.set(xlim=(0, 1.02 * curve["radius"][-1] or 1.0), ylim=(0, 1.02))
        axes.set(xlabel="L2 radius (pixels from 0 to 1)", ylabel="accuracy")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
        front = "denoised and classified" if report["generator"] else "classified with the noise"
        title = f"sigma {smoothing['sigma']:g}, {front}, alpha {smoothing['alpha']:g}"
        axes.set_title(title, color=INK, loc="left", fontsize="medium")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    return drawn.getvalue()


def _empirical(axes: Any, report: Mapping[str, Any]) -> None:
    rows, label = report["table"], f"attacked, {report['attack']['images']} of them"
    radii, points = [row["radius"] for row in rows], [row["empirical"] for row in rows]
    accuracy, low, high = (np.array([point[key] for point in points]) for key in ("accuracy", "low", "high"))
    of_these = [row["certified_attacked"]["accuracy"] for row in rows]
    style: dict[str, Any] = {"fmt": "D", "color": ATTACK, "markersize": 5, "capsize": 3, "linewidth": 1.2}
    axes.errorbar(radii, accuracy, yerr=[accuracy - low, high - accuracy], clip_on=False, label=label, **style)
    style = {"color": LINE, "markersize": 14, "markeredgewidth": 2}
    axes.plot(radii, of_these, "_", clip_on=False, label="certified, of the same", **style)
