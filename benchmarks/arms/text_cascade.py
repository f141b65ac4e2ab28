"""The classic cascade, by ``--recipe cascade``: a base model and one that enlarges, at the ladder's number of parameters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.arms.text_ladder import how
from sfumato.conditions import Condition
from sfumato.data import ImageSet
from sfumato.recipes.cascade import Cascade
from sfumato.recipes.cascade_training import train as cascade_steps

SAMPLING = ("10:3", "10:5", "10:5:0.995", "10:5:0.9")
# At 32x32 two models of the default widths would have 1.8 times the ladder's parameters.
WIDTHS = {32: {"base.channels": "96", "up-1.channels": "48,80"}}


def train(data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Train into ``out`` for ``seconds``, shared over the models by the recipe's rule."""
    settings = WIDTHS.get(max(data.size), {})
    last: dict[str, Any] = {}
    for progress in cascade_steps(data, out, minutes=seconds / 60, settings=settings, seed=seed, device="cpu"):
        last[getattr(progress, "part", "")] = progress
    parameters = sum(p.numel() for model in load(out).models for p in model.denoiser.parameters())
    return {
        "steps": sum(progress.step for progress in last.values()),
        "images": sum(progress.images for progress in last.values()),
        "parameters": parameters,
        "seconds": max(progress.seconds for progress in last.values()),  # each counts those of the parts before it
    }


@lru_cache(maxsize=1)
def load(out: Path) -> Cascade:
    """The trained models; the last ones asked for are kept."""
    return Cascade.from_pretrained(out, "cpu")


def sample(out: Path, c: Condition, count: int, setting: str, seed: int) -> Tensor:
    """(count, C, H, W) in [0, 1], told c."""
    return load(out).sample(count, condition=c, seed=seed, batch_size=count, **how(setting))
