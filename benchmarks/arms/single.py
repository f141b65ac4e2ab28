"""sfumato with one stage: the same network, training and samplers, always at the full resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.arms import ladder
from benchmarks.arms.ladder import evaluations, sample
from sfumato.data import ImageSet

__all__ = ["SAMPLING", "evaluations", "sample", "train"]

SAMPLING = ("dpmpp-2m:6", "dpmpp-2m:8", "dpmpp-2m:10", "dpmpp-2m:16", "heun:7", "heun:10")


def train(data: ImageSet, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Train into ``out`` for ``seconds``."""
    return ladder.train(data, seconds, seed, out, {"stages": "1"})
