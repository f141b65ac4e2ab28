"""Training a small classifier on the data at hand, in minutes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.classifiers.accuracy import evaluate_classifier
from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import training_and_test
from sfumato.classifiers.networks import NETWORKS, suggest_network
from sfumato.classifiers.run import Run, new_classifier
from sfumato.classifiers.saved import load_classifier, save_classifier
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.core.files import make_folder
from sfumato.data import ImageSet
from sfumato.engine.interrupts import whole_steps
from sfumato.engine.resume import STATE, model_is_stale, restore

DEFAULT_MINUTES = 3.0
DEFAULT_EPOCHS = 60  # with the default minutes: what comes first; more passes over a small set teach little
MIRRORED = ("cifar10", "clothes", "fashion-mnist")  # sets whose mirrored images are of the same class
CHECKPOINT_SECONDS = 15.0


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step."""

    step: int
    epoch: float  # passes over the training images so far
    images: int
    seconds: float  # of training so far, earlier sessions included
    loss: float  # smoothed over steps, like the accuracy
    accuracy: float  # on the augmented training images
    images_per_second: float
    fraction: float  # of the budget, 0 to 1
    remark: str = ""  # what happened in this step, if anything did


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes, epochs, or what comes first of both."""

    minutes: float | None = None
    epochs: float | None = None

    @staticmethod
    def of(minutes: float | None, epochs: float | None) -> Budget:
        """The budget that was asked for, or the default; InputError where it leaves no time."""
        for name, value in (("minutes", minutes), ("epochs", epochs)):
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name} {value:g} leaves no time to train: give a number over 0")
        if minutes is None and epochs is None:
            return Budget(DEFAULT_MINUTES, DEFAULT_EPOCHS)
        return Budget(minutes, epochs)

    def fraction(self, seconds: float, epochs: float) -> float:
        """How much of it is used up; 1 or more means done."""
        used = [seconds / (60 * self.minutes)] if self.minutes is not None else []
        return max(used + ([epochs / self.epochs] if self.epochs is not None else []))

    def __str__(self) -> str:
        parts = [f"{self.minutes:g} minute{'s' if self.minutes != 1 else ''}"] if self.minutes is not None else []
        return " or ".join(
            parts + ([f"{self.epochs:g} epoch{'s' if self.epochs != 1 else ''}"] if self.epochs is not None else [])
        )


def train_classifier(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    epochs: float | None = None,
    network: str | None = None,
    shift: int | None = None,
    flip: bool | None = None,
    noise: float = 0.0,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Classifier:
    """Train a classifier to the end of its budget; see ``training_steps``, of which this uses up every step."""
    for step in training_steps(
        data, out, minutes=minutes, epochs=epochs, network=network, shift=shift, flip=flip, noise=noise, size=size, fit=fit,
        seed=seed, device=device,
    ):  # fmt: skip
        if progress is not None:
            progress(step)
    return load_classifier(out, device)


def training_steps(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    epochs: float | None = None,
    network: str | None = None,
    shift: int | None = None,
    flip: bool | None = None,
    noise: float = 0.0,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    seed: int = 0,
    device: str = "auto",
    test: ImageSet | None = None,
) -> Iterator[Progress]:
    """Train step by step: SGD with Nesterov momentum, one cycle of the learning rate, shifted and mirrored images.

    The folder ``out`` gets ``model.safetensors`` and ``config.json`` at the end, with the accuracy on images that were
    not trained on, and ``train_state/`` on the way. Stopping loses at most seconds of work: the same call goes on where
    the folder stands, and for a budget in epochs the result is the same to the bit as without the stop.

    Args:
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

    Yields:
        Progress after each step.

    Raises:
        InputError: bad data, settings, budget or device, or a folder that holds something else. All but a loss that
            stops being finite is raised here, before the first step is asked for.
    """
    budget = Budget.of(minutes, epochs)
    chosen = find_device(device)
    train, tested, held_out = training_and_test(data, test, size, fit)
    if train.labels is None or len(train.classes) < 2:
        raise InputError(f"data {train.name!r} has no labels, or one class only, and a classifier needs two or more: "
                         "give images in a sub-folder a class, or an .npz with labels")  # fmt: skip
    name = network or suggest_network(train.channels)
    NETWORKS.find(name)
    if shift is not None and not 0 <= shift < min(train.size):
        raise InputError(f"shift {shift} pixels does not fit images of {min(train.size)}: give 0 or a few")
    if not 0 <= noise < float("inf"):
        raise InputError(f"noise {noise:g} cannot be: give a standard deviation of 0 or more, of pixels in [0, 1]")
    settings = {
        "network": name,
        **described(train, seed),
        **({} if shift is None else {"shift": shift}),
        **({} if flip is None else {"flip": flip}),
        **({"noise": noise} if noise else {}),  # without it, as before there was any: such trainings go on
    }
    run = Run(train, torch.from_numpy(train.labels), new_classifier(train, name, seed, chosen), settings)
    open_folder(run, Path(out))
    return steps_of(run, budget, Path(out), tested, held_out)


def described(train: ImageSet, seed: int) -> dict[str, Any]:
    """The settings that follow from the images."""
    return {
        "shift": round(min(train.size) / 24),
        "flip": train.name in MIRRORED,
        "size": list(train.size),
        "labels": list(train.classes),
        "data": f"{train.name} ({len(train)} images, {train.fingerprint()})",
        "seed": seed,
    }


def open_folder(run: Run, out: Path) -> None:
    """Bring the run to where its folder stands, which is made where it is missing; InputError for one of another run."""
    restore(run, out, json.loads(json.dumps(run.settings)))
    make_folder(out)
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written, permission is denied: give another --out")


def steps_of(run: Run, budget: Budget, out: Path, test: ImageSet, held_out: str) -> Iterator[Progress]:
    """The steps from where the run stands to the end of the budget; on the way and then its folder is written."""
    began = time.perf_counter() - run.seconds
    saved = time.perf_counter()
    step_before, seconds_before, kept = run.step, run.seconds, run.step
    try:
        while (fraction := budget.fraction(run.seconds, run.epoch)) < 1:
            with whole_steps():
                run.advance(fraction)
                now = time.perf_counter()
                run.seconds = now - began
            if now - saved >= CHECKPOINT_SECONDS or budget.fraction(run.seconds, run.epoch) >= 1:
                _save(run, out)
                saved, kept = time.perf_counter(), run.step
                run.seconds = saved - began
            images = run.step * run.batch
            speed = (run.step - step_before) * run.batch / max(run.seconds - seconds_before, 1e-9)
            done = min(1.0, budget.fraction(run.seconds, run.epoch))
            yield Progress(run.step, run.epoch, images, run.seconds, run.loss, run.accuracy, speed, done, run.remark)
    except (KeyboardInterrupt, GeneratorExit):
        if kept < run.step:
            _save(run, out)
        raise
    if step_before < run.step or model_is_stale(out):
        _finish(run, out, test, held_out)


def _finish(run: Run, out: Path, test: ImageSet, held_out: str) -> None:
    """Measure the accuracy and write the model."""
    classifier = run.finished()
    accuracy = evaluate_classifier(classifier, test)
    notes = {"test": {**accuracy.overall.to_json(), "data": held_out}, "training": run.notes()}
    save_classifier(out, classifier, notes)


def _save(run: Run, out: Path) -> None:
    checkpoint.write_tensors(out / STATE, run.tensors(), {"identity": dict(run.settings), "numbers": run.numbers()})
