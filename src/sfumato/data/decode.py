"""Image files of every kind to uint8 arrays of one size, and a word for each that cannot be read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.core.errors import InputError
from sfumato.data.cache import Append, cached
from sfumato.data.fit import Size, fit_image, suggest_size
from sfumato.data.imageset import ImageSet

MOST_PIXELS = 64_000_000  # one image of more is taken for a decompression bomb
# Named, because Pillow would also try formats that start other programs (EPS: Ghostscript).
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "QOI")
_ENDINGS = "png apng jpg jpeg jpe jfif webp bmp dib gif tif tiff ppm pgm pbm pnm tga ico jp2 avif qoi"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # EXIF tag; from 5 on the image is stored lying on its side
_SEE_THROUGH = "sfumato:transparent"  # in an opened image's info: parts of it were transparent
_CHUNK = 64  # images decoded between two writes
SPLIT_FROM = 50  # readable images: with fewer, a test split would say nothing and the training split would miss them

Notify = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class Entry:
    """One image to be: its name in messages, a path or a function that gives its bytes, its label, split and captions."""

    name: str
    source: Path | Callable[[], bytes]
    label: int | None = None
    split: str | None = None  # "train" | "test" | None: by the hash of its name
    captions: tuple[str, ...] | None = None  # all entries of a source have some, or none has


@dataclass(frozen=True)
class Listing:
    """What a source holds before anything is decoded. ``slot`` and ``identity`` are those of :func:`cached`."""

    source: str  # as the user named it, for messages
    slot: list[Any]
    identity: Any
    entries: Sequence[Entry]
    classes: Sequence[str]


@dataclass(frozen=True)
class Decoded:
    """A whole source decoded: all images, those for training first, and the notes of ``decode_all`` about them."""

    source: str  # as the user named it, for messages
    images: np.ndarray  # (N, H, W, C) uint8
    notes: dict[str, Any]
    labels: np.ndarray  # (N,) int64, -1 where an image has none
    classes: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...] | None = None  # N of them
    uncaptioned: list[tuple[str, str]] = field(default_factory=list)  # (name, why): left out before decoding
    remarks: list[str] = field(default_factory=list)

    def rows(self, split: str) -> slice:
        """Which of the images are the split's."""
        if self.notes["shared"]:
            return slice(None)
        return slice(0, self.notes["train"]) if split == "train" else slice(self.notes["train"], None)

    @property
    def name(self) -> str:
        """Of the folder, or ``hf:owner/name``."""
        return self.source if self.source.startswith("hf:") else Path(self.source).resolve().name

    def to_set(self, split: str) -> ImageSet:
        """The split as an ImageSet; warns of what was left out. InputError when the split is empty."""
        where, name, unreadable = self.source, self.name.removeprefix("hf:"), self.notes["unreadable"]
        if unreadable:
            warnings.warn(f"{where}: {skipped(unreadable, len(unreadable) + len(self.images))}", stacklevel=3)
        if self.uncaptioned:
            total = len(self.uncaptioned) + len(unreadable) + len(self.images)
            warnings.warn(f"{where}: {skipped(self.uncaptioned, total)}", stacklevel=3)
        for remark in self.remarks:
            warnings.warn(f"{where}: {remark}", stacklevel=3)
        images, labels = self.images[self.rows(split)], self.labels[self.rows(split)]
        if not len(images):
            raise InputError(f"data {where!r} has no readable image in its {split} part: add some, or remove that part")
        if self.captions is not None:
            return ImageSet(images, None, (), name, split, self.captions[self.rows(split)])
        if not self.classes or (labels < 0).any():
            return ImageSet(images, None, (), name, split)
        return ImageSet(images, labels, self.classes, name, split)


class Unreadable(Exception):
    """An image that cannot be used; the text says why."""


@dataclass(frozen=True)
class _Pixels:
    array: np.ndarray  # (H, W, 1 or 3) uint8
    grey: bool
    digest: bytes  # of the pixels before they were brought to size


