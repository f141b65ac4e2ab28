"""The classic cascade: a base model draws small images, further models enlarge them (Ho et al. 2021, arXiv 2106.15282).

Each model is a diffusion model of its own, from pure noise at its own resolution, and each is told the label or the
text. An enlarging model is also shown the small image, noisy (``conditions.low_resolution``). With captions this is
Imagen as published (Saharia et al. 2022); ``sfumato train --recipe imagen`` does the same work in one chain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import weights
from sfumato.conditions import Condition, Kinds
from sfumato.conditions.low_resolution import LowResolution, enlarged
from sfumato.conditions.sources import source_of
from sfumato.config import preset as config_of
from sfumato.data import ImageSet, load
from sfumato.errors import InputError, nearest
from sfumato.files import atomic_write
from sfumato.generator import Generator, Labels, Prompts, to_pixels
from sfumato.guidance import Guidance
from sfumato.ladder import Ladder, pool
from sfumato.pictures import to_bytes
from sfumato.recipes import imagen
from sfumato.recipes.registry import CONFIG, LOADERS, RECIPES, PartProgress
from sfumato.samplers import Noise, mix_seed
from sfumato.training import Progress, training_steps
from sfumato.training.budget import Budget

NAME = "cascade"
FORMAT = 1
LEVEL = 0.1  # of the noise on a small image when it is enlarged: benchmarks/RESULTS.md, Text to image
BASE_SHARE = 0.5  # of the budget; the enlarging models share the rest equally
SMALLEST, USUAL = 8, 16  # px, the shorter side of the base model's images: at least, and where there is a choice
CHUNK = 256  # images pooled at once


class Cascade:
    """Trained models, each enlarging what the one before has drawn; samples as a Generator does.

    Args:
        models: the base model, then the enlarging ones, each at twice the size.
        level: of the noise on a small image, in [-1, 1] space, over 0.
    """

    def __init__(self, models: Sequence[Generator], level: float = LEVEL) -> None:
        self.models = tuple(models)
        self.level = level
        self.classes = self.models[0].classes
        self.device = self.models[0].device

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Cascade:
        """Load a run folder; InputError where it is none of a cascade, damaged, or not all models are there."""
        config = _read(Path(path))
        if config is None:
            raise InputError(f"{path} holds no cascade: give a folder that 'sfumato train --recipe {NAME}' wrote")
        for name in config.models:
            if not (Path(path) / name / weights.MODEL).exists():
                raise InputError(
                    f"{path} is not trained to the end, it has no model {name!r} yet: the same 'sfumato train' command goes on"
                )
        return cls([Generator.from_pretrained(Path(path) / name, device) for name in config.models], config.level)

    def save(self, path: str | Path) -> None:
        """Write each model into a sub-folder of ``path``, and ``config.json``."""
        names = _names(len(self.models))
        for name, model in zip(names, self.models, strict=True):
            model.save(Path(path) / name)
        sizes = tuple(model.ladder.size for model in self.models)
        _Stored(names, sizes, self.level).write(Path(path))

    @property
    def ladder(self) -> Ladder:
        """Of the last model, which makes the pictures."""
        return self.models[-1].ladder

    @property
    def kinds(self) -> Kinds:
        """The parts of c that the base model was trained with: labels and texts are told to all models."""
        return self.models[0].kinds

    @property
    def default_sampler(self) -> str:
        return self.models[0].default_sampler

    @property
    def default_guidance(self) -> Guidance:
        return self.models[0].default_guidance

    def labels(self, n: int, label: Labels = None) -> Tensor:
        """The (n,) int64 label numbers of a request, as ``Generator.labels``."""
        return self.models[0].labels(n, label)

    def condition(self, n: int, label: Labels = None, prompt: Prompts = None, first: int = 0) -> Condition:
        """What n images are told, as ``Generator.condition``."""
        return self.models[0].condition(n, label, prompt, first)

    def sample(
        self,
        n: int = 16,
        label: Labels = None,
        *,
        prompt: Prompts = None,
        condition: Condition | None = None,
        steps: int | Sequence[int] | None = None,
        sampler: str | None = None,
        guidance: float | Guidance | None = None,
        weak: object = None,
        level: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw n images; what is not said here is as in ``Generator.sample`` and ``Generator.trace``.

        Args:
            steps: of each model, or one number for each of them, base first.
            guidance: of all models.
            level: of the noise on a small image when it is enlarged; None takes the cascade's own.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU. Image i is the same in any batch.
        """
        if n < 1 or batch_size < 1:
            raise InputError(f"n={n} and batch_size={batch_size}: both must be 1 or more")
        if weak is not None:
            raise InputError("a weak model cannot guide a cascade, which has a model for each size: leave it out")
        level = _check_level(self.level if level is None else level)
        counts = [steps] * len(self.models) if steps is None or isinstance(steps, int) else list(steps)
        if len(counts) != len(self.models):
            raise InputError(
                f"steps {tuple(counts)} do not fit {len(self.models)} models: give one number, or one for each"
            )
        told = self.condition(n, label, prompt) if condition is None else condition
        pictures = []
        for first in range(0, n, batch_size):
            chosen = range(first, min(first + batch_size, n))
            c = told[slice(first, chosen.stop)].to(self.device)
            image = Tensor()
            for i, (model, count) in enumerate(zip(self.models, counts, strict=True)):
                if i:
                    c = replace(c, **self._small(image, model, level, Noise(_seed(seed, i, 1), chosen, self.device)))
                rungs = model.trace(
                    len(chosen), condition=c, steps=count, sampler=sampler, guidance=guidance, seed=_seed(seed, i),
                    first=first,
                )  # fmt: skip
                for rung in rungs:
                    image = rung.x_hat
            pictures.append(to_pixels(image).cpu())
            if progress is not None:
                progress(chosen.stop, n)
        return torch.cat(pictures)

    def _small(self, image: Tensor, model: Generator, level: float, noise: Noise) -> dict[str, Tensor]:
        """The parts of c that show an enlarging model the (B, C, h, w) image."""
        levels = torch.full((len(image),), level, device=image.device)
        return {"image": enlarged(image.float().clamp(-1, 1), levels, noise(model.ladder.shape(0))), "level": levels}

    def film(self, *_: object, **__: object) -> Any:
        """A cascade begins anew from noise at each size: there is no one chain to show."""
        raise InputError(
            "a cascade is no single chain, of which a film could be made: film one of its models, such as its base/"
        )


