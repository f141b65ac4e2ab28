"""The recipes by name, and which kind of model a folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.engine import Progress
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.ladder import Ladder
from sfumato.training import TrainingRequest

CONFIG = "config.json"  # of a run folder; a recipe's holds its name as "recipe"


class Sampler(Protocol):
    """What every model can do, a Generator or a recipe's: draw images, and say which."""

    classes: tuple[str, ...]

    @property
    def ladder(self) -> Ladder: ...

    @property
    def default_guidance(self) -> Guidance: ...

    def sample(self, n: int = ..., label: Any = ..., *, prompt: Any = ..., **how: Any) -> Tensor: ...


Train = Callable[[TrainingRequest], Iterator[Progress]]
"""How a recipe is trained: as ``training.training_steps``, with the folder of each model inside ``request.out``."""


class Load(Protocol):
    """How a recipe's run folder is loaded: InputError where it is unfinished or damaged."""

    def __call__(self, path: Path, device: str) -> Any: ...


RECIPES: Registry[Train] = Registry("recipe")
"""Recipes by name: functions that train one, step by step."""
LOADERS: Registry[Load] = Registry("recipe")
"""Recipes by name: functions that load the run folder of one."""


def in_turn(parts: Iterable[tuple[str, float, Iterator[Progress]]]) -> Iterator[Progress]:
    """Train one part after the other.

    Args:
        parts: of each its name, the share of the budget that is used up when it is done, and its training. Each is taken
            when those before it are done.

    Yields:
        Progress whose fraction and seconds are of all parts; seconds of parts that an earlier session finished are not in it.
    """
    begun = spent = 0.0
    for name, end, part in parts:
        seconds = 0.0
        with closing(part):  # type: ignore[type-var]
            for progress in part:
                seconds, fraction = progress.seconds, begun + (end - begun) * progress.fraction
                yield replace(progress, fraction=fraction, seconds=spent + seconds, part=name)
        begun, spent = end, spent + seconds


def kind(path: str | Path) -> str | None:
    """The recipe that a folder was trained with; None for a generator, and for what is no folder."""
    file = Path(path) / CONFIG
    if str(path).startswith("hf:") or not file.is_file():
        return None
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}): train or copy the model again") from None
    return found.get("recipe") if isinstance(found, dict) else None


def load(path: str | Path, device: str = "auto") -> Any:
    """A trained model of either kind: a Generator, or a recipe's model with the same way of sampling.

    Args:
        path: a run folder, a ``model.safetensors``, or ``hf:owner/name`` (a Generator only).
        device: auto, cpu or cuda.

    Raises:
        InputError: no model there, an unfinished or damaged one, or a recipe that this version does not know.
    """
    recipe = kind(path)
    if recipe is None:
        return Generator.from_pretrained(path, device)
    if recipe not in LOADERS:
        raise InputError(f"{path} was trained with the recipe {recipe!r}, which this sfumato does not know: update it")
    return LOADERS[recipe](Path(path), device)
