"""Draws of the smoothing noise: numbered, reproducible, and of many images in one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

PHASES = 4
SELECTION, ESTIMATION, ATTACK, CHECK = range(PHASES)  # what a draw is for: each phase has noise of its own
_SALT = 0x5300  # keeps the noise apart from that of attacks with the same seed
_SHARE = 16  # draws of one image in a batch: those past its decision, half of them on average, are lost


class Draws(NamedTuple):
    """Which draws a procedure wants next."""

    phase: int
    first: int  # number of the first
    count: int  # at most; it gets one or more


Procedure = Generator[Draws, np.ndarray, Any]
"""A procedure for one image: yields ``Draws``, is sent the labels (int64) of the first of them, returns its result."""
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # image, phase and number of each draw, (m,) each -> labels (m,)


class SmoothingNoise:
    """The noise of images ``x`` (B, ...), a stream for each phase of each; see ``core.streams``.

    Args:
        x: whose shape, type and device the noise has.
        seed, ids: that of image i depends on the seed and ids[i] (default i) alone.
    """

    def __init__(self, x: Tensor, seed: int = 0, ids: Tensor | Sequence[int] | None = None) -> None:
        numbers = torch.arange(len(x)) if ids is None else torch.as_tensor(ids, dtype=torch.int64).cpu()
        if numbers.shape != x.shape[:1]:
            raise InputError(f"{len(x)} images and ids of shape {tuple(numbers.shape)}: give one id an image")
        phases = (PHASES * numbers[:, None] + torch.arange(PHASES)).flatten()  # (PHASES B,)
        self.x, self.streams = x, Streams(seed, phases.tolist(), salt=_SALT, device=x.device)

    def __call__(self, rows: Tensor, phases: Tensor | int, draws: Tensor) -> Tensor:
        """(m, C, H, W) standard normal: draw number ``draws[j]`` of ``phases[j]`` for image ``rows[j]``."""
        place = (PHASES * rows + phases).to(self.x.device)
        return self.streams.at(place, draws.to(self.x.device)).normal(self.x.shape[1:]).to(self.x.dtype)


def run_procedures(
    procedures: Sequence[Procedure], predict: Predict, batch: int, progress: Callable[[int, int], None] | None = None
) -> list[Any]:
    """The result of each image's procedure; draws of several images share a batch, and those that are decided leave it.

    Args:
        procedures: one an image.
        predict: labels of draws.
        batch: draws in a pass.
        progress: called with (images done, images in all).
    """
    waiting = deque(enumerate(procedures))
    active: dict[int, Draws] = {}
    found: dict[int, Any] = {}

    def resume(row: int, labels: np.ndarray | None) -> None:
        try:
            active[row] = procedures[row].send(labels)  # type: ignore[arg-type]  # None starts a procedure
        except StopIteration as end:
            active.pop(row, None)
            found[row] = end.value
            if progress is not None:
                progress(len(found), len(procedures))

    while waiting or active:
        while waiting and len(active) < max(1, batch // _SHARE):
            resume(waiting.popleft()[0], None)
        asked = list(active.items())
        if not asked:
            continue
        counts = _shares([each.count for _, each in asked], batch)
        labels = predict(
            torch.tensor([row for row, _ in asked]).repeat_interleave(torch.tensor(counts)),
            torch.tensor([each.phase for _, each in asked]).repeat_interleave(torch.tensor(counts)),
            torch.cat([torch.arange(each.first, each.first + n) for (_, each), n in zip(asked, counts, strict=True)]),
        )
        parts = np.split(labels.cpu().numpy(), np.cumsum(counts)[:-1])
        for (row, _), part in zip(asked, parts, strict=True):
            resume(row, part)
    return [found[row] for row in range(len(procedures))]


def _shares(wanted: Sequence[int], batch: int) -> list[int]:
    """How many draws each image gets of a batch: as evenly as their needs allow, and one at least."""
    given = [0] * len(wanted)
    room = max(batch, len(wanted))
    for place, i in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        given[i] = min(wanted[i], room // (len(wanted) - place))
        room -= given[i]
    return given
