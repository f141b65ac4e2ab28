"""A short training that tests stop and resume, in this process or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.oracles import TINY, pictures
from sfumato import TrainingRequest, training_steps

SETTINGS = {**TINY, "batch": "8", "learning_rate": "5e-3"}
STEPS = 16  # a checkpoint every 2, see GRIDS in training/loop.py


def start(out: Path, *, seed: int = 0, settings: dict[str, str] | None = None, data: Any = None, **budget: Any):
    budget = budget or {"steps": STEPS}
    chosen = {**SETTINGS, **(settings or {})}
    return training_steps(TrainingRequest(data or pictures(), out, settings=chosen, seed=seed, device="cpu", **budget))
