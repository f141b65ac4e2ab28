"""How often a classifier is right, with an exact interval, overall and for each class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.classifiers.classifier import Classifier
from sfumato.core.errors import InputError, nearest
from sfumato.core.slices import slices
from sfumato.data import ImageSet

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``count`` images; not a whole number where it adds up their shares of right answers."""

    correct: float
    count: int

    @property
    def value(self) -> float:
        """The share that is right, from 0 to 1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of Clopper and Pearson (1934): exact, so never too narrow.

        Of a sum of shares: that of as many images right or wrong each, which vary no less; rounded outward.
        """
        from scipy.stats import beta

        tail, least, most = (1 - LEVEL) / 2, math.floor(self.correct + 1e-9), math.ceil(self.correct - 1e-9)
        low = beta.ppf(tail, least, self.count - least + 1) if least else 0.0
        high = beta.ppf(1 - tail, most + 1, self.count - most) if most < self.count else 1.0
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "correct": self.correct, "count": self.count}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({low:.2%} to {high:.2%}, {self.correct:,} of {self.count:,})"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy overall, and for each class that has images, by name."""

    overall: Accuracy
    classes: dict[str, Accuracy]

    def to_json(self) -> dict[str, Any]:
        return {**self.overall.to_json(), "classes": {name: each.to_json() for name, each in self.classes.items()}}


def evaluate_classifier(
    classifier: Classifier, data: ImageSet, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Classify every image of ``data``.

    Args:
        classifier: any; its labels are matched with the data's class names as ``match_labels`` does.
        data: labelled images, of a size that the classifier takes.
        progress: called with (images done, images in all).

    Raises:
        InputError: images or classes that the classifier does not take.
    """
    wanted = match_labels(classifier, data)
    with classifier.ready():
        found = [classifier.predict(data.pixels(s)) for s in slices(len(data), classifier.batch_size, progress)]
    right = torch.cat(found) == wanted  # (N,)
    numbered = zip(data.classes, _numbers(classifier, data), strict=True)
    by_class = {name: right[wanted == label] for name, label in numbered}
    classes = {name: Accuracy(int(mine.sum()), len(mine)) for name, mine in by_class.items() if len(mine)}
    return Evaluation(Accuracy(int(right.sum()), len(data)), classes)


def match_labels(classifier: Classifier, data: ImageSet) -> Tensor:
    """The labels of ``data`` (N,) int64 as the numbers of the classifier's logits.

    Classes are matched by name, in whatever order; by number where the classifier knows no names.

    Raises:
        InputError: data without labels, or with a class that the classifier does not have.
    """
    if data.labels is None:
        problem = f"data {data.name!r} has no labels"
        raise InputError(f"{problem}: give images in a sub-folder a class, or an .npz with labels")
    return torch.tensor(_numbers(classifier, data))[torch.from_numpy(data.labels)]  # (N,)


def _numbers(classifier: Classifier, data: ImageSet) -> list[int]:
    """For each class of ``data`` the number of its logit."""
    if classifier.named:
        known = {name: i for i, name in enumerate(classifier.labels)}
        if unknown := [name for name in data.classes if name not in known]:
            problem = f"data {data.name!r} has a class {unknown[0]!r} that the classifier does not know"
            raise InputError(f"{problem}: {nearest(unknown[0], known)}")
        return [known[name] for name in data.classes]
    classifier.logits(data.pixels(0))  # a model without names may only tell by a pass how many classes it has
    if len(data.classes) > classifier.classes:
        problem = f"data {data.name!r} has {len(data.classes)} classes, the classifier {classifier.classes}"
        raise InputError(f"{problem}: give data of the classes that it was trained on")
    return list(range(len(data.classes)))
