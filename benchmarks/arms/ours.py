"""sfumato's arms: the preset for the data's size, every setting at its default but for those named here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.base.trial import used_up
from sfumato.conditions import Condition
from sfumato.data import ImageSet
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.recipes.cascade import Cascade
from sfumato.recipes.cascade_training import train as cascade_steps
from sfumato.samplers import evaluations as calls
from sfumato.samplers import share_steps
from sfumato.training import TrainingRequest, training_steps

CLASS_SAMPLING = ("dpmpp-2m:6", "dpmpp-2m:8", "dpmpp-2m:10", "dpmpp-2m:16", "heun:7", "heun:10")
TEXT_SAMPLING = ("10:3", "10:5", "10:5:0.995", "10:5:0.9")


@lru_cache(maxsize=1)
def load(out: Path) -> Generator:
    """The trained generator; the last one asked for is kept."""
    return Generator.from_pretrained(out, "cpu")


@lru_cache(maxsize=1)
def load_cascade(out: Path) -> Cascade:
    """The same for a cascade."""
    return Cascade.from_pretrained(out, "cpu")


def sampler_steps(setting: str, generator: Generator) -> tuple[str, tuple[int, ...]]:
    """``heun:14`` (shared over the stages by sfumato's rule) or ``heun:3+3+8`` -> the sampler and each stage's steps."""
    sampler, _, counts = setting.partition(":")
    if "+" in counts:
        return sampler, tuple(int(count) for count in counts.split("+"))
    return sampler, share_steps(generator.ladder, int(counts))


def guided(setting: str) -> dict[str, Any]:
    """``STEPS:GUIDANCE`` or ``STEPS:GUIDANCE:THRESHOLD`` as arguments of ``sample``."""
    steps, scale, *threshold = setting.split(":")
    return {"steps": int(steps), "guidance": Guidance(float(scale), threshold=float(*threshold or [0]))}


@dataclass(frozen=True)
class Ladder:
    """A generator conditioned on classes, or on texts."""

    sampling: tuple[str, ...] = CLASS_SAMPLING
    settings: Mapping[str, str] = field(default_factory=dict)

    def train(
        self, data: ImageSet, seconds: float, seed: int, out: Path, settings: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        settings = settings or self.settings
        request = TrainingRequest(data, out, minutes=seconds / 60, settings=settings, seed=seed, device="cpu")
        last = used_up(training_steps(request))
        parameters = sum(p.numel() for p in load(out).denoiser.parameters())
        return {"steps": last.step, "images": last.images, "parameters": parameters, "seconds": last.seconds}

    def sample(self, out: Path, count: int, setting: str, seed: int, c: Condition | None = None) -> Tensor:
        generator = load(out)
        if c is not None:
            return generator.sample(count, condition=c, seed=seed, batch_size=count, **guided(setting))
        sampler, steps = sampler_steps(setting, generator)
        return generator.sample(count, steps=steps, sampler=sampler, seed=seed, batch_size=count)

    def evaluations(self, out: Path, setting: str) -> int:
        return sum(calls(*sampler_steps(setting, load(out))))


class ClassicCascade:
    """``--recipe cascade``: a base model and one that enlarges, at the ladder's number of parameters."""

    sampling = TEXT_SAMPLING
    # At 32x32 two models of the default widths would have 1.8 times the ladder's parameters.
    widths: Mapping[int, Mapping[str, str]] = {32: {"base.channels": "96", "up-1.channels": "48,80"}}

    def train(self, data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
        """The recipe's rule shares the seconds over the models."""
        settings, last = self.widths.get(max(data.size), {}), {}
        request = TrainingRequest(data, out, minutes=seconds / 60, settings=settings, seed=seed, device="cpu")
        for progress in cascade_steps(request):
            last[progress.part] = progress
        parameters = sum(p.numel() for model in load_cascade(out).models for p in model.denoiser.parameters())
        return {
            "steps": sum(progress.step for progress in last.values()),
            "images": sum(progress.images for progress in last.values()),
            "parameters": parameters,
            "seconds": max(progress.seconds for progress in last.values()),  # each counts those of the parts before it
        }

    def sample(self, out: Path, count: int, setting: str, seed: int, c: Condition) -> Tensor:
        return load_cascade(out).sample(count, condition=c, seed=seed, batch_size=count, **guided(setting))


LADDER, SINGLE = Ladder(), Ladder(settings={"stages": "1"})
TEXT_LADDER, TEXT_CASCADE = Ladder(TEXT_SAMPLING), ClassicCascade()
