"""The condition of each image of a training set: its label, its caption, a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sfumato.conditions.condition import Condition, Kinds
from sfumato.conditions.text import LatentStore, find_encoder
from sfumato.data import ImageSet


class Source(Protocol):
    """The conditions of a data set's images."""

    kinds: Kinds

    def batch(self, index: np.ndarray, x: Tensor, generator: torch.Generator) -> Condition:
        """c of the images ``index`` (B,), which are x (B, C, H, W) in [-1, 1] space; nothing dropped; on x's device."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on, ready for JSON."""
        ...


class ClassLabels:
    """The class of each image; nothing where the set has none."""

    def __init__(self, data: ImageSet) -> None:
        self.kinds = Kinds(classes=len(data.classes))
        self._labels = data.labels

    def batch(self, index: np.ndarray, x: Tensor, generator: torch.Generator) -> Condition:
        if self._labels is None:
            return Condition()
        return Condition(label=torch.from_numpy(self._labels[index].astype("int64"))).to(x.device)

    def identity(self) -> dict[str, Any]:
        return {}


class Captions:
    """The caption of each image, one of its variants at random each time, as a frozen language model sees it.

    Args:
        data: with captions.
        encoder: the language model's name, see ``text.find_encoder``.
        progress: called with (texts done, texts in all) where latents are computed.
    """

    def __init__(self, data: ImageSet, encoder: str, progress: Callable[[int, int], None] | None = None) -> None:
        assert data.captions is not None
        model = find_encoder(encoder)
        self.kinds = Kinds(vector=model.width, tokens=model.width)
        self._captions = data.captions
        self._store = LatentStore([text for texts in data.captions for text in texts], model, progress)
        self._identity = {"text": f"{encoder} ({model.fingerprint})"}

    def batch(self, index: np.ndarray, x: Tensor, generator: torch.Generator) -> Condition:
        latents = self._store[draw_texts(self._captions, index, generator)]
        return Condition(vector=latents.vector, tokens=latents.tokens, mask=latents.mask).to(x.device)

    def identity(self) -> dict[str, Any]:
        return self._identity


def draw_texts(captions: Sequence[tuple[str, ...]], index: np.ndarray, generator: torch.Generator) -> list[str]:
    """For each of the images ``index`` (B,) one of its captions."""
    which = torch.rand(len(index), generator=generator).tolist()
    choices = (captions[i] for i in index)
    return [texts[int(w * len(texts))] for texts, w in zip(choices, which, strict=True)]


def source_of(data: ImageSet, encoder: str, progress: Callable[[int, int], None] | None = None) -> Source:
    """Captions where the set has them, else labels."""
    return ClassLabels(data) if data.captions is None else Captions(data, encoder, progress)
