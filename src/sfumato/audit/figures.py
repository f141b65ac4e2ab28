"""The report's figures: SVG that takes its colours from the page, and pictures as PNG inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.audit.summary import size
from sfumato.core.pictures import grid

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
BINS = 40
NOISE_SCALE = 10  # how much stronger the noise is drawn than it is


class Axes:
    """A plot's frame: from data to pixels, and the SVG so far."""

    def __init__(self, x_most: float, y_most: float, height: int = HEIGHT) -> None:
        self.x_most, self.y_most, self.height = x_most, y_most, height
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(value, self.x_most) / self.x_most

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (self.height - TOP - BOTTOM) * value / self.y_most

    def frame(self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_name: str, y_name: str) -> None:
        bottom = self.height - BOTTOM
        for value, text in y_ticks.items():
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.text(LEFT - 8, y + 4, text, "end")
        for value, text in x_ticks.items():
            x = self.x(value)
            self.parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
            self.text(x, bottom + 18, text, "middle")
        self.parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        self.text((LEFT + WIDTH - RIGHT) / 2, self.height - 6, x_name, "middle", "name")
        middle = self.height / 2 - 12
        turned = f'class="name" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle"'
        self.parts.append(f"<text {turned}>{escape(y_name)}</text>")

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> None:
        self.parts.append(f'<polyline class="{kind}" points="{" ".join(self._points(xs, ys))}"/>')

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> None:
        rim = self._points(xs, high) + self._points(xs, low)[::-1]
        self.parts.append(f'<polygon class="{kind}" points="{" ".join(rim)}"/>')

    def _points(self, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
        return [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]

    def mark(self, eps: float, norm: str) -> None:
        """The audited eps, as a line from top to bottom."""
        x = self.x(eps)
        self.parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>')
        self.text(x + 6, TOP + 10, f"audited eps {size(eps, norm)}")

    def svg(self, label: str) -> str:
        inner = "".join(self.parts)
        return f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(label)}">{inner}</svg>'


def security_curve(report: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """Accuracy against eps, with the worst case at the audited eps; "" where there is no curve."""
    curve = report["curve"]
    if curve is None:
        return ""
    norm, eps, most = report["threat"]["norm"], report["threat"]["eps"], max(curve["eps"])
    axes = Axes(most, 1.0)
    axes.frame(ticks(most, norm), PERCENT, f"eps ({norm})", "accuracy")
    axes.mark(eps, norm)
    old = baseline and baseline["curve"]
    if old:
        inside = [i for i, value in enumerate(old["eps"]) if 0 <= value <= most]
        axes.line([old["eps"][i] for i in inside], [old["accuracy"][i] for i in inside], "line before")
    axes.band(curve["eps"], curve["low"], curve["high"], "band")
    axes.line(curve["eps"], curve["accuracy"], "line")
    worst = report["robust"]
    x = axes.x(eps)
    axes.parts.append(
        f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(worst["low"]):.1f}" y2="{axes.y(worst["high"]):.1f}"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="{axes.y(worst["accuracy"]):.1f}" r="5"/>'
    )
    return axes.svg("accuracy against the size of the perturbation")


def histogram(distances: np.ndarray, norm: str, eps: float) -> str:
    """How far the nearest adversarial images are; "" where none was found."""
    found = distances[np.isfinite(distances)]
    if not len(found):
        return ""
    most = max(float(found.max()), 1e-9) * 1.02
    counts, edges = np.histogram(found, bins=BINS, range=(0, most))
    axes = Axes(most, float(counts.max()), 220)
    axes.frame(ticks(most, norm), counted(int(counts.max())), f"smallest perturbation found ({norm})", "images")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y = axes.x(low), axes.y(count)
            axes.parts.append(
                f'<rect class="column" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(axes.x(high) - x - 1, 1):.1f}" '
                f'height="{axes.y(0) - y:.1f}"/>'
            )
    if eps <= most:
        axes.mark(eps, norm)
    return axes.svg("histogram of the smallest perturbations")


PERCENT = {share / 5: f"{20 * share}%" for share in range(6)}


def ticks(most: float, norm: str) -> dict[float, str]:
    """Round numbers from 0 to ``most``; of a pixel's 255 steps for Linf."""
    unit, text = _units(norm)
    step = _round_step(most / unit / 6)
    return {i * step * unit: text(i * step) for i in range(int(most / unit / step + 1e-9) + 1)}


def counted(most: int) -> dict[float, str]:
    """Whole numbers from 0 to ``most``."""
    step = max(1, math.ceil(_round_step(most / 4)))
    return {float(i): str(i) for i in range(0, most + 1, step)}


def _units(norm: str) -> tuple[float, Callable[[float], str]]:
    if norm == "Linf":
        return 1 / 255, lambda value: f"{value:g}/255" if value else "0"
    return 1.0, lambda value: f"{value:g}"


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-12)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def noise(clean: Tensor, adversarial: Tensor) -> Tensor:
    """The perturbation ten times as strong, around grey: (C, H, W) in [0, 1]."""
    return (0.5 + NOISE_SCALE * (adversarial - clean)).clamp(0, 1)


def data_uri(image: Tensor) -> str:
    """(C, H, W) in [0, 1] as the address of a PNG that is written out in it."""
    encoded = io.BytesIO()
    grid(image[None], scale=1, gap=0).save(encoded, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
