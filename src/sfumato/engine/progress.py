"""Where a training stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step."""

    step: int
    images: int
    epoch: float  # passes over the training images; 0 where a training has none
    seconds: float  # of training so far, earlier sessions included
    loss: float  # smoothed over steps, like what follows
    losses: tuple[float, ...]  # of a generator by stage, coarse first
    images_per_second: float
    fraction: float  # of the budget, 0 to 1
    skipped: int  # steps without a finite loss
    learning_rate: float
    metrics: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # what else the objective measures, such as accuracy
    remark: str = ""  # what happened in this step, if anything did
    part: str = ""  # what is being trained, where a recipe trains several models