def _seed(seed: int, model: int, purpose: int = 0) -> int:
    """A seed of its own for the noise that each model starts from (purpose 0) and for that on its small image (1)."""
    return mix_seed(seed, 2**31 + 2 * model + purpose) if model else seed


def _check_level(level: float) -> float:
    if not 0 < level < float("inf"):
        raise InputError(f"level={level:g} is impossible: give a noise level over 0, such as {LEVEL}")
    return level


# -- what is stored of a cascade, beside its models ---------------------------------------------------------------------


def _names(count: int) -> tuple[str, ...]:
    return ("base", *(f"up-{i}" for i in range(1, count)))


@dataclass(frozen=True)
class _Stored:
    """``config.json``: the sub-folders of the models, base first, their (height, width), and the level in sampling."""

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    level: float

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"recipe": NAME, "format": FORMAT, "models": self.models, "sizes": self.sizes, "level": self.level}
        atomic_write(folder / CONFIG, json.dumps(parts, indent=2) + "\n")


def _read(folder: Path) -> _Stored | None:
    """What a folder's ``config.json`` says of a cascade; None where there is none, or one of something else."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text("utf-8"))
        if found.get("recipe") != NAME:
            return None
        if found["format"] != FORMAT:
            raise InputError(f"{file} is of format {found['format']}, this sfumato reads format {FORMAT}: update it")
        sizes = tuple((int(height), int(width)) for height, width in found["sizes"])
        stored = _Stored(tuple(found["models"]), sizes, _check_level(float(found["level"])))
        if stored.models != _names(len(sizes)):
            raise ValueError(f"models {stored.models}")
        return stored
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({str(error) or type(error).__name__}): train or copy it again") from None


@LOADERS.add(NAME)
def load_cascade(path: Path, device: str) -> Cascade:
    return Cascade.from_pretrained(path, device)


# -- training -----------------------------------------------------------------------------------------------------------


@RECIPES.add(NAME)
def train(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    device: str = "auto",
    seed: int = 0,
) -> Iterator[Progress]:
    """Train a base model and one or two that enlarge, one after the other; all as ``training.training_steps``.

    The base model gets ``BASE_SHARE`` of the budget, the others share the rest equally. Each has a run folder inside
    ``out``: ``base/``, ``up-1/``, ... The same call goes on where it stopped. With captions, the guidance is Imagen's.

    Args:
        settings: of all models; ``up-1.batch`` is for that model alone. ``base`` is the shorter side of the base model's
            images (default: the size halved twice, or as often as leaves 16 pixels, but at least once), ``level`` the
            noise on small images in sampling.

    Raises:
        InputError: as ``training_steps``; images too small; a setting that a cascade cannot have.
    """
    out = Path(out)
    budget = Budget.of(minutes, images, steps)
    dataset = load(data, size=size, fit=fit)
    given = dict(settings or {})
    level = _check_level(_number("level", given.pop("level", str(LEVEL))))
    halvings = _halvings(dataset.size, given.pop("base", None))
    names = _names(halvings + 1)
    chosen = _by_model({**(imagen.DEFAULTS if dataset.captions is not None else {}), **given}, names)
    sets = [_shrunk(dataset, halvings - i) for i in range(len(names))]
    stored = _Stored(names, tuple(one.size for one in sets), level)
    _check_folder(out, stored)
    encoder = {config_of(one.size, preset).with_settings(own).text for one, own in zip(sets, chosen, strict=True)}
    if len(encoder) > 1:
        raise InputError(
            f"the models of a cascade are told the same, but text= is {' and '.join(sorted(encoder))}: give one"
        )
    told = source_of(dataset, encoder.pop())
    parts = [
        training_steps(
            one, out / name, preset=preset, settings=own, device=device, seed=seed, **part,
            source=lambda images, i=i: LowResolution(told, images.channels) if i else told,
        )
        for i, (name, one, own, part) in enumerate(zip(names, sets, chosen, _shared(budget, len(names)), strict=True))
    ]  # fmt: skip
    return _steps(dict(zip(names, parts, strict=True)), out, stored)


def _steps(parts: Mapping[str, Iterator[Progress]], out: Path, stored: _Stored) -> Iterator[PartProgress]:
    stored.write(out)
    done = 0.0
    for (name, part), share in zip(parts.items(), _shares(len(parts)), strict=True):
        with closing(part):  # type: ignore[type-var]
            for progress in part:
                yield PartProgress(**{**vars(progress), "fraction": done + share * progress.fraction}, part=name)
        done += share


def _shares(count: int) -> list[float]:
    """Each model's share of the budget."""
    return [BASE_SHARE, *[(1 - BASE_SHARE) / (count - 1)] * (count - 1)]


