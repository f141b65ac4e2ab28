"""A small convolutional classifier of the data set at hand: a feature space for it, and the judge of labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.devices import autocast_type
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.engine import Budget, Moment, Objective, train_steps
from sfumato.engine.schedule import anneal

FEATURES = 128
_SIDE = 32  # pixels: larger images are averaged down to this before the first layer
_BATCH = 256
_RATE = 4e-3


class SmallClassifier(nn.Module):
    """Three convolutions with batch normalisation, a 4x4 mean, 128 features, one linear layer.

    Args:
        channels: of the images, 1, 3 or 4.
        classes: how many.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_layer(nn.Conv2d(channels, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(32)),
            *_layer(nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)),
            *_layer(nn.Conv2d(48, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)),
            nn.AdaptiveAvgPool2d(4),  # images of any size give the same number of features
            nn.Flatten(),
            *_layer(nn.Linear(64 * 16, FEATURES, bias=False), nn.BatchNorm1d(FEATURES)),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1], any size, as (B, 128), each 0 or more."""
        return self.body((4 * averaged_down(x, _SIDE) - 2).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] as (B, classes) logits."""
        return self.head(self.features(x))


def averaged_down(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) with ``side`` pixels on the longer side, by means over areas; smaller images as they are."""
    height, width = x.shape[2:]
    scale = side / max(height, width)
    if scale >= 1:
        return x
    return F.interpolate(x, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")


def _layer(linear: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return linear, norm, nn.ReLU()


def images_to_see(count: int) -> int:
    """How many images a training goes through: many passes over few, 4 over 60,000, and never more than 600,000."""
    return max(min(20 * count, 240_000), min(count, 600_000))


class FeatureObjective(Objective):
    """The cross-entropy of a SmallClassifier: AdamW, one cycle of learning rate and momentum (Smith & Topin 2018)."""

    def __init__(self, model: SmallClassifier, train: ImageSet, seed: int) -> None:
        self.model, self.data, self.labels = model, train, torch.from_numpy(train.labels)
        self.device = next(model.parameters()).device
        self.stream = torch.Generator().manual_seed(seed)
        self.rows = torch.empty(0, dtype=torch.int64)  # of all steps so far, and to the end of a pass
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
        batch = min(_BATCH, max(16, len(train) // 16))
        self.steps = max(1, images_to_see(len(train)) // batch)
        super().__init__(model, [self.optimizer], batch)

    def learning_rate(self, moment: Moment) -> float:
        """From a 25th up to the highest rate, then down to nearly nothing."""
        return self._cycle(moment.step, _RATE / 25, _RATE, _RATE / 25e4)

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        self._set_momentum(moment.step)
        first = moment.step * self.images_per_step
        while len(self.rows) < first + self.images_per_step:  # passes follow each other without a short batch
            self.rows = torch.cat([self.rows, torch.randperm(len(self.data), generator=self.stream)])
        rows = self.rows[first : first + self.images_per_step]
        pixels, labels = self.data.pixels(rows).to(self.device), self.labels[rows].to(self.device)  # (B, C, H, W), (B,)
        number = autocast_type(self.device)
        with torch.autocast(self.device.type, number, enabled=number is not None):
            yield F.cross_entropy(self.model(pixels).float(), labels)

    def _cycle(self, step: int, start: float, middle: float, end: float) -> float:
        """Cosines: from start to middle in a fifth of the steps, then to the end."""
        top = 0.2 * (self.steps + 1) - 1
        if step <= top:
            return anneal(start, middle, step / top)
        return anneal(middle, end, (step - top) / (self.steps - top))

    def _set_momentum(self, step: int) -> None:
        """It falls while the learning rate rises, and rises while that falls."""
        momentum = self._cycle(step, 0.95, 0.85, 0.95)
        for group in self.optimizer.param_groups:
            group["betas"] = (momentum, group["betas"][1])


def train_classifier(train: ImageSet, device: torch.device | str = "cpu", seed: int = 0) -> SmallClassifier:
    """Train a SmallClassifier on all of ``train``.

    The same data, seed, device and number of threads give the same weights. Well under a minute on two CPU cores.

    Raises:
        InputError: images without labels, or all of one class.
    """
    if train.labels is None or len(train.classes) < 2:
        raise InputError(
            f"{train.name} has no labels, or one class only, and a classifier needs two or more: "
            "use the feature space effnet-lite0 (pip install sfumato[metrics])"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(train.channels, len(train.classes))
    model = model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = FeatureObjective(model, train, seed)
    for _ in train_steps(objective, Budget(steps=objective.steps), seed=seed):
        pass
    return model.eval().requires_grad_(False)
