"""ImageSet: what every data source gives and every consumer takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sfumato.core.errors import InputError

_CHUNK = 1024  # images read at once where a whole set is gone through: a memory map may be larger than the memory


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with optional labels or captions, usually backed by a memory map.

    ``images``: (N, H, W, C) uint8, C in {1, 3, 4}. ``labels``: (N,) int64 indices into ``classes``, or None.
    ``classes``: label names, () when unlabelled. ``name``: e.g. "fashion-mnist". ``split``: "train" or "test".
    ``captions``: for each image its texts, or None. The first is the caption itself, what a person would type; training
    draws from all of them, and one that is there several times is drawn as often.
    Raises InputError when these do not agree.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    name: str
    split: str
    captions: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        shape, kind = self.images.shape, self.images.dtype
        if len(shape) != 4 or shape[-1] not in (1, 3, 4) or 0 in shape or kind != np.uint8:
            raise InputError(f"data {self.name!r}: images must be (N, H, W, 1|3|4) uint8, not {shape} {kind}")
        if self.captions is not None:
            self._check_captions(self.captions)
        if self.labels is None:
            return
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            given = f"{self.labels.shape} {self.labels.dtype}"
            raise InputError(f"data {self.name!r}: labels must be ({len(self.images)},) int64, not {given}")
        low, high, known = self.labels.min(), self.labels.max(), len(self.classes)
        if low < 0 or high >= known:
            raise InputError(f"data {self.name!r}: labels run from {low} to {high}, but there are {known} class names")

    def _check_captions(self, captions: tuple[tuple[str, ...], ...]) -> None:
        if len(captions) != len(self.images):
            raise InputError(f"data {self.name!r}: {len(captions)} captions for {len(self.images)} images: one each")
        for i, texts in enumerate(captions):
            if not (isinstance(texts, tuple) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
                wanted = f"the captions of image {i} must be a tuple of one non-empty text or more"
                raise InputError(f"data {self.name!r}: {wanted}, not {texts!r:.80}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    def pixels(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images at ``index`` as (B, C, H, W) float32 in [0, 1]; a single number gives B = 1."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        batch = np.asarray(self.images[index])  # (B, H, W, C)
        if not batch.flags.writeable or not batch.flags.c_contiguous:
            batch = batch.copy()
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float().contiguous().div_(255)  # (B, C, H, W)

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of shape, images, labels and captions: the same data, the same digits anywhere."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(self), _CHUNK):
            digest.update(np.ascontiguousarray(self.images[start : start + _CHUNK]).data)
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        if self.captions is not None:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()[:16]