def _shared(budget: Budget, count: int) -> list[dict[str, Any]]:
    """Each model's part of the budget, as arguments of ``training_steps``."""
    if budget.minutes is not None:
        return [{"minutes": share * budget.minutes} for share in _shares(count)]
    name, total = ("images", budget.images) if budget.images is not None else ("steps", budget.steps)
    assert total is not None
    if total < count:
        raise InputError(f"--{name} {total} cannot be shared over {count} models: give {count} or more")
    base = min(max(round(BASE_SHARE * total), 1), total - (count - 1))
    each, over = divmod(total - base, count - 1)
    return [{name: amount} for amount in (base, *(each + (i < over) for i in range(count - 1)))]


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"setting {key}={text!r} cannot be read: give a number") from None


def _halvings(size: tuple[int, int], wanted: str | None) -> int:
    """How often the images are halved for the base model."""
    side = min(size)
    possible = [k for k in (1, 2) if side >> k >= SMALLEST and not any(one % 2 ** (k + 1) for one in size)]
    if not possible:
        raise InputError(
            f"images of {size[0]}x{size[1]} are too small for a cascade, or cannot be halved into an even size: its base "
            f"model draws {SMALLEST} pixels a side or more, so give a --size that 4 divides, {2 * SMALLEST} or more"
        )
    if wanted is None:
        return max((k for k in possible if side >> k >= USUAL), default=possible[0])
    bases = {f"{side >> k}": k for k in possible}
    if wanted not in bases:
        raise InputError(
            f"setting base={wanted!r} does not fit images of {size[0]}x{size[1]}: give {' or '.join(bases)}"
        )
    return bases[wanted]


def _by_model(settings: Mapping[str, str], names: Sequence[str]) -> list[dict[str, str]]:
    """Each model's settings: those without a model's name in front, then its own."""
    chosen: list[dict[str, str]] = [{} for _ in names]
    for key, text in sorted(settings.items(), key=lambda item: "." in item[0]):
        model, dot, own = key.rpartition(".")
        if dot and model not in names:
            raise InputError(f"setting {key!r} names no model of this cascade: {nearest(model, names)}")
        if own == "stages":
            raise InputError("setting stages= does not fit a cascade, each of whose models has one stage: leave it out")
        for name, one in zip(names, chosen, strict=True):
            if not dot or name == model:
                one[own] = text
    return [{**one, "stages": "1"} for one in chosen]


def _shrunk(data: ImageSet, halvings: int) -> ImageSet:
    """The set with its images halved: by the mean over blocks, as the enlarging models see theirs."""
    if not halvings:
        return data
    parts = []
    for first in range(0, len(data), CHUNK):
        x = data.pixels(slice(first, first + CHUNK))
        for _ in range(halvings):
            x = pool(x)
        parts.append(to_bytes(x))
    return replace(data, images=np.concatenate(parts))


def _check_folder(out: Path, stored: _Stored) -> None:
    """A folder that holds something else is not written into."""
    if (out / weights.MODEL).exists():
        raise InputError(f"{out} holds another run, a single model: give another --out")
    before = _read(out)
    if before is None and (out / CONFIG).exists():
        raise InputError(f"{out} holds another run: give another --out")
    if before is not None and before.sizes != stored.sizes:
        was, now = (" to ".join(f"{h}x{w}" for h, w in one.sizes) for one in (before, stored))
        raise InputError(
            f"{out} holds another run (a cascade from {was}, now {now}): give another --out, or the same command as before"
        )
