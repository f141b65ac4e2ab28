"""The arms of the comparison: one module each, with the same two functions and what is measured of them.

    train(data, seconds, seed, out) -> {"steps", "images", "parameters", "seconds"}
    sample(out, n, setting, seed) -> (n, C, H, W) in [0, 1], each class in turn
    evaluations(out, setting) -> calls of the network for an image
    SAMPLING: the settings to measure, cheapest first

An arm's training seconds hold its steps and what it writes meanwhile, not its start-up and no evaluation.
"""

from __future__ import annotations

import importlib
from typing import Any

ARMS = {"ladder": "ladder", "single": "single", "diffusers": "diffusers_unet", "diffusers-patched": "diffusers_patched"}


def find(name: str) -> Any:
    """The module of an arm."""
    return importlib.import_module(f"benchmarks.arms.{ARMS[name]}")
