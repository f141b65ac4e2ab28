"""sfumato as it is: the preset for the data's size, every setting at its default."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.data import ImageSet
from sfumato.generator import Generator
from sfumato.samplers import evaluations as calls
from sfumato.samplers import share_steps
from sfumato.training import training_steps

SAMPLING = ("dpmpp-2m:6", "dpmpp-2m:8", "dpmpp-2m:10", "dpmpp-2m:16", "heun:7", "heun:10")


def train(
    data: ImageSet, seconds: float, seed: int, out: Path, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Train into ``out`` for ``seconds``, with changes to the preset where ``settings`` are given."""
    progress = deque(training_steps(data, out, minutes=seconds / 60, settings=settings, seed=seed), maxlen=1)
    last = progress.pop()  # there is one: the caller gives a new folder
    parameters = sum(p.numel() for p in load(out).denoiser.parameters())
    return {"steps": last.step, "images": last.images, "parameters": parameters, "seconds": last.seconds}


@lru_cache(maxsize=1)
def load(out: Path) -> Generator:
    """The trained generator; the last one asked for is kept."""
    return Generator.from_pretrained(out, "cpu")


def steps(setting: str, generator: Generator) -> tuple[str, tuple[int, ...]]:
    """``heun:14`` (shared over the stages by sfumato's rule) or ``heun:3+3+8`` -> the sampler and each stage's steps."""
    sampler, _, counts = setting.partition(":")
    if "+" in counts:
        return sampler, tuple(int(count) for count in counts.split("+"))
    return sampler, share_steps(generator.ladder, int(counts))


def sample(out: Path, n: int, setting: str, seed: int) -> Tensor:
    """(n, C, H, W) in [0, 1], each class in turn."""
    generator = load(out)
    sampler, counts = steps(setting, generator)
    return generator.sample(n, steps=counts, sampler=sampler, seed=seed, batch_size=n)


def evaluations(out: Path, setting: str) -> int:
    """How often the network is called for an image, in all stages."""
    return sum(calls(*steps(setting, load(out))))
