"""Generators that nobody trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helpers.classifiers import DIGITS
from helpers.oracles import TINY
from sfumato.conditions import Kinds
from sfumato.config import Config
from sfumato.generator import Generator

CLASSES = ("sandal", "sneaker", "shirt")


def untrained(
    classes: tuple[str, ...] = CLASSES,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    seed: int = 0,
    **settings: str,
) -> Generator:
    """One that hands through what the noise leaves: its last layers are zero."""
    config = Config(stages=2).with_settings({**TINY, **settings})
    torch.manual_seed(seed)
    return Generator(config.denoiser(config.ladder(size, channels), Kinds(len(classes))), classes, config)


def random_generator(seed: int = 0, classes: tuple[str, ...] = CLASSES, **how: Any) -> Generator:
    """One with random weights, the last layers included, so that labels and levels show in its pictures."""
    generator = untrained(classes, seed=seed, **how)
    with torch.no_grad():
        for parameter in generator.denoiser.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return generator


def saved_generator(folder: Path, classes: tuple[str, ...] = DIGITS, side: int = 8, **how: Any) -> Path:
    """The folder of an untrained one."""
    untrained(classes, (side, side), **how).save(folder)
    return folder
