"""Training from start, or from where it stopped, to the end of the budget."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.conditions import Kinds
from sfumato.conditions.sources import Source
from sfumato.config import SAMPLING, Config, preset
from sfumato.core import checkpoint
from sfumato.core.devices import find_device
from sfumato.core.errors import InputError
from sfumato.core.files import atomic_write, finite, make_folder, why_not_written
from sfumato.core.pictures import grid, save
from sfumato.data import ImageSet, load
from sfumato.engine.budget import Budget
from sfumato.engine.interrupts import whole_steps
from sfumato.engine.resume import STATE, model_is_stale, restore
from sfumato.generator import Generator
from sfumato.training.run import GIVE_UP, Outcome, Run

LOG = "log.jsonl"
CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 2.0
GRIDS = 8  # sample grids over a whole budget
SMOOTHING = 0.95  # of the loss that is shown


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step."""

    step: int
    images: int  # of all stages
    seconds: float  # of training so far, earlier sessions included
    loss: float
    stage_losses: tuple[float, ...]  # coarse first, smoothed over steps
    images_per_second: float
    fraction: float  # of the budget, 0 to 1
    skipped: int  # steps without a finite loss
    learning_rate: float


def train(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    device: str = "auto",
    seed: int = 0,
) -> Generator:
    """Train a generator to the end of its budget; see ``training_steps``, of which this uses up every step."""
    for _ in training_steps(
        data, out, minutes=minutes, images=images, steps=steps, preset=preset, settings=settings, size=size, fit=fit,
        device=device, seed=seed,
    ):  # fmt: skip
        pass
    return Generator.from_pretrained(out, device)


def training_steps(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    device: str = "auto",
    seed: int = 0,
    source: Callable[[ImageSet], Source] | None = None,
) -> Iterator[Progress]:
    """Train step by step.

    The run folder ``out`` gets ``model.safetensors`` and ``config.json`` (the averaged weights, ready to use),
    ``train_state/`` (to go on from), ``log.jsonl``, ``samples/*.png``, and TensorBoard files if TensorBoard is
    installed. Stopping at any moment loses at most a minute of work: the same call goes on where the folder stands, and
    for budgets in images or steps the result is the same to the bit as without the stop. A larger budget goes on too.

    Args:
        data: a built-in name, a folder, an ``.npz`` file, ``hf:owner/name``, or an ImageSet.
        out: the run folder.
        minutes, images, steps: the budget, one of them; 15 minutes when none is given. Images count every stage's.
        preset: a name in ``config.PRESETS``; None picks by image size.
        settings: changes to the preset, as text (``{"learning_rate": "1e-3"}``); see ``config.Config``.
        size, fit: how images are brought to one size; see ``data.load``.
        device: auto, cpu or cuda.
        seed: of the weights and of everything random in training.
        source: what the images are told with, see ``conditions.sources``; None takes captions or else labels.

    Yields:
        Progress after each step.

    Raises:
        InputError: bad data, settings, budget or device, or a run folder that holds another run. All but what only
            later steps can show is raised here, before the first step is asked for.
    """
    budget = Budget.of(minutes, images, steps)
    chosen_device = find_device(device)
    out = Path(out)
    _check_writable(out)
    dataset = load(data, size=size, fit=fit)
    config = _config(dataset, preset, settings)
    run = Run(config, dataset, chosen_device, seed, source and source(dataset))
    identity = _identity(config, dataset, seed) | run.source.identity()
    restore(run, out, identity)
    _trim_log(out, run.step)
    return _steps(run, budget, out, identity)


def _check_writable(out: Path) -> None:
    """A place that cannot be written to is known before any work is done; nothing is left behind."""
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{out} cannot be made, for {there} is a file: give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written, permission to {there} is denied: give another --out")


