"""sfumato: multi-resolution diffusion models, and the robustness of classifiers, by one denoiser.

>>> import sfumato                                                              # doctest: +SKIP
>>> generator = sfumato.train("fashion-mnist", "runs/fashion", minutes=15)      # doctest: +SKIP
>>> pixels = generator.sample(16, "sneaker")   # (16, 1, 28, 28) in [0, 1]      # doctest: +SKIP
>>> x_adv = sfumato.attacks.pgd(classifier, x, y, norm="Linf", eps=8 / 255)     # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfumato.core.version import __version__

if TYPE_CHECKING:
    from sfumato import attacks, classifiers, defences, film
    from sfumato.classifiers import Classifier
    from sfumato.core.errors import InputError
    from sfumato.data import load
    from sfumato.editing import edit
    from sfumato.generator import Generator
    from sfumato.guidance import Guidance
    from sfumato.ladder import Ladder
    from sfumato.likelihood import score
    from sfumato.metrics import evaluate
    from sfumato.training import TrainingRequest, train, training_steps

__all__ = [
    "Classifier",
    "Generator",
    "Guidance",
    "InputError",
    "Ladder",
    "TrainingRequest",
    "__version__",
    "attacks",
    "classifiers",
    "defences",
    "edit",
    "evaluate",
    "film",
    "load",
    "score",
    "train",
    "training_steps",
]

_MODULES = ("attacks", "classifiers", "defences", "film")
_HOMES = {
    "Classifier": "classifiers",
    "Generator": "generator",
    "Guidance": "guidance",
    "InputError": "core.errors",
    "Ladder": "ladder",
    "TrainingRequest": "training",
    "edit": "editing",
    "evaluate": "metrics",
    "load": "data",
    "score": "likelihood",
    "train": "training",
    "training_steps": "training",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import sfumato`` alone costs milliseconds."""
    if name in _MODULES:
        return importlib.import_module(f"sfumato.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfumato.{_HOMES[name]}"), name)
