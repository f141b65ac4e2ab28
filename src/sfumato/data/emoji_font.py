"""Emoji drawn from the system's colour font, with their names."""

from __future__ import annotations

import importlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL import __version__ as pillow_version

from sfumato.core.errors import InputError
from sfumato.data.captions import variants
from sfumato.data.decode import hash_split, hashed
from sfumato.data.fit import fit_image
from sfumato.data.imageset import ImageSet

FONT = "NotoColorEmoji.ttf"
SIDE = 64  # pixels of the images that are made
_STRIKE = 109  # pixels: the only size of the font's bitmaps
_BITMAP = (136, 128)  # (width, height); the picture is 128x128, with an empty rim of 4 left and right
_KEYCAP, _LAST_TAG = "\u20e3", "\U000e007f"  # the ends of a keycap and of a region's flag
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)  # the letters that flags are spelt with
_SYMBOLS = ((0x2190, 0x2C00), (0x3030, 0x32A0), (0x1F000, 0x1FB00))  # blocks that emoji of one code point are in


def emoji_font() -> Path:
    """The file that $SFUMATO_EMOJI_FONT names, else NotoColorEmoji.ttf in the system's font folders; InputError."""
    if chosen := os.environ.get("SFUMATO_EMOJI_FONT"):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise InputError(f"SFUMATO_EMOJI_FONT: {chosen!r} does not exist; name the file {FONT}")
        return path
    for folder in _font_folders():
        if found := next(folder.rglob(FONT), None):
            return found
    raise InputError(
        f"data 'emoji' needs the font {FONT}, which no font folder of this system holds: install the Debian package "
        "fonts-noto-color-emoji, name the file in SFUMATO_EMOJI_FONT, or give a folder of captioned images instead"
    )


def emoji_versions() -> list[str]:
    """What decides, beside the font, which emoji there are, what they are called and how they are drawn."""
    package = _package()
    return [unicodedata.unidata_version if package is None else f"emoji {package.__version__}", pillow_version]


def draw_emoji(path: Path, split: str) -> ImageSet:
    """The emoji of the font at ``path`` as 64x64 colour images on white, none in several skin tones, with captions.

    Names: those of the package ``emoji`` where it is installed, else of Unicode's single code points (flags, families
    and other sequences are then missing). One in twenty is for test, the same ones as in a folder of files that are
    named by their code points (``images/1f600.png``). InputError when the font cannot be used.
    """
    try:
        font = ImageFont.truetype(str(path), _STRIKE)
    except OSError as error:
        raise InputError(f"font {str(path)!r} cannot be used ({error}): give {FONT} with bitmaps of 136x128") from error
    rows = {_file_name(emoji): (emoji, row) for emoji, row in _named()}
    chosen = sorted((n for n in rows if hash_split(n, captioned=True) == split), key=lambda n: hashed("order", n))
    images: list[np.ndarray] = []
    captions: list[tuple[str, ...]] = []
    for name in chosen:
        emoji, row = rows[name]
        if (image := _drawn(font, emoji)) is not None:
            images.append(image)
            captions.append(variants(row["text"], row, name))
    if not images or all((image[..., :1] == image).all() for image in images):
        raise InputError(f"font {str(path)!r} has no emoji in colour: give {FONT} with bitmaps of 136x128")
    return ImageSet(np.stack(images), None, (), "emoji", split, tuple(captions))  # (N, 64, 64, 3)


def _font_folders() -> list[Path]:
    """Those that are there; the user's own last."""
    home = Path.home()
    if sys.platform == "darwin":
        folders = [Path("/Library/Fonts"), home / "Library" / "Fonts"]
    elif os.name == "nt":
        own = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts"
        folders = [Path(os.environ.get("WINDIR", "C:\\Windows")) / "Fonts", own]
    else:
        folders = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts")]
        folders += [home / ".local" / "share" / "fonts", home / ".fonts"]
    return [folder for folder in folders if folder.is_dir()]


def _package() -> Any | None:
    try:
        return importlib.import_module("emoji")
    except ImportError:
        return None


def _named() -> Iterator[tuple[str, dict[str, Any]]]:
    """(emoji, its row as in a metadata.jsonl) of all there are; those in a skin tone are left out."""
    package = _package()
    if package is None:
        for emoji in (chr(code) for first, end in _SYMBOLS for code in range(first, end)):
            if ord(emoji) not in _SKIN_TONES and ord(emoji) not in _REGIONAL and unicodedata.name(emoji, ""):
                yield emoji, {"text": unicodedata.name(emoji).lower()}
        return
    for emoji, entry in package.EMOJI_DATA.items():
        if entry["status"] == package.STATUS["fully_qualified"] and not any(ord(c) in _SKIN_TONES for c in emoji):
            short_names = [alias.strip(":") for alias in entry.get("alias", ())]
            yield emoji, {"text": _name(emoji, entry["en"].strip(":").replace("_", " ")), "short_names": short_names}


def _name(emoji: str, name: str) -> str:
    """Unicode's name; the package has "France" for "flag: France" and "keycap 5" for "keycap: 5"."""
    if ord(emoji[0]) in _REGIONAL or emoji[-1] == _LAST_TAG:
        return f"flag: {name}"
    return name.replace("keycap ", "keycap: ", 1) if emoji[-1] == _KEYCAP else name


def _file_name(emoji: str) -> str:
    return f"images/{'-'.join(f'{ord(character):04x}' for character in emoji)}.png"


def _drawn(font: ImageFont.FreeTypeFont, emoji: str) -> np.ndarray | None:
    """(64, 64, 3) uint8; None where the font has no picture of it, or only pictures of its parts."""
    left, top, right, bottom = font.getbbox(emoji)
    width, height = round(right - left), round(bottom - top)
    if not 0 < width <= _BITMAP[0] or not 0 < height <= _BITMAP[1]:
        return None
    side = min(_BITMAP)
    square = Image.new("RGB", (side, side), "white")
    corner = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(square).text(corner, emoji, font=font, embedded_color=True, fill="black")
    return fit_image(square, (SIDE, SIDE), "crop")
