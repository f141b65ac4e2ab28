"""The arms of the generative comparisons. An arm has

    sampling: the settings to measure, cheapest first
    train(data, seconds, seed, out) -> {"steps", "images", "parameters", "seconds"}
    sample(out, count, setting, seed, c) -> (count, C, H, W) in [0, 1]; without a condition c each class in turn
    evaluations(out, setting) -> calls of the network for an image

An arm's training seconds hold its steps and what it writes meanwhile, not its start-up and no evaluation.
"""

from __future__ import annotations

import importlib
from typing import Any

ARMS = {
    "ladder": "ours.LADDER",
    "single": "ours.SINGLE",
    "diffusers": "diffusers.CLASSES",
    "diffusers-patched": "diffusers.PATCHED",
    "text-ladder": "ours.TEXT_LADDER",
    "text-cascade": "ours.TEXT_CASCADE",
    "text-diffusers": "diffusers.TEXTS",
}


def find(name: str) -> Any:
    """An arm by its name."""
    module, value = ARMS[name].split(".")
    return getattr(importlib.import_module(f"benchmarks.arms.{module}"), value)
