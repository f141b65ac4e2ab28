"""What a training gives to the engine: one objective.

A training is a network, its optimisers, and a loss for each step. All else (budget, checkpoints, resuming, losses that are
not finite, Ctrl-C, the log) is the engine's and the same for every training:

>>> class Regression(Objective):                                                        # doctest: +SKIP
...     def __init__(self, network, x, y):
...         super().__init__(network, [torch.optim.AdamW(network.parameters())], images_per_step=32)
...         self.x, self.y = x, y
...     def losses(self, moment):
...         rows = torch.randint(len(self.x), (32,), generator=moment.generator())
...         yield F.mse_loss(self.network(self.x[rows]), self.y[rows])
...     def learning_rate(self, moment):
...         return schedule.cosine(1e-3, moment.fraction, rise=0.05)
>>> for progress in train_steps(Regression(network, x, y), Budget(minutes=1)):          # doctest: +SKIP
...     print(progress.step, progress.loss)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.engine.average import Average
from sfumato.engine.progress import Progress


class Moment(NamedTuple):
    """When a step is made."""

    step: int  # how many were made before
    fraction: float  # of the budget that is used up, 0 to 1
    seed: int  # of everything random in this step

    def generator(self) -> torch.Generator:
        """A stream of random numbers for this step alone, on the CPU."""
        return torch.Generator().manual_seed(self.seed)


class Objective(ABC):
    """What is trained, and what each step lowers. ``losses`` and ``learning_rate`` must be given, the rest may be.

    Everything random in a step comes from ``moment.seed``: torch's global stream is seeded with it while the losses are
    taken, so a training that is stopped and resumed takes the very same steps.

    Args:
        network: in training mode while a step is made, in evaluation mode between steps.
        optimizers: each parameter that is trained belongs to one of them.
        images_per_step: for counting.
    """

    average: Average[Any] | None = None
    clip: float = math.inf  # largest norm of a step's gradient
    steps_per_epoch: float = math.inf
    advice: str = "start again with another --seed and another --out"  # where the loss stays not finite

    def __init__(self, network: nn.Module, optimizers: Sequence[Optimizer], images_per_step: int) -> None:
        self.network, self.optimizers, self.images_per_step = network, list(optimizers), images_per_step

    @abstractmethod
    def losses(self, moment: Moment) -> Iterable[Tensor]:
        """The step's losses, scalars. Their sum is lowered; each is differentiated before the next is asked for."""

    @abstractmethod
    def learning_rate(self, moment: Moment) -> float:
        """Of all optimisers, for this step."""

    def after_step(self, moment: Moment) -> str:
        """Called when the weights have moved; returns a remark for the user, or nothing."""
        return ""

    def metrics(self) -> dict[str, float]:
        """What was measured in the last step beside the loss, by name."""
        return {}

    def save(self, out: Path) -> None:
        """Write the model into the run folder; called at each checkpoint."""

    def preview(self, out: Path, step: int) -> None:
        """Write a picture of how far training is; called eight times in a budget."""

    def finish(self, out: Path, progress: Progress) -> None:
        """Called once, at the end of the budget, after the last checkpoint."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed training needs beside weights, average and the state of the optimisers: tensors and JSON values by name."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of ``state``; KeyError, RuntimeError or TypeError where it does not fit."""


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: matrices and convolutions decay; biases, gains and norms do not."""
    every = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
