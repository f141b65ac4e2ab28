"""Averages of the weights over the steps of a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Share = Callable[
    [int], float
]  # from the number of an update, 1 and up, to the share of the newest weights in the average


class Average(Generic[Network]):
    """``average <- average + share(t) (weights - average)`` after update t; it begins at the weights as they are.

    Args:
        network: whose parameters are averaged; its buffers are not.
        share: the rule, such as :func:`power_function`.
    """

    def __init__(self, network: Network, share: Share) -> None:
        self.share = share
        self.module: Network = copy.deepcopy(network).requires_grad_(False)
        self.averages = dict(self.module.named_parameters())
        self._pairs = [(self.averages[name], parameter) for name, parameter in network.named_parameters()]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the weights after update ``number``."""
        averages, weights = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(list(averages), list(weights), self.share(number))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    def tensors(self) -> dict[str, Tensor]:
        """The averages, ``average.NAME``."""
        return {f"average.{name}": average.detach() for name, average in self.averages.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``; KeyError where one is missing."""
        for name, average in self.averages.items():
            average.copy_(tensors[f"average.{name}"])


def power_function(width: float) -> Share:
    """Weight ``(1 - 1/t)^(gamma + 1)`` on what was before (EDM2, Karras et al. 2024, equation 13).

    Args:
        width: relative width of the average, below 0.29; gamma follows from it.
    """
    gamma = gamma_of_width(width)
    return lambda number: 1 - (1 - 1 / number) ** (gamma + 1)


def gamma_of_width(width: float) -> float:
    """The exponent of the power-function average whose relative width is ``width`` (EDM2, equation 17)."""
    low, high = 0.0, 1e6
    for _ in range(200):  # sigma_rel(gamma) = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) falls with gamma
        middle = (low + high) / 2
        if math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) > width:
            low = middle
        else:
            high = middle
    return (low + high) / 2
