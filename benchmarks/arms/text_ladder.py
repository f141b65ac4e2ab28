"""sfumato as it is on a captioned set: the preset for the data's size, every setting at its default."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.conditions import Condition
from sfumato.data import ImageSet
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.training import training_steps

SAMPLING = ("10:3", "10:5", "10:5:0.995", "10:5:0.9")


def train(data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Train into ``out`` for ``seconds``."""
    last = deque(training_steps(data, out, minutes=seconds / 60, seed=seed, device="cpu"), maxlen=1).pop()
    parameters = sum(p.numel() for p in load(out).denoiser.parameters())
    return {"steps": last.step, "images": last.images, "parameters": parameters, "seconds": last.seconds}


@lru_cache(maxsize=1)
def load(out: Path) -> Generator:
    """The trained generator; the last one asked for is kept."""
    return Generator.from_pretrained(out, "cpu")


def how(setting: str) -> dict[str, Any]:
    """``STEPS:GUIDANCE`` or ``STEPS:GUIDANCE:THRESHOLD`` as arguments of ``sample``."""
    steps, scale, *threshold = setting.split(":")
    return {"steps": int(steps), "guidance": Guidance(float(scale), threshold=float(*threshold or [0]))}


def sample(out: Path, c: Condition, count: int, setting: str, seed: int) -> Tensor:
    """(count, C, H, W) in [0, 1], told c."""
    return load(out).sample(count, condition=c, seed=seed, batch_size=count, **how(setting))
