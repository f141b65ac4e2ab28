"""One training run in memory: the network, its average, its optimiser, and how a step is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.conditions.sources import Source, source_of
from sfumato.config import Config
from sfumato.core.devices import autocast_type
from sfumato.core.streams import mix_seed
from sfumato.data import ImageSet
from sfumato.generator import Generator
from sfumato.training.objective import gamma_of_width, measure, stage_loss
from sfumato.training.optimizer import optimizers

MEASURED = 4096  # images from which the data's root mean squares are taken
BACK_OFF = 3  # steps in a row without a finite loss after which the learning rate is halved
GIVE_UP = 30  # ... and after which training ends


@dataclass(frozen=True)
class Outcome:
    """What one step did: the loss of each stage, coarse first, and whether the weights moved."""

    stage_losses: tuple[float, ...]
    finite: bool


class Run:
    """The state that training changes, all of it in ``tensors()`` and ``numbers``.

    Everything random in step i comes from a stream seeded with (seed, i), so a run that is stopped and resumed takes
    the very same steps.
    """

    def __init__(
        self, config: Config, data: ImageSet, device: torch.device, seed: int, source: Source | None = None
    ) -> None:
        self.config, self.data, self.device, self.seed = config, data, device, seed
        self.source = source or source_of(data, config.text)
        ladder = config.ladder(data.size, data.channels)
        some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MEASURED].sort().values
        smooth, sharp = measure(2 * data.pixels(some.numpy()) - 1, ladder)
        build: dict[str, Any] = {"smooth_rms": smooth, "sharp_rms": sharp}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(seed, 0))
            self.denoiser = config.denoiser(ladder, self.source.kinds, **build).to(
                device, memory_format=torch.channels_last
            )  # type: ignore[call-overload]
            self.average = config.denoiser(ladder, self.source.kinds, **build).to(
                device, memory_format=torch.channels_last
            )  # type: ignore[call-overload]
        self.average.load_state_dict(self.denoiser.state_dict())
        self.average.requires_grad_(False)
        self.parameters = dict(self.denoiser.named_parameters())
        self.names = {parameter: name for name, parameter in self.parameters.items()}
        self.averages = dict(self.average.named_parameters())
        self.optimizers = optimizers(self.denoiser, config)
        self.gamma = gamma_of_width(config.ema)
        self.step = 0
        self.updates = 0  # steps that moved the weights
        self.images = 0
        self.seconds = 0.0
        self.skipped = 0
        self.failures = 0  # in a row
        self.rate_factor = 1.0  # halved when the loss stops being finite
        self.kind = autocast_type(device, config.precision)
        shares = config.mix or (1.0,) * ladder.stages
        self.counts = [max(1, round(config.batch * share)) for share in shares]  # images of each stage in a step

    def generator(self) -> Generator:
        """The averaged model, sharing its weights with the run."""
        return Generator(self.average, self.data.classes, self.config, str(self.device))

    def learning_rate(self, fraction: float) -> float:
        """Warm-up, a plateau, and a linear fall to 0 over the last ``decay`` of the budget."""
        rise = min(1.0, (fraction + 1e-3) / self.config.warmup) if self.config.warmup else 1.0
        fall = min(1.0, (1 - min(fraction, 1)) / self.config.decay) if self.config.decay else 1.0
        return self.config.learning_rate * self.rate_factor * min(rise, fall)

    def advance(self, fraction: float) -> Outcome:
        """One step: a batch for each stage, one update of the weights and of their average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(fraction)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.step + 1))
        losses = []
        for stage, count in enumerate(self.counts):
            x, c = self._batch(count, generator)
            with torch.autocast(self.device.type, self.kind or torch.bfloat16, enabled=self.kind is not None):
                loss = stage_loss(self.denoiser, self.config, x, c, stage, generator)
            loss.backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.config.clip)
        finite = bool(torch.isfinite(norm)) and all(bool(torch.isfinite(loss)) for loss in losses)
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
            self.updates += 1
            self._average()
            self.failures = 0
        else:
            self.skipped += 1
            self.failures += 1
            if self.failures % BACK_OFF == 0:
                self.rate_factor /= 2
        self.denoiser.zero_grad(set_to_none=True)
        self.step += 1
        self.images += sum(self.counts)
        return Outcome(tuple(float(loss) for loss in losses), finite)

    def _batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """``count`` random images (B, C, H, W) in [-1, 1], and what they are told, some of it dropped."""
        index = torch.randint(len(self.data), (count,), generator=generator).numpy()
        x = (2 * self.data.pixels(index) - 1).to(self.device, non_blocking=True)
        if self.config.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            x[mirrored] = x[mirrored].flip(-1)
        c = self.source.batch(index, x, generator)
        if self.source.kinds.droppable:
            c = c.drop(self.config.drop, count, generator).to(self.device)
        return x, c

    def _average(self) -> None:
        """Power-function average: weight ``(1 - 1/t)^(gamma + 1)`` on what was before (EDM2, equation 13)."""
        keep = (1 - 1 / self.updates) ** (self.gamma + 1)
        with torch.no_grad():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self.averages.values()), list(self.parameters.values()), 1 - keep
            )

    # -- state ------------------------------------------------------------------------------------------------------

    NUMBERS = ("step", "updates", "images", "seconds", "skipped", "failures", "rate_factor")

    def numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.NUMBERS}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages and moments by name."""
        found = {f"weight.{name}": p.detach() for name, p in self.parameters.items()}
        found |= {f"average.{name}": p.detach() for name, p in self.averages.items()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                found |= {f"{key}.{self.names[parameter]}": value for key, value in state.items()}
        return found

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of ``tensors`` and ``numbers``; KeyError or RuntimeError where they do not fit."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if tensors[f"weight.{name}"].shape != parameter.shape:
                    raise RuntimeError(f"{name} has another shape")
                parameter.copy_(tensors[f"weight.{name}"])
                self.averages[name].copy_(tensors[f"average.{name}"])
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                for key in ("step", "exp_avg", "exp_avg_sq", "momentum"):
                    stored = tensors.get(f"{key}.{self.names[parameter]}")
                    if stored is not None:
                        like = parameter if stored.shape == parameter.shape else stored
                        optimizer.state[parameter][key] = torch.empty_like(like, device=parameter.device).copy_(stored)
        for name in self.NUMBERS:
            setattr(self, name, numbers[name])
