"""Training a small classifier on the data at hand, in minutes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import weights
from sfumato.classifiers.accuracy import evaluate_classifier
from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import training_and_test
from sfumato.classifiers.networks import NETWORKS, suggest_network
from sfumato.classifiers.saved import load_classifier, save_classifier
from sfumato.data import ImageSet
from sfumato.devices import autocast_type, find_device
from sfumato.errors import InputError
from sfumato.files import make_folder
from sfumato.interrupts import whole_steps
from sfumato.resume import STATE, model_is_stale, restore
from sfumato.samplers import mix_seed

DEFAULT_MINUTES = 3.0
DEFAULT_EPOCHS = 60  # with the default minutes: what comes first; more passes over a small set teach little
MIRRORED = ("cifar10", "fashion-mnist")  # sets whose mirrored images are of the same class
MOST_IN_BATCH = 128
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP = 0.15  # share of the budget in which the learning rate rises; then it falls to 0, linearly
SMOOTHING = 0.98  # of the loss and accuracy that are shown
CHECKPOINT_SECONDS = 15.0
MEASURED = 4096  # images from which mean and standard deviation are taken


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
        parts = [f"{self.minutes:g} minutes"] if self.minutes is not None else []
        return " or ".join(parts + ([f"{self.epochs:g} epochs"] if self.epochs is not None else []))


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
        "shift": round(min(train.size) / 24) if shift is None else shift,
        "flip": train.name in MIRRORED if flip is None else flip,
        "size": list(train.size),
        "labels": list(train.classes),
        "data": f"{train.name} ({len(train)} images, {train.fingerprint()})",
        "seed": seed,
        **({"noise": noise} if noise else {}),  # without it, as before there was any: such trainings go on
    }
    run = _Run(train, settings, chosen)
    restore(run, Path(out), json.loads(json.dumps(settings)))
    make_folder(Path(out))
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written, permission is denied: give another --out")
    return _steps(run, budget, Path(out), tested, held_out)


class _Run:
    """The state that training changes, all of it in ``tensors()`` and ``numbers()``.

    Everything random in step i comes from streams seeded with the seed and the step or epoch, so a run that is stopped
    and resumed takes the very same steps.
    """

    def __init__(self, data: ImageSet, settings: Mapping[str, Any], device: torch.device) -> None:
        self.data, self.settings, self.device = data, settings, device
        self.seed: int = settings["seed"]
        assert data.labels is not None
        self.labels = torch.from_numpy(data.labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, 0))
            module = NETWORKS.find(settings["network"])(data.channels, data.size, len(data.classes))
        self.module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = _statistics(data)
        self.classifier = Classifier(
            self.module, mean=mean, std=std, labels=data.classes, size=data.size, channels=data.channels, device=device
        )
        # Norms and biases are few and carry no excess: only the weights of convolutions and of the head decay.
        weighty = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
        groups = [{"params": weighty, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        self.number = autocast_type(device)
        self.batch = max(1, min(MOST_IN_BATCH, max(16, len(data) // 16), len(data)))
        self.steps_per_epoch = len(data) // self.batch  # the rest of a pass is left out: each is in another order
        self.order = (-1, torch.empty(0, dtype=torch.int64))  # the epoch and its order
        self.step = 0
        self.seconds = 0.0
        self.loss = self.accuracy = float("nan")

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    def advance(self, fraction: float) -> None:
        """One step: a batch, one update of the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (fraction + 1e-3) / WARMUP, (1 - fraction) / (1 - WARMUP))
        x, y = self._batch()
        self.module.train()
        with torch.autocast(self.device.type, self.number or torch.bfloat16, enabled=self.number is not None):
            logits = self.module(x)
        loss = F.cross_entropy(logits.float(), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        right = (logits.detach().argmax(1) == y).float().mean()
        self.loss = _smooth(self.loss, float(loss.detach()))
        self.accuracy = _smooth(self.accuracy, float(right))
        if not np.isfinite(self.loss):
            raise InputError(
                f"the loss stopped being finite in step {self.step}: start again with another --seed and --out"
            )

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The next images (B, C, H, W), shifted, mirrored and normalised, and their labels (B,)."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.order[0] != epoch:
            stream = torch.Generator().manual_seed(mix_seed(self.seed, 2 * epoch + 1))
            self.order = (epoch, torch.randperm(len(self.data), generator=stream))
        rows = self.order[1][place * self.batch : (place + 1) * self.batch]
        stream = torch.Generator().manual_seed(mix_seed(self.seed, 2 * self.step + 2))
        x = augment(self.data.pixels(rows), self.settings["shift"], self.settings["flip"], stream)
        if noise := self.settings.get("noise"):
            x += noise * torch.randn(x.shape, generator=stream)
        x = self.classifier.preprocess(x.to(self.device))
        return x.contiguous(memory_format=torch.channels_last), self.labels[rows].to(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, running statistics and momenta by name."""
        found = {f"weight.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        return found

    def numbers(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "loss": self.loss, "accuracy": self.accuracy}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """The inverse of ``tensors`` and ``numbers``; KeyError or RuntimeError where they do not fit."""
        self.module.load_state_dict(
            {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name.startswith("weight.")}
        )
        for name, parameter in self.module.named_parameters():
            if f"momentum.{name}" in tensors:
                kept = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = kept.detach()
        self.step, self.seconds = int(numbers["step"]), float(numbers["seconds"])
        self.loss, self.accuracy = float(numbers["loss"]), float(numbers["accuracy"])


def augment(x: Tensor, shift: int, flip: bool, stream: torch.Generator) -> Tensor:
    """Each of (B, C, H, W) moved by up to ``shift`` pixels each way, its edge repeated, and half of them mirrored."""
    count, _, height, width = x.shape
    down, right = torch.randint(-shift, shift + 1, (2, count, 1), generator=stream)
    mirrored = torch.rand(count, 1, generator=stream) < 0.5
    rows = (torch.arange(height) + down).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width) + right).clamp(0, width - 1)  # (B, W)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    # Advanced indices come first in the result: (B, H, W, C).
    return x[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _steps(run: _Run, budget: Budget, out: Path, test: ImageSet, held_out: str) -> Iterator[Progress]:
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
            yield Progress(run.step, run.epoch, images, run.seconds, run.loss, run.accuracy, speed, done)
    except (KeyboardInterrupt, GeneratorExit):
        if kept < run.step:
            _save(run, out)
        raise
    if step_before < run.step or model_is_stale(out):
        _finish(run, out, test, held_out)


def _finish(run: _Run, out: Path, test: ImageSet, held_out: str) -> None:
    """Measure the accuracy and write the model."""
    run.module.eval()
    accuracy = evaluate_classifier(run.classifier, test)
    training = {key: run.settings[key] for key in ("data", "seed", "shift", "flip", "noise") if key in run.settings}
    training |= {"epochs": round(run.epoch, 3), "steps": run.step, "seconds": round(run.seconds, 1)}
    notes = {"test": {**accuracy.overall.to_json(), "data": held_out}, "training": training}
    save_classifier(out, run.classifier, notes)


def _save(run: _Run, out: Path) -> None:
    weights.write_tensors(out / STATE, run.tensors(), {"identity": dict(run.settings), "numbers": run.numbers()})


def _statistics(data: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, to four digits, from a part of the images."""
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MEASURED].sort().values
    pixels = data.pixels(some)  # (N, C, H, W)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    return [round(m, 4) for m in mean.tolist()], [round(max(s, 0.01), 4) for s in std.tolist()]


def _smooth(shown: float, new: float) -> float:
    return new if np.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * new
