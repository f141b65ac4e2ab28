"""The state of a training of a classifier, and one step of it: a batch, a loss, an update of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.classifiers.classifier import Classifier
from sfumato.classifiers.networks import NETWORKS
from sfumato.core.devices import autocast_type
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet

MOST_IN_BATCH = 128
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP = 0.15  # share of the budget in which the learning rate rises; then it falls to 0, linearly
SMOOTHING = 0.98  # of the loss and accuracy that are shown
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


class Moment(NamedTuple):
    """When a step is made."""

    seed: int  # of everything random in its loss
    fraction: float  # of the budget, 0 to 1


class Objective(Protocol):
    """What a step lowers."""

    def __call__(self, network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """The loss, a number, and the (B, K) logits that the accuracy shown is taken from; the module is in training mode.

        ``x``: (B, C, H, W) pixels; ``y``: (B,) labels.
        """
        ...


def plain(network: Network, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the images as they are."""
    logits = network(x)
    return F.cross_entropy(logits, y), logits


class Run:
    """The state that training changes, all of it in ``tensors()`` and ``numbers()``.

    Everything random in step i comes from streams seeded with the seed and the step or epoch, so a run that is stopped
    and resumed takes the very same steps.

    Args:
        data: the images.
        labels: (N,) of the images, as the classifier numbers them.
        classifier: whose module is trained.
        settings: what makes it this run: seed, shift, flip, perhaps noise, and whatever else there is to tell.
        objective: what the steps lower.
        rows: which images to train on; all of them by default.
    """

    def __init__(
        self,
        data: ImageSet,
        labels: Tensor,
        classifier: Classifier,
        settings: Mapping[str, Any],
        objective: Objective = plain,
        rows: Tensor | None = None,
    ) -> None:
        self.data, self.labels, self.classifier, self.settings, self.objective = (
            data, labels, classifier, settings, objective,
        )  # fmt: skip
        self.device = classifier.device
        self.seed: int = settings["seed"]
        self.network = Network(classifier)
        self.module: nn.Module = self.network.module
        self.rows = torch.arange(len(data)) if rows is None else rows
        # Norms and biases are few and carry no excess: only the weights of convolutions and of the head decay.
        weighty = [parameter for parameter in self.module.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in self.module.parameters() if parameter.ndim <= 1]
        groups = [{"params": weighty, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        count = len(self.rows)
        self.batch = max(1, min(MOST_IN_BATCH, max(16, count // 16), count))
        self.real = self.batch  # of a batch, those that are data; see ``mixed``
        self.order = (-1, torch.empty(0, dtype=torch.int64))  # the epoch and its order
        self.step = 0
        self.seconds = 0.0
        self.loss = self.accuracy = float("nan")
        self.remark = ""  # what happened in the last step, if anything did

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.real  # the rest of a pass is left out: each is in another order

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    def advance(self, fraction: float) -> None:
        """One step: a batch, one update of the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (fraction + 1e-3) / WARMUP, (1 - fraction) / (1 - WARMUP))
        x, y = self._batch()
        self.module.train()
        self.remark = ""
        loss, logits = self.objective(self.network, x, y, Moment(mix_seed(self.seed, 2 * self.step + 2), fraction))
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
        """The next images (B, C, H, W) and their labels (B,)."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.order[0] != epoch:
            stream = torch.Generator().manual_seed(mix_seed(self.seed, 2 * epoch + 1))
            self.order = (epoch, self.rows[torch.randperm(len(self.rows), generator=stream)])
        rows = self.order[1][place * self.real : (place + 1) * self.real]
        return self.batch_of(rows, torch.Generator().manual_seed(mix_seed(self.seed, 2 * self.step + 2)))

    def batch_of(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """These images, and those mixed in: (B, C, H, W), augmented, on the device, with their labels (B,)."""
        x, y = self.mixed(self.data.pixels(rows), self.labels[rows], stream)
        x = augment(x, self.settings["shift"], self.settings["flip"], stream)
        if noise := self.settings.get("noise"):
            x += noise * torch.randn(x.shape, generator=stream)
        return x.to(self.device), y.to(self.device)

    def mixed(self, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of the data and their labels, to which others may be added."""
        return x, y

    def finished(self) -> Classifier:
        """The classifier that training leaves, in evaluation mode."""
        self.module.eval()
        return self.classifier

    def notes(self) -> dict[str, Any]:
        """What to keep with the trained classifier, JSON values by name."""
        kept = ("data", "seed", "shift", "flip", "noise")
        found = {key: self.settings[key] for key in kept if key in self.settings}
        return found | {"epochs": round(self.epoch, 3), "steps": self.step, "seconds": round(self.seconds, 1)}

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
        self.module.load_state_dict(part(tensors, "weight."))
        for name, parameter in self.module.named_parameters():
            if f"momentum.{name}" in tensors:
                kept = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = kept.detach()
        self.step, self.seconds = int(numbers["step"]), float(numbers["seconds"])
        self.loss, self.accuracy = float(numbers["loss"]), float(numbers["accuracy"])


def new_classifier(data: ImageSet, network: str, seed: int, device: torch.device) -> Classifier:
    """An untrained one for such images, normalised by their statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(seed, 0))
        module = NETWORKS.find(network)(data.channels, data.size, len(data.classes))
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = _statistics(data)
    return Classifier(
        module, mean=mean, std=std, labels=data.classes, size=data.size, channels=data.channels, device=device
    )


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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


def _smooth(shown: float, new: float) -> float:
    return new if np.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * new
