"""The classic cascade: a base model draws small images, further models enlarge them (Ho et al. 2021, arXiv 2106.15282).

Each model is a diffusion model of its own, from pure noise at its own resolution, and each is conditioned on the label or
the text. An enlarging model is also shown the small image, noisy (``conditions.low_resolution``). With captions this is
Imagen as published (Saharia et al. 2022); ``sfumato train --recipe imagen`` does the same work in one chain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.conditions.low_resolution import enlarged
from sfumato.conditions.requests import Labels, Prompts
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.generator import Generator, Sampling, check_counts, to_pixels
from sfumato.ladder import Ladder
from sfumato.recipes.registry import LOADERS, RecipeFile, check_trained
from sfumato.samplers import Noise, Rung

NAME = "cascade"
LEVEL = 0.1  # of the noise on a small image when it is enlarged; not swept yet


class Cascade:
    """Trained models, each enlarging what the one before has drawn; samples as a Generator does.

    Args:
        models: the base model, then the enlarging ones, each at twice the size.
        level: of the noise on a small image, in [-1, 1] space, over 0.
    """

    def __init__(self, models: Sequence[Generator], level: float = LEVEL) -> None:
        self.models = tuple(models)
        self.level = check_level(level)
        for small, large in itertools.pairwise(self.models):
            if large.ladder.size != tuple(2 * side for side in small.ladder.size) or not large.kinds.image:
                raise InputError(
                    f"a model for images of {large.ladder.size} cannot enlarge those of {small.ladder.size}: each model of "
                    "a cascade after the first must be trained to enlarge, to twice the size"
                )
        base = self.models[0]
        self.classes, self.device, self.kinds = (
            base.classes,
            base.device,
            base.kinds,
        )  # all get the same labels and texts
        self.default_sampler, self.default_guidance = base.default_sampler, base.default_guidance
        self.ladder: Ladder = self.models[-1].ladder  # of the last, which makes the pictures

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Cascade:
        """Load a run folder; InputError where it is none of a cascade, damaged, or not all models are there."""
        config = CascadeFile.load(Path(path), "cascade")
        check_trained(Path(path), {name: f"model {name!r}" for name in config.models})
        return cls([Generator.from_pretrained(Path(path) / name, device) for name in config.models], config.level)

    def save(self, path: str | Path) -> None:
        """Write each model into a sub-folder of ``path``, and ``config.json``."""
        names = names_of(len(self.models))
        for name, model in zip(names, self.models, strict=True):
            model.save(Path(path) / name)
        CascadeFile(names, tuple(model.ladder.size for model in self.models), self.level).write(Path(path))

    def labels(self, n: int, label: Labels = None) -> Tensor:
        """The (n,) int64 label numbers of a request, as ``Generator.labels``."""
        return self.models[0].labels(n, label)

    def condition(self, n: int, label: Labels = None, prompt: Prompts = None, first: int = 0) -> Condition:
        """The condition of n images, as ``Generator.condition``."""
        return self.models[0].condition(n, label, prompt, first)

    def sample(
        self,
        n: int = 16,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        level: float | None = None,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **how: Any,
    ) -> Tensor:
        """Draw n images; the rest is as in ``Generator.sample`` and ``Generator.trace``.

        Args:
            level: of the noise on a small image when it is enlarged; None takes the cascade's own.
            how: as in ``generator.Sampling``, of all models; ``steps`` may be one number for each of them, base first.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU. Image i is the same in any batch.
        """
        check_counts(n, batch_size)
        asked = Sampling(**how)
        steps = asked.steps
        if asked.weak is not None:
            raise InputError("a weak model cannot guide a cascade, which has a model for each size: leave it out")
        level = check_level(self.level if level is None else level)
        counts = [steps] * len(self.models) if steps is None or isinstance(steps, int) else list(steps)
        if len(counts) != len(self.models):
            raise InputError(
                f"steps {tuple(counts)} do not fit {len(self.models)} models: give one number, or one for each"
            )
        condition = self.condition(n, label, prompt) if condition is None else condition
        pictures = []
        for first in range(0, n, batch_size):
            chosen = range(first, min(first + batch_size, n))
            c = condition[slice(first, chosen.stop)].to(self.device)
            image = Tensor()
            for i, (model, count) in enumerate(zip(self.models, counts, strict=True)):
                if i:
                    noise = Noise(_seed(asked.seed, i, 1), chosen, self.device)
                    c = replace(c, **self._small(image, model, level, noise))
                own = vars(asked) | {"steps": count, "seed": _seed(asked.seed, i)}
                for rung in model.trace(len(chosen), condition=c, first=first, **own):
                    image = rung.x_hat
            pictures.append(to_pixels(image).cpu())
            if progress is not None:
                progress(chosen.stop, n)
        return torch.cat(pictures)

    def _small(self, image: Tensor, model: Generator, level: float, noise: Noise) -> dict[str, Tensor]:
        """The parts of c that show an enlarging model the (B, C, h, w) image."""
        levels = torch.full((len(image),), level, device=image.device)
        return {"image": enlarged(image.float().clamp(-1, 1), levels, noise(model.ladder.shape(0))), "level": levels}

    def trace(self, *_: object, **__: object) -> Iterator[Rung]:
        """A cascade begins from new noise at each size: there is no one chain to show."""
        raise InputError(
            "a cascade is no single chain, of which a film could be made: film one of its models, such as its base/"
        )


def _seed(seed: int, model: int, purpose: int = 0) -> int:
    """A seed of its own for the noise that each model starts from (purpose 0) and for that on its small image (1)."""
    return mix_seed(seed, 2**31 + 2 * model + purpose) if model else seed


def check_level(level: float) -> float:
    if not 0 < level < float("inf"):
        raise InputError(f"level={level:g} is impossible: give a noise level over 0, such as {LEVEL}")
    return level


# -- what is stored of a cascade, beside its models ---------------------------------------------------------------------


def names_of(count: int) -> tuple[str, ...]:
    return ("base", *(f"up-{i}" for i in range(1, count)))


@dataclass(frozen=True)
class CascadeFile(RecipeFile):
    """``config.json``: the sub-folders of the models, base first, their (height, width), and the level in sampling."""

    recipe = NAME
    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    level: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> CascadeFile:
        sizes = tuple((int(height), int(width)) for height, width in found["sizes"])
        stored = cls(tuple(found["models"]), sizes, check_level(float(found["level"])))
        if stored.models != names_of(len(sizes)):
            raise ValueError(f"models {stored.models}")
        return stored

    def differs(self, found: CascadeFile) -> str:
        was, now = (" to ".join(f"{h}x{w}" for h, w in one.sizes) for one in (found, self))
        return "" if was == now else f"a cascade from {was}, now {now}"


LOADERS.add(NAME)(Cascade.from_pretrained)
