"""The log of a training: lines of JSON, and TensorBoard's files."""

from __future__ import annotations

import importlib.util
import json
import math
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato.core.files import atomic_write, finite, make_folder, why_not_written
from sfumato.engine.progress import Progress

LOG = "log.jsonl"
LOG_SECONDS = 2.0


class Log:
    """``log.jsonl`` in a run folder, a line of numbers every two seconds; and TensorBoard's curves, if it is installed.

    Lines after ``step`` are dropped when the log is opened: they are of steps that a resumed training makes again.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out, self.written = out, -math.inf
        _trim(out / LOG, step)

    def __enter__(self) -> Log:
        self._stack = ExitStack()
        self._board = _board(self.out, self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, progress: Progress, now: float, *, last: bool) -> None:
        """Write a line if two seconds have passed, or if it is the last one."""
        if self.written == -math.inf:
            self.written = now
        if now - self.written < LOG_SECONDS and not last:
            return
        self.written = now
        make_folder(self.out)
        try:
            with (self.out / LOG).open("a") as log:
                log.write(json.dumps(finite(asdict(progress)), allow_nan=False) + "\n")
        except OSError as error:
            raise why_not_written(self.out / LOG, error) or error from None
        if self._board is not None:
            shown = {"loss": progress.loss, "learning_rate": progress.learning_rate, **progress.metrics}
            shown |= {f"loss/{place}": loss for place, loss in enumerate(progress.losses)}
            shown["images_per_second"] = progress.images_per_second
            for name, value in shown.items():
                self._board.add_scalar(name, value, progress.step)


def _trim(file: Path, step: int) -> None:
    if file.exists():
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        atomic_write(file, "".join(line for line in lines if line.endswith("\n") and _logged_step(line) <= step))


def _logged_step(line: str) -> float:
    """The step of a line of the log; infinite for a damaged one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board(out: Path, stack: ExitStack) -> Any:
    """A TensorBoard writer if TensorBoard is installed, else None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(out / "tensorboard"))
    stack.callback(board.close)
    return board
