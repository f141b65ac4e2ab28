"""Bringing images to one size: cropped to fill it, or padded to fit inside it."""

from __future__ import annotations

from statistics import median

import numpy as np
from PIL import Image

from sfumato.core.errors import InputError, nearest

FITS = ("crop", "pad")
LEAST, MOST = 8, 1024  # pixels a side
AUTO_MOST = 64  # the largest size that is chosen unasked

Size = tuple[int, int]  # (H, W)


def check_fit(fit: str) -> str:
    """``fit`` itself when it is known; InputError otherwise."""
    if fit not in FITS:
        raise InputError(f"unknown fit {fit!r}: {nearest(str(fit), FITS)}")
    return fit


def check_size(size: int | tuple[int, int]) -> Size:
    """``size`` (one side of a square, or (H, W)) as (H, W), each even and from 8 to 1024; InputError otherwise."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(s, (int, np.integer)) for s in pair):
        raise InputError(f"size {size!r} is neither one whole number nor (height, width): give for example 32")
    for side in pair:
        if side % 2 or not LEAST <= side <= MOST:
            raise InputError(f"size {size} cannot be used: each side must be even and from {LEAST} to {MOST}, e.g. 32")
    return int(pair[0]), int(pair[1])


def suggest_size(sizes: list[tuple[int, int]]) -> Size:
    """(H, W) for images of these (width, height): their own size when they all share a usable one, else a square.

    The square's side is the median of the shorter sides, rounded down to a multiple of 8, from 8 to 64.
    """
    width, height = sizes[0]
    if set(sizes) == {(width, height)} and all(s % 2 == 0 and LEAST <= s <= AUTO_MOST for s in (width, height)):
        return height, width
    side = int(median(min(s) for s in sizes)) // 8 * 8
    side = min(max(side, LEAST), AUTO_MOST)
    return side, side


def fit_image(
    image: Image.Image, size: Size, fit: str, *, enlarge: bool = True, colour: np.ndarray | None = None
) -> np.ndarray:
    """``image`` (mode L, RGB or RGBA) at ``size`` as (H, W, C) uint8.

    "crop" scales until the image covers the size and keeps the centre. "pad" scales until it fits inside (with
    ``enlarge`` False only downwards) and surrounds it with ``colour``, (C,) uint8; by default the image's median border.
    """
    height, width = size
    if image.size == (width, height):
        return _array(image)
    if fit == "crop":
        scale = max(width / image.width, height / image.height)
        # Only the part that is kept is resampled: to scale all of a very long image could need any amount of memory.
        w, h = min(width / scale, image.width), min(height / scale, image.height)
        x, y = (image.width - w) / 2, (image.height - h) / 2
        box = (x, y, x + w, y + h)
        return _array(image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    if colour is None:
        colour = border_colour(_array(image))
    scale = min(width / image.width, height / image.height)
    if enlarge or scale < 1:
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    content = _array(image)
    canvas = np.broadcast_to(colour, (height, width, content.shape[-1])).astype(np.uint8)
    y, x = (height - content.shape[0]) // 2, (width - content.shape[1]) // 2
    canvas[y : y + content.shape[0], x : x + content.shape[1]] = content
    return canvas


def fit_array(images: np.ndarray, size: Size, fit: str, background: np.ndarray | None = None) -> np.ndarray:
    """(N, H, W, C) uint8 at ``size``; "pad" never enlarges: 28x28 in 32x32 keeps its pixels and gets a rim of 2.

    ``background``: (C,) uint8, the rim's colour; by default each image's own median border.
    """
    fitted = (fit_image(as_image(image), size, fit, enlarge=False, colour=background) for image in images)
    return np.stack(list(fitted))  # (N, H, W, C)


def common_background(images: np.ndarray) -> np.ndarray | None:
    """(C,) uint8: the colour that at least half of all corner pixels share, None where there is none."""
    corners = np.asarray(images[:, [0, 0, -1, -1], [0, -1, 0, -1]]).reshape(-1, images.shape[-1])  # (4N, C)
    colours, counts = np.unique(corners, axis=0, return_counts=True)
    return colours[counts.argmax()] if 2 * counts.max() >= counts.sum() else None


def border_colour(image: np.ndarray) -> np.ndarray:
    """(C,) uint8: the median of the outermost pixels of (H, W, C)."""
    rim = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])  # (2W + 2H - 4, C)
    return np.rint(np.median(rim, axis=0)).astype(np.uint8)


def as_image(array: np.ndarray) -> Image.Image:
    """(H, W, C) uint8, C in {1, 3, 4}, as a picture of mode L, RGB or RGBA."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
