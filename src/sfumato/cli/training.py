"""What the verbs that train share: the bar, and Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from sfumato.cli.console import Interrupted, say, stderr

if TYPE_CHECKING:
    from sfumato.engine import Progress

LINE_SECONDS = 10.0  # between two lines where there is no terminal


def follow_training(steps: Iterator[Progress], title: str) -> Progress | None:
    """Use a training up and show where it stands; returns its last step, None where nothing was left to do.

    Raises:
        Interrupted: Ctrl-C.
    """
    last = None
    try:
        with closing(steps), TrainingDisplay(title) as display:  # type: ignore[type-var]
            for last in steps:
                display.update(last)
    except KeyboardInterrupt:
        kept = f"stopped after step {last.step:,}" if last else "stopped before the first step"
        raise Interrupted(f"{kept}: re-run the command to resume") from None
    return last


def part_of(progress: Progress) -> str:
    """``decoder: `` where a recipe trains several models."""
    return f"{progress.part}: " if progress.part else ""


class TrainingDisplay:
    """A bar on a terminal, else a line every ten seconds: time left, losses, metrics, images a second."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = stderr()
        self.first: Progress | None = None
        self.said = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        # A narrow terminal loses the end of the line, not its shape.
        whole = Column(no_wrap=True, overflow="ellipsis", ratio=1)
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
                say(f"resumed after step {progress.step - 1:,}")
        if progress.remark:
            say(progress.remark)
        text = self.text(progress)
        self.bar.update(self.task, completed=progress.fraction, description=text)
        if not self.console.is_terminal and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            say(f"{progress.fraction:.0%}, {text}")

    def text(self, progress: Progress) -> str:
        """``decoder: 12:34 left, loss 0.231 (0.101 0.080 0.050), training accuracy 91.2%, 4,321 images/s, step 120``."""
        losses = " ".join(f"{loss:.3f}" for loss in progress.losses)
        parts = [
            f"{part_of(progress)}{self.left(progress)} left",
            f"loss {progress.loss:.3f}{f' ({losses})' if len(progress.losses) > 1 else ''}",
            *(f"training {name} {value:.1%}" for name, value in progress.metrics.items()),
            f"{progress.images_per_second:,.0f} images/s",
            f"epoch {progress.epoch:.1f}" if progress.epoch else f"step {progress.step:,}",
        ]
        return ", ".join(parts)

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
