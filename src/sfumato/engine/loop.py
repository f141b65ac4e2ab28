"""The training loop, for every training: from start, or from where it stopped, to the end of the budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.engine.budget import Budget
from sfumato.engine.interrupts import whole_steps
from sfumato.engine.log import Log
from sfumato.engine.objective import Objective
from sfumato.engine.progress import Progress
from sfumato.engine.resume import STATE, model_is_stale, restore
from sfumato.engine.trainer import GIVE_UP, Trainer

CHECKPOINT_SECONDS = 30.0
PREVIEWS = 8  # over a whole budget


def train_steps(
    objective: Objective,
    budget: Budget,
    *,
    seed: int = 0,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[Progress]:
    """Train to the end of the budget, step by step.

    With a run folder ``out``, a checkpoint is written every 30 seconds, at Ctrl-C and at the end; the same call resumes
    from it, and for budgets in images, steps or epochs ends with the same weights, to the bit, as without the stop.
    Without one nothing is written. Saving uses up none of a budget in minutes.

    Args:
        objective: what is trained.
        budget: how long.
        seed: of everything random in the steps.
        out: the run folder: ``train_state/``, ``log.jsonl``, TensorBoard files where TensorBoard is installed, and what
            the objective saves.
        identity: what must be the same for a run to be resumed, JSON values by name.

    Yields:
        Progress after each step.

    Raises:
        InputError: a folder that cannot be written to or that holds another run, before the first step is asked for; a
            loss that is not finite for 30 steps in a row.
    """
    trainer = Trainer(objective, seed)
    if out is not None:
        restore(trainer, out, dict(identity or {}))
    return _steps(trainer, budget, RunFolder(out, dict(identity or {})) if out is not None else None)


class RunFolder:
    """The run folder: checkpoints and log."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity

    def save(self, trainer: Trainer) -> None:
        """The state first: a model that is older than its state is still a model of this run."""
        description = {"identity": self.identity, "numbers": trainer.numbers()}
        checkpoint.write_tensors(self.path / STATE, trainer.tensors(), description)
        trainer.objective.save(self.path)


def _steps(trainer: Trainer, budget: Budget, folder: RunFolder | None) -> Iterator[Progress]:
    trainer.objective.network.eval()
    stale = folder is not None and model_is_stale(folder.path)  # the last session ended between two files
    if folder is not None and stale:
        trainer.objective.save(folder.path)
    first = trainer.step
    with ExitStack() as stack:
        log = stack.enter_context(Log(folder.path, trainer.step)) if folder is not None else None
        yield from _until_done(trainer, budget, folder, log)
    if folder is not None and (stale or trainer.step > first):
        trainer.objective.finish(folder.path, trainer.progress(1.0, 0.0))


def _until_done(trainer: Trainer, budget: Budget, folder: RunFolder | None, log: Log | None) -> Iterator[Progress]:
    began = time.perf_counter() - trainer.seconds
    saved = time.perf_counter()
    images, seconds = trainer.images, trainer.seconds  # before this session
    unsaved, whole = False, True
    try:
        while (fraction := _used(trainer, budget)) < 1:
            whole = False
            with whole_steps():
                trainer.advance(fraction)
                trainer.seconds = time.perf_counter() - began
                whole = unsaved = True
            if trainer.failures >= GIVE_UP:
                if folder is not None:
                    folder.save(trainer)  # the last good weights
                raise InputError(
                    f"the loss has not been finite for {GIVE_UP} steps in a row (step {trainer.step}): "
                    f"{trainer.objective.advice}"
                )
            after = _used(trainer, budget)
            speed = (trainer.images - images) / max(trainer.seconds - seconds, 1e-9)
            progress = trainer.progress(after, speed)
            now = time.perf_counter()
            if log is not None:
                log.write(progress, now, last=after >= 1)
            due = int(after * PREVIEWS) > int(fraction * PREVIEWS)
            if folder is not None and (now - saved >= CHECKPOINT_SECONDS or due or after >= 1):
                folder.save(trainer)
                if due:
                    trainer.objective.preview(folder.path, trainer.step)
                saved, unsaved = time.perf_counter(), False
                began += saved - now  # saving is no training: it uses up no budget, which so never ends in between
            yield progress
    except (KeyboardInterrupt, GeneratorExit):
        if folder is not None and unsaved and whole:  # half a step cannot be resumed from: the last checkpoint can
            folder.save(trainer)
        raise


def _used(trainer: Trainer, budget: Budget) -> float:
    return budget.fraction(seconds=trainer.seconds, images=trainer.images, steps=trainer.step, epochs=trainer.epoch)
