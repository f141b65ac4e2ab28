"""A sheet of attacked images for slides: a column an image; clean, noise and adversarial below each other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.audit.figures import NOISE_SCALE, noise
from sfumato.core.pictures import on_white, to_bytes

TILE, GAP, LINE, MARGIN = 128, 14, 17, 92  # px
COLUMNS = 8  # then the next block begins
GOOD, BAD, SOFT, INK = "#2e7d4f", "#b3261e", "#6a675f", "#1d1d1b"


class Column(NamedTuple):
    """One image: pixels (C, H, W) in [0, 1]; label, probability and whether it is right, before and after; a remark."""

    clean: Tensor
    adversarial: Tensor
    before: tuple[str, float, bool]
    after: tuple[str, float, bool]
    remark: str


def draw(columns: list[Column]) -> Image.Image:
    """The sheet, on white."""
    across = min(len(columns), COLUMNS)
    blocks = [columns[i : i + COLUMNS] for i in range(0, len(columns), COLUMNS)]
    rows = (TILE + 2 * LINE + GAP, TILE + GAP, TILE + 3 * LINE + GAP)  # heights of a block's three rows
    sheet = Image.new("RGB", (MARGIN + across * (TILE + GAP), GAP + len(blocks) * sum(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, block in enumerate(blocks):
        top = GAP + index * sum(rows)
        tops = (top, top + rows[0], top + rows[0] + rows[1])
        for name, height in zip(("clean", f"noise x{NOISE_SCALE}", "adversarial"), tops, strict=True):
            pen.text((MARGIN - 10, height + TILE // 2), name, fill=SOFT, font=_font(13), anchor="rm")
        for place, column in enumerate(block):
            left = MARGIN + place * (TILE + GAP)
            _say(pen, left, top + TILE, column.before)
            shown = (column.clean, noise(column.clean, column.adversarial), column.adversarial)
            for height, image in zip(tops, shown, strict=True):
                _tile(sheet, left, height, image)
            _say(pen, left, tops[2] + TILE, column.after)
            pen.text((left, top + sum(rows) - GAP - LINE), column.remark, fill=SOFT, font=_font(12))
    return sheet


def _tile(sheet: Image.Image, left: int, top: int, image: Tensor) -> None:
    array = on_white(to_bytes(image[None]))[0]  # (H, W, 1 or 3)
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else np.ascontiguousarray(array)).convert("RGB")
    scale = TILE / max(picture.size)
    shape = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS  # small pixels are to be seen
    picture = picture.resize(shape, method)
    sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))


def _say(pen: ImageDraw.ImageDraw, left: int, top: int, answer: tuple[str, float, bool]) -> None:
    label, probability, right = answer
    pen.text((left, top + 3), _fitted(label, _font(14)), fill=GOOD if right else BAD, font=_font(14))
    pen.text((left, top + 3 + LINE), f"{probability:.1%}", fill=INK, font=_font(12))


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "\u2026") > TILE:
        text = text[:-1]
    return text + "\u2026"


def _font(points: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), points)
