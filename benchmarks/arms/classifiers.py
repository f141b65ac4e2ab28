"""Classifiers for the benchmarks of defences, trained for some seconds where their folder does not hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.base.trial import used_up
from sfumato.classifiers import Classifier, ClassifierRequest, classifier_steps, load_classifier
from sfumato.data import ImageSet
from sfumato.defences import HardeningRequest, hardening_steps


def trained(sets: tuple[ImageSet, ImageSet], out: Path, seconds: float, seed: int, noise: float = 0.0) -> Classifier:
    """The small network, trained as usual or with Gaussian noise of a standard deviation; ``sets``: train, test."""
    train, test = sets
    budget: dict[str, Any] = {"minutes": seconds / 60, "seed": seed, "test": test}
    used_up(classifier_steps(ClassifierRequest(data=train, out=out, noise=noise, device="cpu", **budget)))
    return load_classifier(out, "cpu")


def hardened(
    classifier: Classifier, sets: tuple[ImageSet, ImageSet], out: Path, seconds: float, seed: int, **how: Any
) -> Classifier:
    """The classifier trained on by ``hardening_steps``; ``how``: further fields of its request."""
    train, test = sets
    budget: dict[str, Any] = {"minutes": seconds / 60, "seed": seed, "test": test}
    used_up(hardening_steps(HardeningRequest(data=train, out=out, classifier=classifier, **budget, **how)))
    return load_classifier(out, "cpu")
