"""diffusers again, helped by a trick that its examples do not use: the network sees 2x2 pixels as one with four channels.

Everything else is as in ``diffusers_unet``, with wider levels for the same number of parameters. It tells how much of
sfumato's advantage is the patches, which its own network uses at the finest level, and how much is the rest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.arms import diffusers_unet
from benchmarks.arms.diffusers_unet import SAMPLING, evaluations
from sfumato.data import ImageSet

__all__ = ["SAMPLING", "evaluations", "sample", "train"]

SETTINGS = replace(diffusers_unet.SETTINGS, widths=(64, 96), patch=2)


def train(data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Train for ``seconds`` and write the averaged network to ``out``."""
    return diffusers_unet.train(data, seconds, seed, out, SETTINGS)


def sample(out: Path, n: int, setting: str, seed: int) -> Tensor:
    """(n, C, H, W) in [0, 1], each class in turn."""
    return diffusers_unet.sample(out, n, setting, seed, SETTINGS)