def decode_cached(listing: Listing, size: Size | None, fit: str, progress: Notify | None = None) -> Decoded:
    """The entries decoded, from the cache where nothing changed; InputError naming the source when none can be read."""
    entries = listing.entries

    def build(append: Append) -> dict[str, Any]:
        notes = decode_all(entries, size, fit, append, progress)
        if not notes.get("labels"):
            first = ": ".join(notes["unreadable"][0])
            problem = f"none of its {len(entries)} images can be read (the first, {first})"
            raise InputError(f"data {listing.source!r}: {problem}; give images that open")
        return notes

    images, notes = cached([*listing.slot, size, fit], listing.identity, build)
    if notes["grey"]:
        images = images[..., :1]
    labels = np.array([-1 if label is None else label for label in notes["labels"]], np.int64)
    captions = {entry.name: entry.captions for entry in entries if entry.captions is not None}
    texts = tuple(captions[name] for name in notes["names"]) if captions else None
    return Decoded(listing.source, images, notes, labels, tuple(listing.classes), texts)


def skipped(unreadable: Sequence[Sequence[str]], total: int) -> str:
    """One sentence about the images left out: how many, and the first five with the reason."""
    first = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:5])
    more = f"; and {len(unreadable) - 5} more (`sfumato data check` lists all)" if len(unreadable) > 5 else ""
    return f"skipped {len(unreadable)} of {total} images: {first}{more}"


def decode_all(
    entries: Sequence[Entry], size: Size | None, fit: str, append: Append, progress: Notify | None = None
) -> dict[str, Any]:
    """Decode ``entries`` to ``append``, training images first; what is unreadable is left out and listed.

    Returns notes: size (H, W) used, the one suggested, train (how many images are for training), shared (one split serves
    as both), grey (all images are grey: the first channel says all), names, labels, sizes [(width, height)], modes,
    unreadable [(name, reason)], duplicates. Each split is in an order drawn by name: any prefix is mixed over the classes.
    """
    unreadable: list[tuple[str, str]] = []
    headers: list[tuple[Entry, tuple[int, int], str]] = []
    # Pillow warns on large images and odd metadata: what matters of that is in the list of the unreadable.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for entry, header in zip(entries, pool.map(_or_reason(_header), entries), strict=True):
            if isinstance(header, str):
                unreadable.append((entry.name, header))
            else:
                headers.append((entry, *header))
        if not headers:
            return {"unreadable": unreadable}
        suggested = suggest_size([s for _, s, _ in headers])
        target = size or suggested
        work = _or_reason(lambda entry: _decode(entry, target, fit))
        headers.sort(key=lambda header: _order(header[0]))
        channels = 1 if all(mode in _GREY_MODES for _, _, mode in headers) else 3
        names: list[str] = []
        labels: list[int | None] = []
        sizes: list[tuple[int, int]] = []
        modes: Counter[str] = Counter()
        seen: Counter[bytes] = Counter()
        train, grey, fixed = 0, True, False
        for start in range(0, len(headers), _CHUNK):
            chunk = headers[start : start + _CHUNK]
            arrays: list[np.ndarray] = []
            for (entry, original, mode), got in zip(chunk, pool.map(work, [h[0] for h in chunk]), strict=True):
                if isinstance(got, str):
                    unreadable.append((entry.name, got))
                    continue
                arrays.append(_with_channels(got.array, channels))
                names.append(entry.name)
                labels.append(entry.label)
                sizes.append(original)
                modes[mode] += 1
                seen[got.digest] += 1
                train += _split(entry) == "train"
                grey, fixed = grey and got.grey, fixed or entry.split is not None
            if arrays:
                append(np.stack(arrays))  # (n, H, W, C)
            if progress:
                progress(start + len(chunk), len(headers))
    count = len(labels)
    shared = not fixed and (count < SPLIT_FROM or train in (0, count))
    notes = {"size": target, "suggested": suggested, "train": train, "shared": shared, "grey": grey}
    notes |= {"names": names, "labels": labels, "sizes": sizes, "modes": dict(modes)}
    return {**notes, "unreadable": sorted(unreadable), "duplicates": count - len(seen)}


def hash_split(name: str, captioned: bool = False) -> str:
    """ "test" for about one name in ten (captioned: in twenty), "train" for the rest.

    A name's split never changes, whatever else is added.
    """
    return "test" if hashed("split", name) % (20 if captioned else 10) == 0 else "train"


def open_image(source: Path | bytes, most: Size | None = None, alpha: bool = False) -> Image.Image:
    """The first frame as it is meant to be seen, in mode L or RGB: upright, transparency on white, 16 bits scaled to 8.

    ``most``: (H, W) that is enough; a larger JPEG is then decoded at a lower resolution, not below twice that.
    ``alpha``: in mode RGBA instead, with its transparency. Raises Unreadable.
    """
    with _opened(source) as image:
        if most is not None:
            image.draft(None, (2 * max(most), 2 * max(most)))
        image.load()
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # damaged EXIF data: the picture itself may be sound
            turned = image
        flat = _to_grey_or_rgb(turned, image.format)
        if alpha:  # an image without transparency is opaque
            return (turned if _SEE_THROUGH in flat.info else flat).convert("RGBA")
        return flat


