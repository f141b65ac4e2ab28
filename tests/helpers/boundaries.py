"""Classifiers whose boundary is known, and images near it."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from sfumato.classifiers import Classifier

SHAPE = (1, 6, 6)


@cache
def linear(classes: int = 2, seed: int = 0, scale: float = 1.0) -> tuple[Classifier, Tensor, Tensor]:
    """Logits ``W x + b`` with the boundary of two classes through the grey image; W (K, 36), b (K,)."""
    weights = scale * torch.randn(classes, math.prod(SHAPE), generator=torch.Generator().manual_seed(seed))
    head = nn.Linear(math.prod(SHAPE), classes)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.copy_(-weights @ torch.full((math.prod(SHAPE),), 0.5))
    return Classifier(nn.Sequential(nn.Flatten(), head)), head.weight.detach(), head.bias.detach()


def greys(count: int, spread: float = 0.1, seed: int = 0) -> Tensor:
    """Images near grey, so far from black and white that nothing is clipped nearby."""
    return 0.5 + spread * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.5)


def constant(x: Tensor) -> Tensor:
    """Always class 1 of three."""
    return torch.tensor([0.0, 1.0, 0.5]).repeat(len(x), 1) + 0 * x.sum((1, 2, 3))[:, None]
