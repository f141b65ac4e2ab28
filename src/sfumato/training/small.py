"""Training a small network that is no generator: one loss, AdamW, and a folder that the same call goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.core.streams import mix_seed
from sfumato.engine.budget import Budget
from sfumato.engine.interrupts import whole_steps
from sfumato.engine.resume import STATE, model_is_stale, restore
from sfumato.training.loop import CHECKPOINT_SECONDS, SMOOTHING, Progress
from sfumato.training.run import GIVE_UP

WARMUP = 0.05  # share of the budget
CLIP = 1.0  # largest gradient norm

Loss = Callable[[torch.Generator], Tensor]
Save = Callable[[Path], None]  # writes the network into a folder


class SmallRun:
    """What training changes: weights and moments.

    Everything random in step i comes from streams seeded with (seed, i): a run that goes on takes the very same steps.

    Args:
        network: whose parameters are trained, in training mode while a step is made.
        loss: a step's loss; the generator is on the CPU, and what a layer draws by itself is seeded too.
        batch: images a step, for counting.
        rate, weight_decay: of AdamW; biases, gains and the like do not decay.
    """

    NUMBERS = ("step", "images", "seconds", "skipped", "failures", "shown")

    def __init__(
        self, network: nn.Module, loss: Loss, *, batch: int, rate: float, weight_decay: float, seed: int
    ) -> None:
        self.network, self.loss, self.batch, self.rate, self.seed = network, loss, batch, rate, seed
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
        self.step = self.images = self.skipped = self.failures = 0
        self.seconds = 0.0
        self.shown = math.nan  # the loss, smoothed over steps

    def learning_rate(self, fraction: float) -> float:
        """A short rise, then half a cosine down to 0 at the end of the budget."""
        rise = min(1.0, (fraction + 1e-3) / WARMUP)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))

    def advance(self, fraction: float) -> None:
        """One step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(fraction)
        seed = mix_seed(self.seed, self.step + 1)
        self.network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loss = self.loss(torch.Generator().manual_seed(seed))
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        if bool(torch.isfinite(norm)) and bool(torch.isfinite(loss)):
            self.optimizer.step()
            self.failures = 0
            value = float(loss.detach())
            self.shown = value if math.isnan(self.shown) else SMOOTHING * self.shown + (1 - SMOOTHING) * value
        else:
            self.skipped += 1
            self.failures += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.network.eval()
        self.step += 1
        self.images += self.batch

    def progress(self, fraction: float, speed: float) -> Progress:
        rate = self.learning_rate(fraction)
        return Progress(
            self.step,
            self.images,
            self.seconds,
            self.shown,
            (self.shown,),
            speed,
            min(fraction, 1.0),
            self.skipped,
            rate,
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.NUMBERS}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and moments by name."""
        found = {f"weight.{name}": p.detach() for name, p in self.parameters.items()}
        found |= {f"buffer.{name}": b for name, b in self.network.named_buffers()}
        for name, parameter in self.parameters.items():
            found |= {f"{key}.{name}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        return found

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of ``tensors`` and ``numbers``; KeyError or RuntimeError where they do not fit."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if tensors[f"weight.{name}"].shape != parameter.shape:
                    raise RuntimeError(f"{name} has another shape")
                parameter.copy_(tensors[f"weight.{name}"])
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    stored = tensors.get(f"{key}.{name}")
                    if stored is not None:
                        self.optimizer.state[parameter][key] = stored.to("cpu" if key == "step" else parameter.device)
            for name, buffer in self.network.named_buffers():
                buffer.copy_(tensors[f"buffer.{name}"])
        for name in self.NUMBERS:
            setattr(self, name, numbers[name])


def small_steps(
    run: SmallRun,
    budget: Budget,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    save: Save | None = None,
) -> Iterator[Progress]:
    """Train to the end of the budget, going on from where the folder ``out`` stands; nothing is written without one.

    Raises:
        InputError: the folder holds another run, or the loss stops being finite.
    """
    told = dict(identity or {})
    if out is not None:
        restore(run, out, told)
    return _steps(run, budget, out, told, save)


def _steps(
    run: SmallRun, budget: Budget, out: Path | None, identity: dict[str, Any], save: Save | None
) -> Iterator[Progress]:
    began = time.perf_counter() - run.seconds
    images, seconds, saved = run.images, run.seconds, time.perf_counter()
    unsaved, whole = False, True
    run.network.eval()
    if out is not None and save is not None and model_is_stale(out):
        save(out)
    try:
        while (fraction := budget.fraction(run.seconds, run.images, run.step)) < 1:
            whole = False
            with whole_steps():
                run.advance(fraction)
                run.seconds = time.perf_counter() - began
                whole = unsaved = True
            if run.failures >= GIVE_UP:
                raise InputError(
                    f"the loss has not been finite for {GIVE_UP} steps in a row (step {run.step}): "
                    "look at the images, or start again with another --seed"
                )
            after = budget.fraction(run.seconds, run.images, run.step)
            if after >= 1 or time.perf_counter() - saved >= CHECKPOINT_SECONDS:
                _save(run, out, identity, save)
                saved, unsaved = time.perf_counter(), False
                run.seconds = saved - began
            yield run.progress(after, (run.images - images) / max(run.seconds - seconds, 1e-9))
    except (KeyboardInterrupt, GeneratorExit):
        if unsaved and whole:
            _save(run, out, identity, save)
        raise


def _save(run: SmallRun, out: Path | None, identity: dict[str, Any], save: Save | None) -> None:
    """The state first, as in ``loop``: a model that is older than its state is still a model of this run."""
    if out is None or save is None:
        return
    checkpoint.write_tensors(out / STATE, run.tensors(), {"identity": identity, "numbers": run.numbers()})
    save(out)
