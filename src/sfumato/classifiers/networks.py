"""Small networks to train: a convolutional one for grey images, a residual one for colour. They take normalised pixels.

Both halve the image until its shorter side has some 7 to 14 pixels, and average what is left, so that any size from 8 to
64 pixels (and larger ones, at a cost) can be learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.registry import Registry

NETWORKS: Registry[Callable[[int, tuple[int, int], int], nn.Module]] = Registry("network")
"""Networks by name: functions from (channels, (height, width), classes) to a module, (B, C, H, W) -> (B, classes)."""

_SMALLEST = 7  # pixels a side: the last map is not halved below this


def suggest_network(channels: int) -> str:
    """The network that suits images of so many channels."""
    return "convnet" if channels == 1 else "resnet"


@NETWORKS.add("convnet")
class ConvNet(nn.Module):
    """3x3 convolutions with batch normalisation: one at full size, two after each halving, one more; a 4x4 average.

    The average keeps apart where in the image something is, which centred pictures of one thing are told by.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(channels, width, 1)]
        before = width
        for i in range(1, max(2, halvings(size)) + 1):
            here = width * min(2**i, 4)
            stride = 2 if i <= halvings(size) else 1
            layers += [*_convolution(before, here, stride), *_convolution(here, here, 1)]
            before = here
        self.body = nn.Sequential(*layers, *_convolution(before, before, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * before, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # (B, classes)


@NETWORKS.add("resnet")
class ResNet(nn.Module):
    """Residual blocks of two 3x3 convolutions with batch normalisation before them (He et al. 2016b); global average."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        widths = [width * min(2**i, 4) for i in range(max(2, halvings(size) + 1))]
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        before = width
        for i, here in enumerate(widths):
            for block in range(blocks):
                stride = 2 if block == 0 and 0 < i <= halvings(size) else 1
                layers.append(_Block(before, here, stride))
                before = here
        self.body = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.body(self.stem(x))))
        return self.head(x.mean((2, 3)))  # (B, classes)


class _Block(nn.Module):
    def __init__(self, before: int, here: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(here)
        self.conv1 = nn.Conv2d(before, here, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(here, here, 3, padding=1, bias=False)
        changes = stride > 1 or before != here
        self.shortcut = nn.Conv2d(before, here, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(first)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(first))))


def halvings(size: tuple[int, int]) -> int:
    """How often an image is halved: until its shorter side is the smallest map, and once in any case."""
    side, count = min(size) / 2, 1
    while side / 2 >= _SMALLEST:
        side, count = side / 2, count + 1
    return count


def _convolution(before: int, here: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(before, here, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(here), nn.ReLU()


def _initialise(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.mul_(0.5)  # a start near equal probabilities
        head.bias.zero_()
