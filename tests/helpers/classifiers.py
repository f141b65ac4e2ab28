"""Small classifiers and images for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato import classifiers
from sfumato.classifiers import Classifier
from sfumato.defences import HardeningRequest, hardening_steps
from sfumato.engine import Progress

DIGITS = tuple("0123456789")


def small_network(kind: torch.dtype = torch.float32) -> nn.Sequential:
    """With batch normalisation and dropout, so that the wrong mode shows."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 36, 5)).to(kind)


def pictures(count: int = 6, channels: int = 3, side: int = 8, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=kind)


def linear(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    """(K, D) as a classifier of images of D pixels."""
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return Classifier(nn.Sequential(nn.Flatten(), layer), labels=[str(i) for i in range(len(weight))])


def random_linear(classes: int = 2, pixels: int = 16) -> Classifier:
    return linear(torch.randn(classes, pixels, generator=torch.Generator().manual_seed(0)))


def images(count: int = 6, low: float = 0.3, high: float = 0.7) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def classifier_steps(out: Path, data: Any = "digits", **how: Any) -> Iterator[Progress]:
    """The steps of a training."""
    return classifiers.classifier_steps(classifiers.ClassifierRequest(data=data, out=out, device="cpu", **how))


def hardened(classifier: Classifier, out: Path, data: Any = "digits", **how: Any) -> Iterator[Progress]:
    """The steps of a hardening."""
    return hardening_steps(HardeningRequest(classifier=classifier, data=data, out=out, **how))


def same(a: Classifier, b: Classifier) -> bool:
    assert a.module is not None and b.module is not None
    return all(torch.equal(t, b.module.state_dict()[name]) for name, t in a.module.state_dict().items())


@lru_cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network on scikit-learn's digits, briefly trained on noisy images, and 60 images that it knows."""
    from sklearn.datasets import load_digits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bunch = load_digits()
        x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16  # type: ignore[attr-defined]
        y = torch.tensor(bunch.target)  # type: ignore[attr-defined]
        first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2)
        head = nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10)
        net = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), *head)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(300):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            F.cross_entropy(net((x[rows] + 0.2 * torch.randn(128, 1, 8, 8)).clamp(0, 1)), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return net, x[:60], y[:60]
