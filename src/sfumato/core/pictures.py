"""Pictures for people: a batch of images as one grid, and saving it whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write

LINE = 12  # pixels, of small text
TILE = 96  # pixels: small images are enlarged by the largest whole factor that stays within this

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def to_bytes(images: Tensor | np.ndarray) -> np.ndarray:
    """(N, C, H, W) floats in [0, 1] as (N, H, W, C) uint8, rounded, clipped, NaN black; uint8 (N, H, W, C) arrays pass.

    C is 1, 3 or 4. Raises InputError for any other shape or type.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4:
        pixels = images.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(0, 1)
        array = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)
    elif isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4:
        array = images
    else:
        given = f"{type(images).__name__} of {getattr(images, 'dtype', '?')} {tuple(getattr(images, 'shape', ()))}"
        wanted = "a (N, C, H, W) float tensor in [0, 1] or a (N, H, W, C) uint8 array"
        raise InputError(f"images must be {wanted}, not {given}")
    if array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(f"images need 1, 3 or 4 channels and at least one pixel, not (N, H, W, C) = {array.shape}")
    return array


def on_white(array: np.ndarray) -> np.ndarray:
    """(..., 4) uint8 RGBA over white as (..., 3) uint8; fewer channels pass unchanged."""
    if array.shape[-1] != 4:
        return array
    alpha = array[..., 3:].astype(np.float32) / 255
    return np.rint(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def grid(
    images: Tensor | np.ndarray, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """One picture of all images, row by row on white, ``gap`` pixels apart.

    ``images``: (N, C, H, W) floats in [0, 1] or (N, H, W, C) uint8; RGBA is laid on white.
    ``columns``: images a row (default: about square). ``scale``: whole factor of enlargement, nearest neighbour
    (default: small images grow to at most 96 pixels, so that they can be seen).
    """
    array = on_white(to_bytes(images))  # (N, H, W, 1 or 3)
    count, height, width, channels = array.shape
    for name, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    scale = scale or max(1, TILE // max(height, width))
    rows = math.ceil(count / columns)
    height, width = height * scale, width * scale
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i in range(count):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = array[i].repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def save(image: Image.Image, path: str | Path) -> None:
    """Write ``image`` as PNG, JPEG or WebP by the suffix of ``path``, whole or not at all.

    JPEG and WebP are written at quality 95; transparency becomes white in a JPEG. Raises InputError for another suffix,
    a missing folder, a path that is a folder, missing permission, a full disk, or a picture too large for the format.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None and not path.is_dir():  # a folder is refused below, with its own sentence
        known = ", ".join(_FORMATS)
        raise InputError(f"cannot write {str(path)!r}: its suffix {path.suffix!r} is no picture's; use one of {known}")
    if kind == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        image = Image.fromarray(on_white(np.asarray(image.convert("RGBA"))))
    encoded = io.BytesIO()  # Pillow's own writing to a full disk fails without saying why
    if kind is not None:
        try:
            image.save(encoded, format=kind, quality=95)
        except (OSError, ValueError) as error:
            problem = f"{kind} cannot hold this picture of {image.width}x{image.height} ({error})"
            cure = "save it as .png, or with fewer images"
            raise InputError(f"cannot write {str(path)!r}: {problem}; {cure}") from error
    atomic_write(path, encoded.getvalue())


def _wrapped(text: str, lines: int) -> list[str]:
    """The text in at most so many lines of 24 letters; what is left out shows as "~"."""
    found = wrap(text, 24, max_lines=lines, placeholder=" ~") or [""]
    return [text[:23] + "~"] if found == ["~"] else found  # a single word that is too long


def named_rows(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    """The class names or prompts to the left of the rows, in as many lines as a row has room for."""
    font = ImageFont.load_default()
    height = picture.height / len(names)
    plain = [name.encode("ascii", "replace").decode() for name in names]  # Pillow's own font knows little more
    lines = [_wrapped(name, max(1, int(height) // LINE)) for name in plain]
    margin = int(max(font.getlength(line) for each in lines for line in each)) + 12
    named = Image.new(picture.mode, (picture.width + margin, picture.height), "white")
    named.paste(picture, (margin, 0))
    for row, each in enumerate(lines):
        top = round((row + 0.5) * height - LINE * len(each) / 2)
        ImageDraw.Draw(named).multiline_text((6, top), "\n".join(each), fill="black", font=font, spacing=1)
    return named
