"""From what the user names (a built-in set, a folder, an .npz, the Hub) to an ImageSet."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.core.errors import InputError, nearest
from sfumato.data.builtin import SOURCES
from sfumato.data.cache import Append, cached
from sfumato.data.decode import Decoded, Notify
from sfumato.data.fit import Size, check_fit, check_size, common_background, fit_array
from sfumato.data.folder import decode_folder
from sfumato.data.hub import decode_hub
from sfumato.data.imageset import ImageSet
from sfumato.data.npz import load_npz

SPLITS = ("train", "test")
DataSource = str | Path | ImageSet

_SMALL = 4_000_000  # bytes: less is computed anew each time, not cached
_CHUNK = 256


def load(
    source: DataSource,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    progress: Notify | None = None,
) -> ImageSet:
    """The images of ``source``, decoded once: later calls map the decoded pixels from the cache.

    ``source``: a built-in name (``SOURCES``), a folder of images (class sub-folders; or captioned by ``metadata.jsonl``,
    ``metadata.csv`` or side-car ``.txt`` files; or neither), an ``.npz`` file, ``hf:owner/name``, or an ImageSet, which
    is returned (brought to ``size``, its split unchanged).
    ``split``: "train" or "test". Sets that come without a test split get a fixed one of about a tenth (captioned sets:
    a twentieth) when there are 50 images or more; of fewer, all serve as both.
    ``size``: a side or (H, W), each even and from 8 to 1024. Default: the own size of arrays, and of files that share
    one up to 64; else the median shorter side rounded down to a multiple of 8, from 8 to 64.
    ``fit``: "crop" covers the size and keeps the centre, "pad" fits inside and fills with the background colour; sets
    that are arrays already are never enlarged by "pad". ``progress``: called with (images done, images in all).

    Raises InputError for an unknown source, a folder that is missing, empty or without a readable image, a damaged
    file, captions that cannot be read, an unknown split or fit, and an unusable size. Single unreadable images, and
    images without a caption in a captioned set, are left out with one warning.
    """
    check_fit(fit)
    wanted = None if size is None else check_size(size)
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: {nearest(str(split), SPLITS)}")
    if isinstance(source, ImageSet):
        return _resized(source, wanted, fit)
    if (decoded := decode(source, wanted, fit, progress)) is not None:
        return decoded.to_set(split)
    if isinstance(source, str) and source in SOURCES:
        return _resized(SOURCES[source](split), wanted, fit)
    return _resized(load_npz(existing(source), split=split), wanted, fit)


def decode(source: DataSource, size: Size | None, fit: str, progress: Notify | None = None) -> Decoded | None:
    """Both splits of a ``source`` that is made of image files; None where it is arrays already."""
    if isinstance(source, ImageSet) or source in SOURCES:
        return None
    if str(source).startswith("hf:"):
        return decode_hub(str(source), size, fit, progress)
    path = existing(source)
    return decode_folder(path, size, fit, progress) if path.is_dir() else None


def existing(source: str | Path) -> Path:
    """``source`` as a folder or .npz file that is there; otherwise InputError with the nearest built-in name."""
    text = str(source)
    if not text.strip() or "\0" in text:
        raise InputError(f"data source {text!r} is no name and no path: give a built-in name, a folder or an .npz file")
    path = Path(text).expanduser()
    try:
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".npz"):
            return path
        there = path.exists()
    except OSError as error:  # a name too long, or a folder on the way that may not be entered
        raise InputError(f"data {text!r} cannot be opened ({error.strerror}): give another path") from error
    if there:
        raise InputError(f"data {text!r} is neither a folder nor an .npz file: give a folder (unpack archives)")
    if isinstance(source, Path) or path.name != text or path.suffix:  # looks like a path
        raise InputError(f"data {text!r} does not exist: check the path, or use a built-in set ({', '.join(SOURCES)})")
    raise InputError(f"unknown data source {text!r}, and no folder of that name is here: {nearest(text, SOURCES)}")


def _resized(data: ImageSet, size: Size | None, fit: str) -> ImageSet:
    if size is None or size == data.size:
        return data
    background = common_background(data.images)

    def build(append: Append) -> dict[str, Any]:
        for start in range(0, len(data), _CHUNK):
            append(fit_array(data.images[start : start + _CHUNK], size, fit, background))
        return {}

    if max(len(data) * size[0] * size[1] * data.channels, data.images.nbytes) <= _SMALL:
        parts: list[np.ndarray] = []
        build(parts.append)
        return replace(data, images=np.concatenate(parts))
    pixels = data.fingerprint()
    name = hashlib.sha256(data.name.encode()).hexdigest()[:16]
    images, _ = cached(["resized", name, data.split, len(data), size, fit], pixels, build)
    return replace(data, images=images)
