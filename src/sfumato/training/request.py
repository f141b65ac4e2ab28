"""What a training of a generator is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfumato.conditions.sources import Source
from sfumato.config import Config, preset
from sfumato.core.errors import InputError
from sfumato.data import ImageSet, load
from sfumato.engine import Budget

DEFAULT_MINUTES = 15.0


@dataclass(frozen=True)
class TrainingRequest:
    """One training of a generator, or of a recipe's models.

    Attributes:
        data: a built-in name, a folder, an ``.npz`` file, ``hf:owner/name``, or an ImageSet.
        out: the run folder.
        minutes, images, steps: the budget, one of them; 15 minutes when none is given. Images count every stage's.
        preset: a name in ``config.PRESETS``; None picks by image size.
        settings: changes to the preset, as text (``{"learning_rate": "1e-3"}``); see ``config.Config``.
        size, fit: how images are brought to one size; see ``data.load``.
        device: auto, cpu or cuda.
        seed: of the weights and of everything random in training.
        source: from the images to their conditions, see ``conditions.sources``; None takes captions or else labels.
    """

    data: str | Path | ImageSet
    out: str | Path
    minutes: float | None = None
    images: int | None = None
    steps: int | None = None
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    size: int | tuple[int, int] | None = None
    fit: str = "crop"
    device: str = "auto"
    seed: int = 0
    source: Callable[[ImageSet], Source] | None = None

    @property
    def budget(self) -> Budget:
        """InputError where two are given, or one that leaves no time."""
        given = {"minutes": self.minutes, "images": self.images, "steps": self.steps}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise InputError(f"the budget was given as {' and '.join(names)}: give one of them")
        return Budget(self.minutes, self.images, self.steps) if names else Budget(minutes=DEFAULT_MINUTES)

    def part(self, out: Path, budget: Budget, **changes: Any) -> TrainingRequest:
        """The request for one of several models of a recipe: in a folder of its own, with a part of the budget."""
        return replace(self, out=out, minutes=budget.minutes, images=budget.images, steps=budget.steps, **changes)

    def dataset(self) -> ImageSet:
        """The images, loaded."""
        return load(self.data, size=self.size, fit=self.fit)

    def config(self, dataset: ImageSet) -> Config:
        """The preset for such images, with the settings."""
        return preset(dataset.size, self.preset).with_settings(self.settings)
