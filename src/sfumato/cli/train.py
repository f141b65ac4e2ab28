"""``sfumato train``."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import Interrupted, counting, say, show, stderr
from sfumato.cli.options import option

if TYPE_CHECKING:
    from sfumato.training import Progress

MinutesOption = Annotated[float | None, option("--minutes", help="Training budget in minutes. Default: 15.")]
LINE_SECONDS = 10.0  # between two lines where there is no terminal


def train(
    data: options.DataOption,
    out: options.RunFolder,
    minutes: MinutesOption = None,
    images: Annotated[int | None, option("--images", help="Training budget in images. Default: --minutes.")] = None,
    steps: Annotated[
        int | None, option("--steps", help="Training budget in optimiser steps. Default: --minutes.")
    ] = None,
    preset: Annotated[
        str | None, option("--preset", help="Network size: one of {presets}. Default: by the size of the images.")
    ] = None,
    recipe: Annotated[
        str | None,
        option("--recipe", help="A published system of several models: {recipes}. Default: one diffusion model."),
    ] = None,
    *,
    fitting: options.Fitting,
    settings: options.SetOption = None,
    common: options.Common,
) -> None:
    """Train a diffusion model on images, from scratch. Re-run the command to resume."""
    chosen = options.read_settings(settings)
    pixels, fit, seed, device = fitting.pixels, fitting.fit, common.seed, common.device
    options.check_folder(out)
    from sfumato.engine.budget import Budget
    from sfumato.recipes import RECIPES
    from sfumato.training import training_steps

    steps_of = training_steps if recipe is None else RECIPES.find(recipe)
    budget = Budget.of(minutes, images, steps)  # before the images are decoded: that may take its time
    dataset = options.load_images(data, pixels, fit)
    if dataset.captions is not None:
        from sfumato.conditions.sources import source_of
        from sfumato.config import Config

        with counting("reading captions") as progress:  # into the cache, with a bar: training finds them there
            source_of(dataset, chosen.get("text", Config.text), progress)
    run = steps_of(
        dataset, out, minutes=minutes, images=images, steps=steps, preset=preset, settings=chosen, size=pixels, fit=fit,
        device=device, seed=seed,
    )  # fmt: skip
    last = None
    try:
        with closing(run), TrainingDisplay(f"training {out} for {budget}") as display:  # type: ignore[type-var]
            for last in run:
                display.update(last)
    except KeyboardInterrupt:
        kept = f"stopped after step {last.step}" if last else "stopped before the first step"
        raise Interrupted(f"{kept}: re-run the command to resume") from None
    given = f" --label {shlex.quote(dataset.classes[0])}" if dataset.classes else ""
    if dataset.captions is not None:
        given = f" --prompt {shlex.quote(dataset.captions[0][0])}"
    follow = f"sfumato sample {shlex.quote(str(out))}{given} -n 16 -o samples.png"
    show(_lines(out, str(budget), last, follow), _result(out, last, follow), common.json)


def _lines(out: Path, budget: str, last: Progress | None, follow: str) -> list[str]:
    if last is None:
        return [f"{out} has had its {budget} already: give a larger budget to train it further", f"next: {follow}"]
    lines = [
        f"trained {out}: {_part(last)}{last.step:,} steps, {last.images:,} images, {last.seconds / 60:.1f} minutes, loss {last.loss:.4f}",
        f"next: {follow}",
    ]
    if last.skipped:
        lines.insert(
            1, f"{last.skipped:,} steps had no finite loss and were skipped: a smaller --set learning_rate= may help"
        )
    return lines


def _part(progress: Progress) -> str:
    """``decoder: `` where a recipe trains several parts."""
    return f"{name}: " if (name := getattr(progress, "part", "")) else ""


def _result(out: Path, last: Progress | None, follow: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {"model": str(out), "done_before": last is None, **(asdict(last) if last else {}), "next": follow}


class TrainingDisplay:
    """A bar on a terminal, else a line every ten seconds: loss by stage, images a second, time left."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = stderr()
        self.first: Progress | None = None
        self.last_line = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        whole = Column(
            no_wrap=True, overflow="ellipsis", ratio=1
        )  # a narrow terminal loses the end of the line, not its shape
        text = TextColumn("{task.description}", table_column=whole)
        columns = TextColumn("{task.percentage:>3.0f}%"), BarColumn(bar_width=12), text
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal, expand=True)
        self.bar.start()
        self.task = self.bar.add_task("starting", total=1.0)
        say(self.title)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where training stands."""
        if self.first is None:
            self.first = progress
            if progress.step > 1:
                say(f"going on after step {progress.step - 1:,}")
        text = self.text(progress)
        self.bar.update(self.task, completed=progress.fraction, description=text)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            say(f"{progress.fraction:.0%}, {text}")

    def text(self, progress: Progress) -> str:
        """``decoder: 12:34 left, loss 0.231 (stages 0.101 0.080 0.050), 4,321 images/s, step 120``."""
        stages = " ".join(f"{loss:.3f}" for loss in progress.stage_losses)
        by_stage = f" (stages {stages})" if len(progress.stage_losses) > 1 else ""
        return (
            f"{_part(progress)}{self.left(progress)} left, loss {progress.loss:.3f}{by_stage}, "
            f"{progress.images_per_second:,.0f} images/s, step {progress.step:,}"
        )

    def left(self, progress: Progress) -> str:
        """Time left, from the share of the budget that this session has used up."""
        first = self.first or progress
        if progress.fraction <= first.fraction:
            return "?"
        rate = (progress.seconds - first.seconds) / (progress.fraction - first.fraction)
        return clock(rate * (1 - progress.fraction))


def clock(seconds: float) -> str:
    """``2:05`` or ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
