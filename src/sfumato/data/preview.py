"""A preview picture of a data source: images as they are fed to a model, with their classes or captions."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.pictures import grid, named_rows, on_white, to_bytes
from sfumato.data.decode import Notify
from sfumato.data.sources import DataSource, load

_ROWS, _COLUMNS = 12, 12
_CAPTIONED = 36  # images of a captioned preview
_TILE = 128  # pixels: with less, hardly a word fits below
_LINES = 2  # of text below an image


def preview(
    source: DataSource, *, size: int | tuple[int, int] | None = None, fit: str = "crop", progress: Notify | None = None
) -> Image.Image:
    """Training images as they are fed to a model: a row of 12 a class, at most 12 classes; else a square.

    Of a captioned set 36, each with its caption below.
    """
    with warnings.catch_warnings(action="ignore"):  # the report says it better
        data = load(source, size=size, fit=fit, progress=progress)
    if data.captions is not None:
        return captioned_grid(np.asarray(data.images[:_CAPTIONED]), [texts[0] for texts in data.captions[:_CAPTIONED]])
    if data.labels is None or not data.classes:
        return grid(np.asarray(data.images[: _ROWS * _COLUMNS]))
    rows = {data.classes[i]: np.flatnonzero(data.labels == i)[:_COLUMNS] for i in range(len(data.classes))}
    rows = dict([(name, found) for name, found in rows.items() if len(found)][:_ROWS])
    height, width = data.size
    sheet = np.full((len(rows) * _COLUMNS, height, width, 1 if data.channels == 1 else 3), 255, np.uint8)
    for r, found in enumerate(rows.values()):
        sheet[r * _COLUMNS : r * _COLUMNS + len(found)] = on_white(np.asarray(data.images[found]))
    return named_rows(grid(sheet, columns=_COLUMNS), list(rows))


def captioned_grid(images: Tensor | np.ndarray, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """One picture of all images, row by row on white, each with its caption below in at most two lines.

    ``images``: (N, C, H, W) floats in [0, 1] or (N, H, W, C) uint8; small ones grow to at most 128 pixels. ``columns``:
    images a row (default: about square). Captions that do not fit are shortened. InputError unless there are N of them.
    """
    array = on_white(to_bytes(images))  # (N, H, W, 1 or 3)
    count, height, width, channels = array.shape
    if len(captions) != count:
        raise InputError(f"{len(captions)} captions for {count} images; give one each")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    scale = max(1, _TILE // max(height, width))
    height, width = height * scale, width * scale
    font = _font(max(11, width // 12))
    line, gap = round(1.3 * font.size), round(0.6 * font.size)
    across, down = width + gap, height + _LINES * line + gap
    sheet = Image.new("RGB", (columns * across + gap, math.ceil(count / columns) * down + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        x, y = gap + i % columns * across, gap + i // columns * down
        tile = array[i].repeat(scale, axis=0).repeat(scale, axis=1).repeat(3 // channels, axis=2)
        sheet.paste(Image.fromarray(tile), (x, y))
        for j, text in enumerate(_wrapped(caption, font, width)):
            pen.text((x + width / 2, y + height + j * line), text, fill="black", font=font, anchor="ma")
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words where there are some."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _LINES:
        fits = max(1, _fitting(rest, font, width))
        if fits < len(rest) and len(lines) == _LINES - 1:
            lines.append(rest[: _fitting(rest, font, width - font.getlength("…"))].rstrip() + "…")
            break
        blank = rest.rfind(" ", 0, fits + 1)
        end = blank if fits < len(rest) and blank > 0 else fits
        lines.append(rest[:end])
        rest = rest[end:].strip()
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many of its first characters fit into ``width`` pixels."""
    return bisect.bisect_right(range(1, len(text) + 1), width, key=lambda n: font.getlength(text[:n]))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it knows many scripts, Pillow's own font hardly more than ASCII."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
