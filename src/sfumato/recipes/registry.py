"""The recipes by name, and which kind of model a folder holds."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write, make_folder
from sfumato.core.registry import Registry
from sfumato.engine import Progress
from sfumato.engine.resume import STATE
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.ladder import Ladder
from sfumato.training import TrainingRequest

CONFIG = "config.json"  # of a run folder; a recipe's holds its name as "recipe"
FORMAT = 1


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

    def __call__(self, path: Path, device: str, /) -> Any: ...


RECIPES: Registry[Train] = Registry("recipe")
"""Recipes by name: functions that train one, step by step."""
LOADERS: Registry[Load] = Registry("recipe")
"""Recipes by name: functions that load the run folder of one."""


@dataclass(frozen=True)
class RecipeFile(ABC):
    """``config.json`` of a run folder: the recipe's name, the format, and the fields of the recipe's own record."""

    recipe: ClassVar[str]
    single: ClassVar[str] = "another run, a single model"
    """What a folder holds that is a single model's."""
    other: ClassVar[str] = "another run"
    """What a folder holds whose ``config.json`` is of something else."""

    @classmethod
    @abstractmethod
    def of(cls, found: dict[str, Any]) -> Self:
        """From the fields as JSON has them; any error means that the file is damaged."""

    @abstractmethod
    def differs(self, found: Self) -> str:
        """What ``found`` has otherwise, in words; "" where a run that stored it can go on as this one."""

    def write(self, folder: Path) -> None:
        make_folder(folder)
        parts = {"recipe": self.recipe, "format": FORMAT, **vars(self)}
        atomic_write(folder / CONFIG, json.dumps(parts, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What a folder holds; None where there is no such file, or one of something else; InputError: a damaged one."""
        file = folder / CONFIG
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text("utf-8"))
            if found.get("recipe") != cls.recipe:
                return None
            if found["format"] != FORMAT:
                raise InputError(
                    f"{file} is of format {found['format']}, this sfumato reads format {FORMAT}: update it"
                )
            return cls.of(found)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} is damaged ({str(error) or type(error).__name__}): train or copy it again"
            ) from None

    @classmethod
    def load(cls, folder: Path, title: str) -> Self:
        """The same, but InputError where there is none."""
        if (found := cls.read(folder)) is None:
            raise InputError(
                f"{folder} holds no {title}: give a folder that 'sfumato train --recipe {cls.recipe}' wrote"
            )
        return found

    def check_folder(self, out: Path) -> None:
        """A folder that holds something else is not written into: InputError."""
        if (out / checkpoint.MODEL).exists() or (out / STATE).exists():
            raise InputError(f"{out} holds {self.single}: give another --out")
        found = self.read(out)
        if found is None and (out / CONFIG).exists():
            raise InputError(f"{out} holds {self.other}: give another --out")
        if found is not None and (words := self.differs(found)):
            raise InputError(f"{out} holds another run ({words}): give another --out, or the same command as before")


def check_trained(folder: Path, parts: Mapping[str, str]) -> None:
    """InputError unless each of the sub-folders holds a model; ``parts`` says what each of them is."""
    for name, words in parts.items():
        if not (folder / name / checkpoint.MODEL).exists():
            raise InputError(
                f"{folder} is not trained to the end, it has no {words} yet: the same 'sfumato train' command goes on"
            )


def in_turn(
    stored: RecipeFile, out: Path, parts: Iterable[tuple[str, float, Iterator[Progress]]]
) -> Iterator[Progress]:
    """Write what is stored of the whole, then train one part after the other.

    Args:
        stored, out: the ``config.json``, and the folder that it is written into.
        parts: of each its name, the share of the budget that is used up when it is done, and its training. Each is taken
            when those before it are done.

    Yields:
        Progress whose fraction and seconds are of all parts; seconds of parts that an earlier session finished are not in it.
    """
    stored.write(out)
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
