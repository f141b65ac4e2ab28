"""One training in memory: how a step is made, and the state that steps change."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato.core.streams import mix_seed
from sfumato.engine.objective import Moment, Objective
from sfumato.engine.progress import Progress

BACK_OFF = 3  # steps in a row without a finite loss after which the learning rate is halved
GIVE_UP = 30  # ... and after which training ends
SMOOTHING = 0.95  # of the losses and metrics that are shown
OPTIMIZER_STATE = (
    "step",
    "exp_avg",
    "exp_avg_sq",
    "momentum",
    "momentum_buffer",
)  # that optimisers keep for a parameter


class Trainer:
    """The state that training changes, all of it in ``tensors()`` and ``numbers()``.

    A step whose loss or gradient is not finite leaves weights, buffers, average and optimisers as they were. After three in
    a row the learning rate is halved.
    """

    COUNTERS = ("step", "updates", "images", "seconds", "skipped", "failures", "rate_factor")

    def __init__(self, objective: Objective, seed: int) -> None:
        self.objective, self.seed = objective, seed
        self.parameters = {name: p for name, p in objective.network.named_parameters() if p.requires_grad}
        kept = objective.network.state_dict().keys()  # without the buffers that follow from the configuration
        self.buffers = {name: b for name, b in objective.network.named_buffers() if name in kept}
        self.step = self.images = self.skipped = 0
        self.updates = 0  # steps that moved the weights
        self.failures = 0  # steps in a row that did not
        self.seconds = 0.0
        self.rate_factor = 1.0
        self.losses: tuple[float, ...] = ()  # smoothed
        self.metrics: dict[str, float] = {}
        self.learning_rate = 0.0  # of the last step
        self.remark = ""

    @property
    def epoch(self) -> float:
        return self.step / self.objective.steps_per_epoch

    def advance(self, fraction: float) -> bool:
        """One step; ``fraction`` of the budget is used up. Returns whether the weights moved."""
        objective = self.objective
        moment = Moment(self.step, fraction, mix_seed(self.seed, self.step + 1))
        self.remark = ""
        self.learning_rate = self.rate_factor * objective.learning_rate(moment)
        for optimizer in objective.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        before = {name: buffer.clone() for name, buffer in self.buffers.items()}
        losses, finite = self._differentiate(moment)
        self.step += 1
        self.images += objective.images_per_step
        if finite:
            for optimizer in objective.optimizers:
                optimizer.step()
            self.updates += 1
            self.failures = 0
            if objective.average is not None:
                objective.average.update(self.updates)
            shown = self.losses or losses
            self.losses = tuple(_smooth(old, new) for old, new in zip(shown, losses, strict=True))
            measured = objective.metrics()
            self.metrics = {name: _smooth(self.metrics.get(name, new), new) for name, new in measured.items()}
        else:
            with torch.no_grad():
                for name, buffer in self.buffers.items():
                    buffer.copy_(before[name])
            self.skipped += 1
            self.failures += 1
            if self.failures % BACK_OFF == 0:
                self.rate_factor /= 2
                self.remark = f"no finite loss in {self.failures} steps in a row: the learning rate is halved"
        for optimizer in objective.optimizers:
            optimizer.zero_grad(set_to_none=True)
        objective.network.eval()
        if finite:
            self.remark = objective.after_step(moment._replace(step=self.step))
        return finite

    def _differentiate(self, moment: Moment) -> tuple[tuple[float, ...], bool]:
        """The step's losses, and whether they and their gradient are finite; the gradient is clipped."""
        self.objective.network.train()
        losses: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(moment.seed)  # pyright: ignore[reportUnknownMemberType]
            for loss in self.objective.losses(moment):
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
                losses.append(loss.detach())
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        if math.isfinite(self.objective.clip):
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.objective.clip, norm)
        values = tuple(float(loss) for loss in losses)
        return values, bool(torch.isfinite(norm)) and all(map(math.isfinite, values))

    def progress(self, fraction: float, images_per_second: float) -> Progress:
        """Where training stands; ``fraction`` of the budget is used up."""
        return Progress(
            step=self.step,
            images=self.images,
            epoch=self.epoch,
            seconds=self.seconds,
            loss=sum(self.losses) if self.losses else math.nan,
            losses=self.losses,
            images_per_second=images_per_second,
            fraction=min(fraction, 1.0),
            skipped=self.skipped,
            learning_rate=self.learning_rate,
            metrics=dict(self.metrics),
            remark=self.remark,
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """Counters, what is shown, and what the objective keeps."""
        shown = {"losses": list(self.losses), "metrics": self.metrics}
        return {name: getattr(self, name) for name in self.COUNTERS} | shown | self.objective.state()[1]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, averages and the state of the optimisers by name, and what the objective keeps."""
        found = {f"weight.{name}": p.detach() for name, p in self.parameters.items()}
        found |= {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}
        if self.objective.average is not None:
            found |= self.objective.average.tensors()
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        for optimizer in self.objective.optimizers:
            for parameter, state in optimizer.state.items():
                found |= {f"{key}.{names[parameter]}": value for key, value in state.items() if value is not None}
        return found | self.objective.state()[0]

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of ``tensors`` and ``numbers``; KeyError, RuntimeError or TypeError where they do not fit."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if tensors[f"weight.{name}"].shape != parameter.shape:
                    raise RuntimeError(f"{name} has another shape")
                parameter.copy_(tensors[f"weight.{name}"])
            for name, buffer in self.buffers.items():
                buffer.copy_(tensors[f"buffer.{name}"])
        if self.objective.average is not None:
            self.objective.average.restore(tensors)
        for optimizer in self.objective.optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    stored = {key: tensors.get(f"{key}.{names[parameter]}") for key in OPTIMIZER_STATE}
                    on_cpu = "step" if not group.get("fused") else ""  # where torch keeps the count of an AdamW
                    optimizer.state[parameter] |= {
                        key: _like(value, parameter, "cpu" if key == on_cpu else parameter.device)
                        for key, value in stored.items()
                        if value is not None
                    }
        for name in self.COUNTERS:
            setattr(self, name, numbers[name])
        self.losses, self.metrics = tuple(numbers.get("losses", ())), dict(numbers.get("metrics", {}))
        self.objective.restore(tensors, numbers)


def _like(stored: Tensor, parameter: Tensor, device: Any) -> Tensor:
    """A copy, in the parameter's memory format where it has its shape."""
    like = parameter if stored.shape == parameter.shape else stored
    return torch.empty_like(like, device=device).copy_(stored).detach()


def _smooth(shown: float, new: float) -> float:
    return new if shown == new else SMOOTHING * shown + (1 - SMOOTHING) * new
