"""Does the model draw its training images? The nearest of them to every sample, beside held-out images as baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.metrics.classifier import averaged_down

if TYPE_CHECKING:
    from sfumato.data import ImageSet

SIDE = 64  # pixels: larger images are compared after averaging down, where a copy still shows and noise does not
_CANDIDATES = 8  # found in float32, then measured exactly
_BYTES = 64_000_000  # of training images held at once
_SHOWN = 16  # pairs in the report
_ROUNDING = 1 / 255  # a root mean square below this is the same picture, rounded differently
_RATIO = 1 / 3


def nearest(images: ImageSet, train: ImageSet, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k training images nearest to each image in pixel space.

    Args:
        images: N images of the size and channels of ``train``.
        train: the training images, read a part at a time.
        k: at most 8 and at most ``len(train)``.

    Returns:
        (N, k) float64 distances, nearest first, each the root mean square difference of pixels in [0, 1] (of images
        averaged down to 64 pixels on the longer side, where they are larger), and (N, k) int64 numbers in ``train``.

    Raises:
        InputError: images of another size or number of channels, or an impossible k.
    """
    if (images.size, images.channels) != (train.size, train.channels):
        problem = f"images of {images.name} (H, W, C) = {(*images.size, images.channels)} cannot be compared with"
        raise InputError(f"{problem} those of {train.name}, {(*train.size, train.channels)}: bring them to one size")
    if not 1 <= k <= min(_CANDIDATES, len(train)):
        raise InputError(f"k={k} nearest images: k must be from 1 to {min(_CANDIDATES, len(train))}")
    height, width = train.size
    step = max(_CANDIDATES, _BYTES // (4 * height * width * train.channels))
    spans = _spans(len(images), min(1024, step // _CANDIDATES))
    parts = [_nearest(_flat(images, rows), train, k, step) for rows in spans]
    distances, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return distances, numbers


def _nearest(queries: Tensor, train: ImageSet, k: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """``nearest`` for flat queries (B, D), reading ``step`` training images at a time."""
    count = min(_CANDIDATES, len(train))
    best = torch.zeros(len(queries), 0)
    numbers = torch.zeros(len(queries), 0, dtype=torch.int64)
    for rows in _spans(len(train), step):
        part = _flat(train, rows)  # (P, D)
        scores = part.square().sum(1) - 2 * queries @ part.T  # (B, P): squared distance less |query|^2
        here = scores.topk(min(count, len(part)), dim=1, largest=False)
        best = torch.cat([best, here.values], dim=1)
        numbers = torch.cat([numbers, here.indices + rows.start], dim=1)
        kept = best.topk(min(count, best.shape[1]), dim=1, largest=False).indices
        best, numbers = best.gather(1, kept), numbers.gather(1, kept)
    # float32 rounds a difference of large numbers: measure the few candidates directly. Equal distances go by number,
    # so that the answer does not depend on how the work was cut up.
    numbers = numbers.sort(dim=1).values  # (B, K)
    candidates = _flat(train, numbers.flatten().numpy()).view(len(queries), count, -1)  # (B, K, D)
    exact = (candidates - queries[:, None]).double().square().mean(2).sqrt().numpy()  # (B, K)
    first = np.argsort(exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, first, 1), np.take_along_axis(numbers.numpy(), first, 1)


def memorisation(samples: ImageSet, test: ImageSet, train: ImageSet) -> dict[str, Any]:
    """How near the samples come to training images, compared with test images, which nobody can have copied.

    ``near_copies`` is the share of samples whose nearest training image is less than a third as far as the second
    nearest (Yoon et al. 2023), or equal to it but for rounding. ``closer`` is the share of samples nearer to the
    training set than all but 1% of test images: 0.01 is no sign of copying; plain or blurred samples raise it too, so
    look at the pairs. Distances are root mean square differences of pixels in [0, 1].
    """
    found, numbers = nearest(samples, train, min(2, len(train)))
    held_out, _ = nearest(test, train, min(2, len(train)))
    threshold = float(np.quantile(held_out[:, 0], 0.01))
    closest = np.argsort(found[:, 0], kind="stable")[:_SHOWN]
    result: dict[str, Any] = {"samples": len(samples), "test": len(test)}
    for end, distances in (("", found), ("_test", held_out)):
        result[f"near_copies{end}"] = _copies(distances)
        result[f"closer{end}"] = float((distances[:, 0] < threshold).mean())
        result[f"distance{end}"] = float(np.median(distances[:, 0]))
    pairs = [{"sample": int(i), "train": int(numbers[i, 0]), "distance": float(found[i, 0])} for i in closest]
    return result | {"closest": pairs}


def _copies(distances: np.ndarray) -> float:
    near = distances[:, 0] <= _ROUNDING
    if distances.shape[1] > 1:
        near |= distances[:, 0] < _RATIO * distances[:, 1]
    return float(near.mean())


def _flat(images: ImageSet, rows: slice | np.ndarray) -> Tensor:
    pixels = images.pixels(rows) - 0.5  # (B, C, H, W), centred: smaller rounding errors
    return averaged_down(pixels, SIDE).flatten(1)  # (B, D)


def _spans(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
