"""Training a small classifier on the data at hand, in minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import Divided, training_and_test
from sfumato.classifiers.networks import NETWORKS, suggest_network
from sfumato.classifiers.objective import ClassifierObjective, new_classifier
from sfumato.classifiers.saved import load_classifier
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.engine import Budget, Progress, train_steps

DEFAULT_MINUTES = 3.0
DEFAULT_EPOCHS = 60  # with the default minutes: what comes first; more passes over a small set teach little
MIRRORED = ("cifar10", "clothes", "fashion-mnist")  # sets whose mirrored images are of the same class


@dataclass(frozen=True, kw_only=True)
class ClassifierRequest:
    """One training of a classifier.

    Attributes:
        data: labelled images: a built-in name, a folder, an ``.npz`` file, ``hf:owner/name``, or an ImageSet.
        out: the folder.
        minutes, epochs: the budget, or what comes first of both; 3 minutes or 60 epochs when neither is given.
        network: a name in ``networks.NETWORKS``; None picks by channels.
        shift: images are moved by up to so many pixels each way, their edge repeated; None: a twenty-fourth of the side.
        flip: half of the images are mirrored left to right; None: for ``MIRRORED`` sets only.
        noise: standard deviation of Gaussian noise on the training images, of pixels in [0, 1], for a classifier that is
            to be smoothed (Cohen et al. 2019, section 3.3). The accuracy is still that on clean images.
        size, fit: how images are brought to one size; see ``data.load``.
        seed: of the weights and of everything random in training.
        device: auto, cpu or cuda.
        test: images to measure the accuracy on, for data given as an ImageSet; None holds out a tenth.
    """

    data: str | Path | ImageSet
    out: str | Path
    minutes: float | None = None
    epochs: float | None = None
    network: str | None = None
    shift: int | None = None
    flip: bool | None = None
    noise: float = 0.0
    size: int | tuple[int, int] | None = None
    fit: str = "crop"
    seed: int = 0
    device: str = "auto"
    test: ImageSet | None = None

    @property
    def budget(self) -> Budget:
        """InputError where it leaves no time."""
        if self.minutes is None and self.epochs is None:
            return Budget(minutes=DEFAULT_MINUTES, epochs=DEFAULT_EPOCHS)
        return Budget(minutes=self.minutes, epochs=self.epochs)

    def divided(self) -> Divided:
        """The images, loaded, to train and to measure on."""
        return training_and_test(self.data, self.test, self.size, self.fit)

    def augmentation(self, train: ImageSet) -> dict[str, Any]:
        """Shift and flip, as given or as they follow from the images; InputError for a shift that does not fit."""
        shift = round(min(train.size) / 24) if self.shift is None else self.shift
        if not 0 <= shift < min(train.size):
            raise InputError(f"shift {shift} pixels does not fit images of {min(train.size)}: give 0 or a few")
        return {"shift": shift, "flip": train.name in MIRRORED if self.flip is None else self.flip}


def train_classifier(
    data: str | Path | ImageSet, out: str | Path, *, progress: Callable[[Progress], None] | None = None, **options: Any
) -> Classifier:
    """Train a classifier to the end of its budget.

    Args:
        data, out: images and folder.
        progress: called after each step.
        options: the other fields of :class:`ClassifierRequest`.

    Raises:
        InputError: as :func:`classifier_steps`.
    """
    request = ClassifierRequest(data=data, out=out, **options)
    for step in classifier_steps(request):
        if progress is not None:
            progress(step)
    return load_classifier(out, request.device)


def classifier_steps(request: ClassifierRequest) -> Iterator[Progress]:
    """Train step by step: SGD with Nesterov momentum, one cycle of the learning rate, shifted and mirrored images.

    Writes ``model.safetensors`` and ``config.json`` at the end, with the accuracy on held-out images, and checkpoints in
    ``train_state/``. The same request again resumes; for a budget in epochs the result is the same to the bit as that of
    an uninterrupted training.

    Yields:
        Progress after each step, with the training accuracy among its metrics.

    Raises:
        InputError: bad data, settings, budget or device, or a folder that holds something else. All but a loss that
            stays not finite is raised here, before the first step is asked for.
    """
    budget, device = request.budget, find_device(request.device)
    data = request.divided()
    train = data.train
    if train.labels is None or len(train.classes) < 2:
        problem = f"data {train.name!r} has no labels, or one class only, and a classifier needs two or more"
        raise InputError(f"{problem}: give images in a sub-folder a class, or an .npz with labels")
    name = request.network or suggest_network(train.channels)
    NETWORKS.find(name)
    augmentation = request.augmentation(train)
    if not 0 <= request.noise < float("inf"):
        problem = f"noise {request.noise:g} cannot be"
        raise InputError(f"{problem}: give a standard deviation of 0 or more, of pixels in [0, 1]")
    noise = {"noise": request.noise} if request.noise else {}
    settings = {"network": name, **augmentation, **described(train, request.seed), **noise}
    labels = torch.from_numpy(train.labels)
    objective = ClassifierObjective(data, labels, new_classifier(train, name, request.seed, device), settings)
    return train_steps(objective, budget, seed=request.seed, out=Path(request.out), identity=settings)


def described(train: ImageSet, seed: int) -> dict[str, Any]:
    """What distinguishes a training from others, beside its augmentation."""
    data = f"{train.name} ({len(train)} images, {train.fingerprint()})"
    return {"size": list(train.size), "labels": list(train.classes), "data": data, "seed": seed}
