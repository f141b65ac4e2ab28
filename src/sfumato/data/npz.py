"""Arrays in one .npz file."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sfumato.core.errors import InputError
from sfumato.data.cache import cached_set, file_identity
from sfumato.data.captions import captioned
from sfumato.data.decode import SPLIT_FROM, hash_split, skipped
from sfumato.data.imageset import ImageSet


def load_npz(path: Path, *, split: str = "train") -> ImageSet:
    """``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``images``, ``labels``; and ``classes``, their names.

    Only the images are required. Captions, in place of labels: ``captions_train``, ``captions_test``, or ``captions``.

    Images: (N, H, W) or (N, H, W, C), C in {1, 3, 4}, uint8 or floats in [0, 1]. Labels: (N,) whole numbers from 0.
    Captions: (N,) texts, or (N, K) with up to K texts an image, the others empty; images without one are left out.
    Without ``x_test`` a fixed tenth (captioned: a twentieth) is the test split when there are 50 images or more; of
    fewer, all serve as both.
    Raises InputError for anything else, and for a damaged file.
    """
    return cached_set(lambda: _read(path, split), ["npz", str(path.resolve()), split], file_identity(path))


def _read(path: Path, split: str) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            own_split = f"x_{split}" in keys
            part = split if own_split else "train"
            x_key, y_key, text_key = f"x_{part}", f"y_{part}", f"captions_{part}"
            if x_key not in keys:
                x_key, y_key, text_key = "images", "labels", "captions"
            if x_key not in keys:
                needs = "it needs 'images' (and 'labels'), or 'x_train', 'y_train', 'x_test', 'y_test'"
                raise InputError(f"{str(path)!r} holds {', '.join(sorted(keys)) or 'nothing'}: {needs}")
            x = file[x_key]
            y = file[y_key] if y_key in keys else None
            names = file["classes"] if "classes" in keys else None
            texts = file[text_key] if text_key in keys else None
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{str(path)!r} is larger than the memory: give fewer or smaller images") from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if "pickle" in str(error):
            cure = "save plain number and string arrays"
            raise InputError(f"{str(path)!r} holds pickled objects, which are never loaded: {cure}") from error
        raise InputError(f"{str(path)!r} cannot be read ({error}): it is damaged or no .npz; save it anew") from error
    images = _images(path, x_key, x)
    drawn = not own_split and len(images) >= SPLIT_FROM
    if texts is not None:
        captions = _captions(path, text_key, texts, len(images))
        if y is not None:
            warnings.warn(f"{str(path)!r} holds captions: {y_key!r} is not used", stacklevel=2)
        rows = [i for i in captions if not drawn or hash_split(str(i), captioned=True) == split]
        rows = rows or list(captions)  # all are in the other split: they serve as both
        return ImageSet(images[rows], None, (), path.stem, split, tuple(captions[i] for i in rows))
    labels = None if y is None else _labels(path, y_key, y, len(images))
    classes = () if labels is None else _classes(path, names, labels)
    if drawn:
        chosen = np.array([hash_split(str(i)) == split for i in range(len(images))])
        images, labels = images[chosen], None if labels is None else labels[chosen]
    return ImageSet(images, labels, classes, path.stem, split)


def _images(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    """``x`` as (N, H, W, C) uint8."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4):
        turn = "; its channels come first: transpose(0, 2, 3, 1)" if x.ndim == 4 and x.shape[1] in (1, 3, 4) else ""
        raise InputError(f"{str(path)!r}: {key!r} must be (N, H, W) or (N, H, W, 1|3|4), not {x.shape}{turn}")
    if 0 in x.shape:
        raise InputError(f"{str(path)!r}: {key!r} holds no pixels {x.shape}; give at least one image")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise InputError(f"{str(path)!r}: {key!r} is {x.dtype}; give uint8, or floats from 0 to 1")
    low, high = float(x.min()), float(x.max())  # NaN if any value is
    if not (low >= 0 and high <= 1):
        raise InputError(f"{str(path)!r}: {key!r} runs from {low:g} to {high:g}; scale floats to 0 to 1, or give uint8")
    return np.rint(x * 255).astype(np.uint8)


def _captions(path: Path, key: str, texts: np.ndarray, count: int) -> dict[int, tuple[str, ...]]:
    """The texts of each image that has some, by its number; a warning names those left out."""
    if texts.ndim not in (1, 2) or len(texts) != count or texts.dtype.kind not in "US":
        problem = f"{key!r} must be {count} texts, one an image, not {texts.dtype} {texts.shape}"
        raise InputError(f"{str(path)!r}: {problem}; save them as an array of strings")
    rows = texts.reshape(count, -1).tolist()
    read = [[t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in row] for row in rows]
    captions, without = captioned({str(i): row for i, row in enumerate(read)}, str(path))
    if without:
        warnings.warn(f"{str(path)!r}: {skipped(without, count)}", stacklevel=2)
    return {int(i): texts for i, texts in captions.items()}


def _labels(path: Path, key: str, y: np.ndarray, count: int) -> np.ndarray:
    if y.shape == (count, 1):
        y = y[:, 0]
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise InputError(f"{str(path)!r}: {key!r} must be {count} whole numbers, one an image, not {y.dtype} {y.shape}")
    if y.min() < 0 or y.max() > 65_535:
        raise InputError(f"{str(path)!r}: {key!r} runs from {y.min()} to {y.max()}; count the classes from 0")
    return y.astype(np.int64)


def _classes(path: Path, names: np.ndarray | None, labels: np.ndarray) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    if names is None:
        return tuple(str(i) for i in range(count))
    if names.ndim != 1 or names.dtype.kind not in "US" or len(names) < count:
        wanted = f"{count} names or more, for the labels reach {count - 1}"
        raise InputError(f"{str(path)!r}: 'classes' must be {wanted}, not {names.dtype} {names.shape}")
    classes = tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names.tolist())
    if len(set(classes)) < len(classes):
        raise InputError(f"{str(path)!r}: 'classes' names a class twice; give each its own name")
    return classes
