"""``sfumato train``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import counting, show
from sfumato.cli.options import option
from sfumato.cli.training import follow_training, part_of

if TYPE_CHECKING:
    from sfumato.engine import Progress

MinutesOption = Annotated[float | None, option("--minutes", help="Training budget in minutes. Default: 15.")]


def train(
    data: options.DataOption,
    out: options.RunFolder,
    minutes: MinutesOption = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    recipe: str | None = None,
    *,
    fitting: options.Fitting,
    settings: options.SetOption = None,
    common: options.Common,
) -> None:
    """Train a diffusion model on images, from scratch. Re-run the command to resume.

    Args:
        images: Training budget in images. Default: --minutes.
        steps: Training budget in optimiser steps. Default: --minutes.
        preset: Network size: one of {presets}. Default: by the size of the images.
        recipe: A published system of several models: {recipes}. Default: one diffusion model.
    """
    chosen = options.read_settings(settings)
    pixels, fit, seed, device = fitting.pixels, fitting.fit, common.seed, common.device
    options.check_folder(out)
    from sfumato.recipes import RECIPES
    from sfumato.training import TrainingRequest, training_steps

    train_steps = training_steps if recipe is None else RECIPES.find(recipe)
    request = TrainingRequest(data, out, minutes, images, steps, preset, chosen, pixels, fit, device, seed)
    budget = request.budget  # before the images are decoded: that may take its time
    dataset = options.load_images(data, pixels, fit)
    if dataset.captions is not None:
        from sfumato.conditions.sources import source_of
        from sfumato.config import Config

        with counting("reading captions") as progress:  # into the cache, with a bar: training finds them there
            source_of(dataset, chosen.get("text", Config.text), progress)
    last = follow_training(train_steps(replace(request, data=dataset)), f"training {out} for {budget}")
    given = f" --label {shlex.quote(dataset.classes[0])}" if dataset.classes else ""
    if dataset.captions is not None:
        given = f" --prompt {shlex.quote(dataset.captions[0][0])}"
    follow = f"sfumato sample {shlex.quote(str(out))}{given} -n 16 -o samples.png"
    show(_lines(out, str(budget), last, follow), _result(out, last, follow), common.json)


def _lines(out: Path, budget: str, last: Progress | None, follow: str) -> list[str]:
    if last is None:
        return [f"{out} has had its {budget} already: give a larger budget to train it further", f"next: {follow}"]
    lines = [
        f"trained {out}: {part_of(last)}{last.step:,} steps, {last.images:,} images, {last.seconds / 60:.1f} minutes, loss {last.loss:.4f}",
        f"next: {follow}",
    ]
    if last.skipped:
        lines.insert(
            1, f"{last.skipped:,} steps had no finite loss and were skipped: a smaller --set learning_rate= may help"
        )
    return lines


def _result(out: Path, last: Progress | None, follow: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {"model": str(out), "done_before": last is None, **(asdict(last) if last else {}), "next": follow}
