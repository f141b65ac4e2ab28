"""Training a generator: ``sum_t w_t ||Dec_t(z_{t-1}, c) - z_t||^2`` over batches of every stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.conditions import Condition, Kinds
from sfumato.conditions.sources import Source, source_of
from sfumato.config import SAMPLING, Config
from sfumato.core.devices import autocast_type, find_device
from sfumato.core.pictures import grid, save
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.denoisers import Denoiser
from sfumato.engine import Average, Moment, Objective, Progress, train_steps
from sfumato.engine.average import power_function
from sfumato.engine.schedule import trapezoid
from sfumato.generator import Generator
from sfumato.training.loss import measure, stage_loss
from sfumato.training.optimizer import optimizers
from sfumato.training.request import TrainingRequest

MEASURED = 4096  # images from which the data's root mean squares are taken


def train(data: str | Path | ImageSet, out: str | Path, **options: Any) -> Generator:
    """Train a generator to the end of its budget.

    >>> generator = train("fashion-mnist", "runs/fashion", minutes=15)                  # doctest: +SKIP

    Args:
        data, out: images and run folder.
        options: the other fields of :class:`TrainingRequest`, such as ``minutes``, ``settings`` or ``seed``.

    Raises:
        InputError: as :func:`training_steps`.
    """
    request = TrainingRequest(data, out, **options)
    for _ in training_steps(request):
        pass
    return Generator.from_pretrained(out, request.device)


def training_steps(request: TrainingRequest) -> Iterator[Progress]:
    """Train a generator step by step.

    The run folder gets ``model.safetensors`` and ``config.json`` (the averaged weights, ready to use), ``train_state/``
    (to resume from), ``log.jsonl``, ``samples/*.png``, and TensorBoard files if TensorBoard is installed. The same
    request again resumes; for budgets in images or steps the result is the same to the bit as without the stop. A larger
    budget trains a finished run further.

    Yields:
        Progress after each step.

    Raises:
        InputError: bad data, settings, budget or device, or a run folder that holds another run. All but what only
            later steps can show is raised here, before the first step is asked for.
    """
    budget, device = request.budget, find_device(request.device)
    dataset = request.dataset()
    config = request.config(dataset)
    objective = DenoisingObjective(config, dataset, device, request.seed, request.source and request.source(dataset))
    identity = {
        "config": {key: value for key, value in config.to_json().items() if key not in SAMPLING},
        "size": dataset.size,
        "classes": dataset.classes,
        "data": f"{dataset.name} ({len(dataset)} images, {dataset.fingerprint()})",
        "seed": request.seed,
        **objective.source.identity(),
    }
    return train_steps(objective, budget, seed=request.seed, out=Path(request.out), identity=identity)


class DenoisingObjective(Objective):
    """The weighted squared errors of all stages; a step takes a batch for each.

    Args:
        config: of network, loss and optimiser.
        data: the images.
        device: where training runs.
        seed: of the weights.
        source: of the conditions; None takes captions or else labels.
    """

    advice = "start again with a smaller --set learning_rate= and another --out"

    def __init__(
        self, config: Config, data: ImageSet, device: torch.device, seed: int, source: Source | None = None
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.source = source or source_of(data, config.text)
        ladder = config.ladder(data.size, data.channels)
        some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MEASURED].sort().values
        smooth, sharp = measure(2 * data.pixels(some.numpy()) - 1, ladder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(seed, 0))
            denoiser = config.denoiser(ladder, self.source.kinds, smooth_rms=smooth, sharp_rms=sharp)
        denoiser = denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shares = config.mix or (1.0,) * ladder.stages
        self.counts = [max(1, round(config.batch * share)) for share in shares]  # images of each stage in a step
        super().__init__(denoiser, optimizers(denoiser, config), sum(self.counts))
        self.denoiser = denoiser
        self.average: Average[Denoiser] = Average(denoiser, power_function(config.ema))
        self.clip = config.clip
        self.precision = autocast_type(device, config.precision)

    def generator(self) -> Generator:
        """The averaged model, sharing its weights with the training."""
        return Generator(self.average.module, self.data.classes, self.config, str(self.device))

    def learning_rate(self, moment: Moment) -> float:
        """Warm-up, a plateau, and a linear decay over the last ``decay`` of the budget."""
        config = self.config
        return trapezoid(config.learning_rate, moment.fraction, rise=config.warmup, decay=config.decay)

    def losses(self, moment: Moment) -> Iterator[Tensor]:
        """The loss of each stage, coarse first."""
        generator = moment.generator()
        for stage, count in enumerate(self.counts):
            x, c = self.batch(count, generator)
            with torch.autocast(self.device.type, self.precision or torch.bfloat16, enabled=self.precision is not None):
                loss = stage_loss(self.denoiser, self.config, x, c, stage, generator)
            yield loss

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """``count`` random images (B, C, H, W) in [-1, 1], and their conditions, some of them dropped."""
        index = torch.randint(len(self.data), (count,), generator=generator).numpy()
        x = (2 * self.data.pixels(index) - 1).to(self.device, non_blocking=True)
        if self.config.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            x[mirrored] = x[mirrored].flip(-1)
        c = self.source.batch(index, x, generator)
        if self.source.kinds.droppable:
            c = c.drop(self.config.drop, count, generator).to(self.device)
        return x, c

    def save(self, out: Path) -> None:
        """Write the averaged model."""
        self.generator().save(out)

    def preview(self, out: Path, step: int) -> None:
        """A grid of samples: two of each of the first eight classes, or of the conditions of eight images."""
        asked: dict[str, Any] = {}
        kinds = self.source.kinds
        if classes := len(self.data.classes) * (not kinds.image):
            asked["label"] = [i % min(classes, 8) for i in range(16)]
        elif kinds != Kinds():
            index = np.arange(16) % min(len(self.data), 8)
            x = (2 * self.data.pixels(index) - 1).to(self.device)
            asked["condition"] = self.source.batch(index, x, torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=[]):
            pixels = self.generator().sample(16, seed=0, **asked)
        (out / "samples").mkdir(parents=True, exist_ok=True)
        save(grid(pixels, columns=8), out / "samples" / f"{step:07d}.png")
