"""An image to be enlarged, as a condition: noisy, and its noise level given (Ho et al. 2021, arXiv 2106.15282, section 4.2).

A super-resolution model that was trained on perfect small images trusts the flaws of those that a base model draws.
With noise-conditioning augmentation it learns from small images at every level of noise; at a little noise, flaws of
that size are hidden from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.conditions.condition import Condition
from sfumato.conditions.sources import Source
from sfumato.ladder import flow_time, from_flow_time, pool, repeat

LEVELS = (0.02, 1.0)  # of the noise in training, in [-1, 1] space


def enlarged(small: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """``Up(x) + s e``: what an enlarging model is shown of a small image.

    Args:
        small: x, (B, C, h, w) in [-1, 1] space.
        level: s, (B,).
        noise: e, standard normal, (B, C, 2h, 2w).
    """
    return repeat(small) + level[:, None, None, None] * noise


class LowResolution:
    """Each image's own half-sized version, at a random level of noise, beside the condition of another source.

    Args:
        source: labels, captions, or whatever else the images are conditioned on.
        channels: of the images.
        levels: the lowest and the highest noise level; drawn uniformly in flow time.
    """

    def __init__(self, source: Source, channels: int, levels: tuple[float, float] = LEVELS) -> None:
        self.kinds = replace(source.kinds, image=channels)
        self.source, self.levels = source, levels

    def batch(self, index: np.ndarray, x: Tensor, generator: torch.Generator) -> Condition:
        c = self.source.batch(index, x, generator)
        low, high = flow_time(torch.tensor(self.levels))
        # Not stratified over the batch: the noise levels of x are, in the same order, and the two must be independent.
        level = from_flow_time(low + (high - low) * torch.rand(len(x), generator=generator))
        noise = torch.randn(x.shape, generator=generator)
        level, noise = level.to(x.device), noise.to(x.device)
        return replace(c, image=enlarged(pool(x), level, noise), level=level)

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"levels": list(self.levels)}
