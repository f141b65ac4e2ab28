"""Training a classifier: batches, augmentation, and the loss of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.classifiers.accuracy import evaluate_classifier
from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.heldout import Divided
from sfumato.classifiers.networks import NETWORKS
from sfumato.classifiers.saved import save_classifier
from sfumato.core.devices import autocast_type
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.engine import Moment, Objective, Progress, decay_groups
from sfumato.engine.schedule import trapezoid

MOST_IN_BATCH = 128
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP = 0.15  # share of the budget in which the learning rate rises; then it falls to 0, linearly
MEASURED = 4096  # images from which mean and standard deviation are taken


class Network:
    """A classifier's module on pixels, as training runs it: normalised here, in bf16 where that is faster.

    Unlike the classifier it runs in whatever mode the module is in, passes gradients to the weights, and counts nothing.
    """

    def __init__(self, classifier: Classifier) -> None:
        assert classifier.module is not None
        self.classifier, self.module = classifier, classifier.module
        self.number = autocast_type(classifier.device)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels, also outside [0, 1], as (B, K) float32 logits."""
        x = self.classifier.preprocess(x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.number or torch.bfloat16, enabled=self.number is not None):
            return self.module(x).float()


BatchLoss = Callable[[Network, Tensor, Tensor, Moment], tuple[Tensor, Tensor]]
"""From network, pixels (B, C, H, W), labels (B,) and moment to the loss, a number, and the (B, K) logits from which the
accuracy shown is taken. The module is in training mode."""


def standard(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the images as they are."""
    logits = network(x)
    return F.cross_entropy(logits, y), logits


class ClassifierObjective(Objective):
    """The mean loss of a batch of augmented images.

    The order of images depends on seed and epoch, everything else that is random in a step on seed and step.

    Args:
        data: training and test images; the accuracy on the latter is measured at the end.
        labels: (N,) of the training images, as the classifier numbers them.
        classifier: whose module is trained.
        settings: seed, shift, flip, perhaps noise, and what else is saved with the model.
        batch_loss: of one batch.
        rows: indices of the images to train on; all of them by default.
    """

    def __init__(
        self,
        data: Divided,
        labels: Tensor,
        classifier: Classifier,
        settings: Mapping[str, Any],
        batch_loss: BatchLoss = standard,
        rows: Tensor | None = None,
    ) -> None:
        self.divided, self.data = data, data.train
        self.labels, self.classifier, self.settings = labels, classifier, settings
        self.batch_loss = batch_loss
        self.device = classifier.device
        self.seed: int = settings["seed"]
        self.logits = Network(classifier)
        self.rows = torch.arange(len(self.data)) if rows is None else rows
        groups = decay_groups(self.logits.module.parameters(), WEIGHT_DECAY)
        optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        count = len(self.rows)
        super().__init__(self.logits.module, [optimizer], max(1, min(MOST_IN_BATCH, max(16, count // 16), count)))
        self.order = (-1, torch.empty(0, dtype=torch.int64))  # the epoch and its order
        self.accuracy = 0.0  # in the last step
        self.use_data(self.images_per_step)

    def use_data(self, count: int) -> None:
        """``count`` images of a batch are of the data; ``mixed`` adds the others."""
        self.real = count
        self.steps_per_epoch = len(self.rows) // count  # incomplete batches are dropped: each epoch has another order

    def learning_rate(self, moment: Moment) -> float:
        return trapezoid(LEARNING_RATE, moment.fraction, rise=WARMUP, decay=1 - WARMUP)

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        moment = moment._replace(seed=mix_seed(self.seed, 2 * moment.step + 2))
        x, y = self.batch(moment)
        loss, logits = self.batch_loss(self.logits, x, y, moment)
        self.accuracy = float((logits.detach().argmax(1) == y).float().mean())
        yield loss

    def metrics(self) -> dict[str, float]:
        return {"accuracy": self.accuracy}

    def batch(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """The step's images (B, C, H, W) and their labels (B,)."""
        epoch, place = divmod(moment.step, int(self.steps_per_epoch))
        if self.order[0] != epoch:
            stream = torch.Generator().manual_seed(mix_seed(self.seed, 2 * epoch + 1))
            self.order = (epoch, self.rows[torch.randperm(len(self.rows), generator=stream)])
        return self.batch_of(self.order[1][place * self.real : (place + 1) * self.real], moment.generator())

    def batch_of(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """The images ``rows`` and those mixed in, augmented, on the device: (B, C, H, W), and their labels (B,)."""
        x, y = self.mixed(self.data.pixels(rows), self.labels[rows], stream)
        x = augment(x, self.settings["shift"], self.settings["flip"], stream)
        if noise := self.settings.get("noise"):
            x += noise * torch.randn(x.shape, generator=stream)
        return x.to(self.device), y.to(self.device)

    def mixed(self, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of the data and their labels; a subclass may add others."""
        return x, y

    def finished(self) -> Classifier:
        """The classifier that training leaves."""
        return self.classifier

    def notes(self) -> dict[str, Any]:
        """What is saved with the trained classifier, JSON values by name."""
        kept = ("data", "seed", "shift", "flip", "noise")
        return {key: self.settings[key] for key in kept if key in self.settings}

    def finish(self, out: Path, progress: Progress) -> None:
        """Measure the accuracy and write the model."""
        classifier = self.finished()
        accuracy = evaluate_classifier(classifier, self.divided.test).overall.to_json()
        spent = {"epochs": round(progress.epoch, 3), "steps": progress.step, "seconds": round(progress.seconds, 1)}
        notes = {"test": {**accuracy, "data": self.divided.origin}, "training": self.notes() | spent}
        save_classifier(out, classifier, notes)


def new_classifier(data: ImageSet, network: str, seed: int, device: torch.device) -> Classifier:
    """An untrained classifier for these images, which normalises by their mean and standard deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 0))
        module = NETWORKS.find(network)(data.channels, data.size, len(data.classes))
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = _statistics(data)
    known = {"labels": data.classes, "size": data.size, "channels": data.channels}
    return Classifier(module, mean=mean, std=std, device=device, **known)


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


def _statistics(data: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, to four digits, from a part of the images."""
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MEASURED].sort().values
    pixels = data.pixels(some)  # (N, C, H, W)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    return [round(m, 4) for m in mean.tolist()], [round(max(s, 0.01), 4) for s in std.tolist()]
