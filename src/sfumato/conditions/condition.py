"""Condition: what c is for a batch of images; Kinds: which parts of it a model knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sfumato.core.errors import InputError


@dataclass(frozen=True)
class Kinds:
    """The parts of c that a model is built for; 0 stands for none.

    Args:
        classes: number of labels.
        vector: width of one vector an image: a pooled text, or an image embedding.
        tokens: width of the states of a text's tokens.
        image: channels of a low-resolution image to be enlarged.
    """

    classes: int = 0
    vector: int = 0
    tokens: int = 0
    image: int = 0

    def __post_init__(self) -> None:
        if any(not isinstance(n, int) or n < 0 for n in (self.classes, self.vector, self.tokens, self.image)):
            raise InputError(f"{self} is impossible: each part must be a whole number, 0 or more")

    @property
    def droppable(self) -> bool:
        """Whether there is anything that can be left out, and so anything to guide with."""
        return bool(self.classes or self.vector or self.tokens)


@dataclass(frozen=True)
class Condition:
    """c of a batch of B images; a part that is None is left out for all of them.

    Args:
        label: (B,) int64; the number of classes stands for "dropped".
        vector: (B, D) float, of any scale.
        tokens: (B, L, D) float, of any scale; ``mask`` (B, L) bool says which of them there are.
        image: (B, C, H, W) in [-1, 1] space at the finest resolution, noisy at ``level`` (B,), which is over 0.
        present: (B,) bool, False where label, vector and tokens are dropped; None when they count for all.
    """

    label: Tensor | None = None
    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    image: Tensor | None = None
    level: Tensor | None = None
    present: Tensor | None = None

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{name: None if part is None else function(part) for name, part in parts.items()})

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda part: part.to(device, non_blocking=True))

    def __getitem__(self, index: slice | Tensor) -> Condition:
        """That of some of the images."""
        return self._map(lambda part: part[index])

    def without(self) -> Condition:
        """What is left when label, vector and tokens are dropped for all: the other end of guidance."""
        return Condition(image=self.image, level=self.level)

    def drop(self, share: float, count: int, generator: torch.Generator) -> Condition:
        """About ``share`` of the ``count`` images without their label, vector and tokens."""
        return replace(self, present=torch.rand(count, generator=generator) >= share)
