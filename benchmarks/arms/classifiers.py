"""Classifiers for the benchmarks of defences, trained for some seconds where their folder does not hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.base.trial import used_up
from sfumato.classifiers import Classifier, load_classifier, training_steps
from sfumato.data import ImageSet
from sfumato.defences import hardening_steps


def trained(sets: tuple[ImageSet, ImageSet], out: Path, seconds: float, seed: int, noise: float = 0.0) -> Classifier:
    """The small network, trained as usual or with Gaussian noise of a standard deviation; ``sets``: train, test."""
    train, test = sets
    steps = training_steps(train, out, minutes=seconds / 60, noise=noise, seed=seed, device="cpu", test=test)
    used_up(steps)
    return load_classifier(out, "cpu")


def hardened(
    classifier: Classifier, sets: tuple[ImageSet, ImageSet], out: Path, seconds: float, seed: int, **how: Any
) -> Classifier:
    """The classifier trained on by ``hardening_steps(..., **how)``."""
    train, test = sets
    used_up(hardening_steps(classifier, train, out, minutes=seconds / 60, seed=seed, test=test, **how))
    return load_classifier(out, "cpu")
