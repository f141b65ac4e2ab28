"""The chain as a picture, laid out as in the lecture: left to right it denoises and grows, right to left it decays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sfumato.conditions.requests import Labels
from sfumato.core.pictures import grid
from sfumato.ladder import Ladder, Level
from sfumato.samplers import Rung

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 4  # of each stage
TILE = 112  # px, the finest stage; coarser ones are drawn as much smaller as they are
GAP = 10
CAPTION = 40


class Chain(Protocol):
    """What has a film: a model that is one chain from noise to image, as a Generator is."""

    @property
    def ladder(self) -> Ladder: ...
    def trace(self, n: int, label: Labels, **how: Any) -> Iterator[Rung]: ...


def film(generator: Chain, n: int = 1, label: Labels = None, image: Tensor | None = None, **how: Any) -> Image.Image:
    """Both directions of the chain, two rows an image: ``z_0`` decoded up to an image, and the image noised down.

    Args:
        n: how many images.
        label: as in ``Generator.sample``.
        image: (n, C, H, W) in [0, 1], what the lower rows start from; left out, the pictures that the upper rows end in.
        how: ``steps``, ``sampler``, ``guidance``, ``weak``, ``seed`` as in ``Generator.trace``.
    """
    rungs = list(generator.trace(n, label, **how))
    up = [rung for stage in range(generator.ladder.stages) for rung in _spread([r for r in rungs if r.stage == stage])]
    clean = up[-1].x_hat.cpu() if image is None else 2 * image - 1
    down = _decay(generator.ladder, clean, [Level(rung.stage, rung.sigma) for rung in up], how.get("seed", 0))
    rows: list[tuple[str, list[Tensor]]] = []
    for i in range(n):
        for caption, states in (
            ("up, left to right: denoise and enlarge", [rung.z for rung in up]),
            ("down, right to left: add noise and shrink", down),
        ):
            rows.append((caption, [_tile(z[i], rung.sigma) for z, rung in zip(states, up, strict=True)]))
    return _draw(rows, up)


def _spread(rungs: list[Rung]) -> list[Rung]:
    """About FRAMES of a stage's rungs, the first and the last among them."""
    count = min(FRAMES, len(rungs))
    return [rungs[round(i * (len(rungs) - 1) / (count - 1))] for i in range(count)]


def _decay(ladder: Ladder, clean: Tensor, levels: list[Level], seed: int) -> list[Tensor]:
    """The states at ``levels`` (coarse first) of one walk down the Markov chain from ``clean``."""
    source = torch.Generator().manual_seed(seed)
    here, z, states = levels[-1], clean, [clean]
    for there in reversed(levels[:-1]):
        z, here = ladder.down(z, here, there, source), there
        states.append(z)
    return states[::-1]


def _tile(z: Tensor, sigma: float) -> Tensor:
    """(C, h, w) state to [0, 1] pixels: ``z / (1 + s)``, so that noise stays as visible as the image was."""
    return ((z.cpu().float() / (1 + sigma) + 1) / 2).clamp(0, 1)


def _draw(rows: list[tuple[str, list[Tensor]]], up: list[Rung]) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    finest = max(rows[0][1][-1].shape[1:])
    scale = max(1, round(TILE / finest))
    sizes = [(tile.shape[2] * scale, tile.shape[1] * scale) for tile in rows[0][1]]
    widths = [max(width, 54) + GAP for width, _ in sizes]
    height = sizes[-1][1] + GAP
    canvas = Image.new("RGB", (GAP + sum(widths), CAPTION + len(rows) * (height + 16) + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    left = GAP
    for rung, width in zip(up, widths, strict=True):
        _, h, w = rung.z.shape[1:]
        pen.text((left + (width - GAP) / 2, 4), f"{w}x{h}\ns = {rung.sigma:.2g}", "#555", font, "ma", align="center")
        left += width
    for i, (caption, tiles) in enumerate(rows):
        top = CAPTION + i * (height + 16)
        pen.text((GAP, top), caption, "#888", font)
        left = GAP
        for tile, (w, h), width in zip(tiles, sizes, widths, strict=True):
            picture = grid(tile[None], scale=scale, gap=0)
            canvas.paste(picture, (left + (width - GAP - w) // 2, top + 16 + (height - GAP - h) // 2))
            left += width
    return canvas
