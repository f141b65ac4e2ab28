"""Training a cascade: its models one after the other, each a run of its own inside one folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from sfumato.conditions.low_resolution import LowResolution
from sfumato.conditions.sources import source_of
from sfumato.core.errors import InputError, nearest
from sfumato.core.pictures import to_bytes
from sfumato.data import ImageSet
from sfumato.engine import Budget, Progress
from sfumato.ladder import pool
from sfumato.recipes import imagen
from sfumato.recipes.cascade import LEVEL, NAME, CascadeFile, check_level, names_of
from sfumato.recipes.registry import RECIPES, in_turn
from sfumato.training import TrainingRequest, training_steps

BASE_SHARE = 0.5  # of the budget; the enlarging models share the rest equally
SMALLEST, USUAL = 8, 16  # px, the shorter side of the base model's images: at least, and where there is a choice
CHUNK = 256  # images pooled at once


@RECIPES.add(NAME)
def train(request: TrainingRequest) -> Iterator[Progress]:
    """Train a base model and one or two super-resolution models, in turn; all as ``training.training_steps``.

    The base model gets ``BASE_SHARE`` of the budget, the others share the rest equally. Each has a run folder inside
    ``out``: ``base/``, ``up-1/``, ... The same request again resumes. With captions, the guidance is Imagen's.

    The settings are those of all models; ``up-1.batch`` is for that model alone. ``base`` is the shorter side of the base
    model's images (default: the size halved twice, or as often as leaves 16 pixels, but at least once), ``level`` the
    noise on low-resolution images in sampling (noise conditioning augmentation, Ho et al. 2022).

    Raises:
        InputError: as ``training_steps``; images too small; a setting that a cascade cannot have.
    """
    out, budget = Path(request.out), request.budget
    dataset = request.dataset()
    given = dict(request.settings)
    level = check_level(_number("level", given.pop("level", str(LEVEL))))
    halvings = _halvings(dataset.size, given.pop("base", None))
    names = names_of(halvings + 1)
    chosen = _by_model({**(imagen.DEFAULTS if dataset.captions is not None else {}), **given}, names)
    sets = [_shrunk(dataset, halvings - i) for i in range(len(names))]
    stored = CascadeFile(names, tuple(one.size for one in sets), level)
    stored.check_folder(out)
    models = [
        request.part(out / name, share, data=data, settings=settings, size=None)
        for name, data, settings, share in zip(names, sets, chosen, _shared(budget, len(names)), strict=True)
    ]
    encoder = {model.config(data).text for model, data in zip(models, sets, strict=True)}
    if len(encoder) > 1:
        raise InputError(
            f"the models of a cascade share one text encoder, but text= is {' and '.join(sorted(encoder))}: give one"
        )
    texts = source_of(dataset, encoder.pop())
    sources = [lambda _: texts, *[lambda images: LowResolution(texts, images.channels)] * halvings]
    parts = [training_steps(replace(model, source=source)) for model, source in zip(models, sources, strict=True)]
    return in_turn(stored, out, zip(names, accumulate(_shares(len(names))), parts, strict=True))


def _shares(count: int) -> list[float]:
    """Each model's share of the budget."""
    return [BASE_SHARE, *[(1 - BASE_SHARE) / (count - 1)] * (count - 1)]


def _shared(budget: Budget, count: int) -> list[Budget]:
    """Each model's part of the budget."""
    ((name, total),) = budget.limits.items()
    if name == "minutes":
        return [Budget(minutes=share * total) for share in _shares(count)]
    if total < count:
        raise InputError(f"--{name} {total} cannot be shared over {count} models: give {count} or more")
    base = min(max(round(BASE_SHARE * total), 1), total - (count - 1))
    each, over = divmod(total - base, count - 1)
    return [Budget(**{name: amount}) for amount in (base, *(each + (i < over) for i in range(count - 1)))]


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