def _trim_log(out: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that the run goes on from: those steps are made again."""
    file = out / LOG
    if file.exists():
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        atomic_write(file, "".join(line for line in lines if line.endswith("\n") and _logged_step(line) <= step))


def _logged_step(line: str) -> float:
    """The step of a line of the log; infinite for a damaged one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _config(dataset: ImageSet, name: str | None, settings: Mapping[str, str] | None) -> Config:
    return preset(dataset.size, name).with_settings(settings or {})


def _identity(config: Config, dataset: ImageSet, seed: int) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    identity = {
        "config": {key: value for key, value in config.to_json().items() if key not in SAMPLING},
        "size": list(dataset.size),
        "classes": list(dataset.classes),
        "data": f"{dataset.name} ({len(dataset)} images, {dataset.fingerprint()})",
        "seed": seed,
    }
    return json.loads(json.dumps(identity))


def _steps(run: Run, budget: Budget, out: Path, identity: dict[str, Any]) -> Iterator[Progress]:
    began = time.perf_counter() - run.seconds
    shown: list[float] = []
    saved = logged = time.perf_counter()
    unsaved, whole = False, True
    images_before, seconds_before = run.images, run.seconds
    with ExitStack() as stack:
        board = _board(out, stack)
        if model_is_stale(out):  # the last session ended between the two files of a checkpoint
            run.generator().save(out)
        try:
            while (fraction := budget.fraction(run.seconds, run.images, run.step)) < 1:
                whole = False
                with whole_steps():
                    outcome = run.advance(fraction)
                    run.seconds = time.perf_counter() - began
                    whole = unsaved = True
                if run.failures >= GIVE_UP:
                    raise InputError(
                        f"the loss has not been finite for {GIVE_UP} steps in a row (step {run.step}): "
                        "start again with a smaller --set learning_rate= and another --out"
                    )
                shown = _smooth(shown, outcome)
                after = budget.fraction(run.seconds, run.images, run.step)
                speed = (run.images - images_before) / max(run.seconds - seconds_before, 1e-9)
                progress = Progress(
                    run.step, run.images, run.seconds, sum(shown) if shown else math.nan,
                    tuple(shown) or (math.nan,) * len(outcome.stage_losses), speed, min(after, 1.0), run.skipped,
                    run.learning_rate(fraction),
                )  # fmt: skip
                now = time.perf_counter()
                if now - logged >= LOG_SECONDS or after >= 1:
                    logged = now
                    _log(out, progress, board)
                due = int(after * GRIDS) > int(fraction * GRIDS)
                if now - saved >= CHECKPOINT_SECONDS or due or after >= 1:
                    _save(run, out, identity)
                    if due:
                        _grid(run, out)
                    saved, unsaved = time.perf_counter(), False
                    began += saved - now  # saving is no training: it uses up no budget, which so never ends in between
                yield progress
        except (KeyboardInterrupt, GeneratorExit):
            if unsaved and whole:  # half a step cannot be gone on from: the last checkpoint can
                _save(run, out, identity)
            raise


def _smooth(shown: list[float], outcome: Outcome) -> list[float]:
    if not outcome.finite:
        return shown
    if not shown:
        return list(outcome.stage_losses)
    return [SMOOTHING * old + (1 - SMOOTHING) * new for old, new in zip(shown, outcome.stage_losses, strict=True)]


def _save(run: Run, out: Path, identity: dict[str, Any]) -> None:
    """The state first: a model that is older than its state is still a model of this run."""
    checkpoint.write_tensors(out / STATE, run.tensors(), {"identity": identity, "numbers": run.numbers()})
    run.generator().save(out)


def _grid(run: Run, out: Path) -> None:
    """A picture of what the average draws now: two of each of the first eight classes, or of what eight images are told."""
    asked: dict[str, Any] = {}
    kinds = run.source.kinds
    if classes := len(run.data.classes) * (not kinds.image):
        asked["label"] = [i % min(classes, 8) for i in range(16)]
    elif kinds != Kinds():
        index = np.arange(16) % min(len(run.data), 8)
        x = (2 * run.data.pixels(index) - 1).to(run.device)
        asked["condition"] = run.source.batch(index, x, torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        pixels = run.generator().sample(16, seed=0, **asked)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    save(grid(pixels, columns=8), out / "samples" / f"{run.step:07d}.png")


def _log(out: Path, progress: Progress, board: Any) -> None:
    line = json.dumps(finite(asdict(progress)), allow_nan=False) + "\n"
    make_folder(out)
    try:
        with (out / LOG).open("a") as log:
            log.write(line)
    except OSError as error:
        raise why_not_written(out / LOG, error) or error from None
    if board is not None:
        board.add_scalar("loss", progress.loss, progress.step)
        for stage, loss in enumerate(progress.stage_losses):
            board.add_scalar(f"loss/stage_{stage}", loss, progress.step)
        board.add_scalar("images_per_second", progress.images_per_second, progress.step)


def _board(out: Path, stack: ExitStack) -> Any:
    """A TensorBoard writer if TensorBoard is installed, else None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(out / "tensorboard"))
    stack.callback(board.close)
    return board