def _to_grey_or_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image), sixteen=mode.startswith("I;16") or kind == "PNG"))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        base = "L" if mode in ("1", "L", "LA", "La") else "RGB"
        image = image.convert("LA" if base == "L" and mode != "1" else "RGBA")
        alpha = image.getchannel("A")
        white = Image.new(base, image.size, "white")
        white.paste(image.convert(base) if base == "RGB" else image.getchannel(0), mask=alpha)
        white.info[_SEE_THROUGH] = alpha.getextrema() != (255, 255)
        return white
    return image.convert("L" if mode in ("1", "L") else "RGB")


def _to_8_bits(values: np.ndarray, sixteen: bool) -> np.ndarray:
    """Grey values of 16 or 32 bits or floats as uint8; the largest says how far they run where the file does not."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = values.max()
    white = 65535 if sixteen or 255 < top <= 65535 else top if top > 65535 else 255 if top > 1 else 1
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def _header(entry: Entry) -> tuple[tuple[int, int], str]:
    """((width, height), mode) without decoding the pixels."""
    with _opened(_bytes_or_path(entry)) as image:
        width, height = image.size
        # Not asked of a PNG: it would decode all pixels to look for a tag behind them.
        if image.format in ("JPEG", "MPO", "WEBP") and image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width  # stored lying on its side
        return (width, height), image.mode


def _decode(entry: Entry, size: Size, fit: str) -> _Pixels:
    image = open_image(_bytes_or_path(entry), most=size)
    digest = hashlib.blake2b(repr((image.size, image.mode)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    white = np.full(len(image.getbands()), 255, np.uint8) if image.info.get(_SEE_THROUGH) else None
    array = fit_image(image, size, fit, colour=white)
    grey = array.shape[-1] == 1 or bool((array[..., :1] == array[..., 1:]).all())
    return _Pixels(array, grey, digest.digest())


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """A Pillow image with a sound header and a sane size; every failure, inside the block too, is Unreadable."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Unreadable(f"too large ({width}x{height} is over {MOST_PIXELS // 1_000_000} megapixels)")
            if min(width, height) < 2:
                raise Unreadable(f"too small ({width}x{height})")
            yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large (over {MOST_PIXELS // 1_000_000} megapixels)") from error
    except UnidentifiedImageError as error:
        raise Unreadable("not an image, or damaged at its start") from error
    except PermissionError as error:
        raise Unreadable("permission denied") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        short = "truncated" in str(error).lower()
        raise Unreadable("truncated" if short else f"damaged ({type(error).__name__}: {error})"[:120]) from error


def _formats() -> list[str]:
    Image.init()
    return [kind for kind in _FORMATS if kind in Image.OPEN]


def _bytes_or_path(entry: Entry) -> Path | bytes:
    if not isinstance(entry.source, Path):
        try:
            data = entry.source()
        except Exception as error:
            raise Unreadable(f"cannot be fetched ({error})"[:120]) from error
        if not data:
            raise Unreadable("empty (0 bytes)")
        return data
    try:
        status = entry.source.stat()
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("not an ordinary file")
    if status.st_size == 0:
        raise Unreadable("empty file (0 bytes)")
    return entry.source


def _or_reason(function: Callable[[Entry], Any]) -> Callable[[Entry], Any]:
    def guarded(entry: Entry) -> Any:
        try:
            return function(entry)
        except Unreadable as error:
            return str(error)

    return guarded


def _with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    if array.shape[-1] == channels:
        return array
    if channels == 3:
        return array.repeat(3, axis=-1)
    return np.asarray(Image.fromarray(array).convert("L"))[..., None]


def _split(entry: Entry) -> str:
    return entry.split or hash_split(entry.name, captioned=entry.captions is not None)


def _order(entry: Entry) -> tuple[bool, int, str]:
    return _split(entry) == "test", hashed("order", entry.name), entry.name


def hashed(purpose: str, name: str) -> int:
    """A number that looks random, from 0 to 2^64 - 1, and is the same for this purpose and name on any machine."""
    data = f"{purpose}:{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
