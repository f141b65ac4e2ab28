"""Recipes: whole systems of the lecture, put together from the package's parts and trained by one command.

Each lives in a file of its own, which enters it into ``RECIPES`` (how it is trained) and ``LOADERS`` (how its run
folder is loaded); ``load`` finds out which kind a folder holds.
"""

from __future__ import annotations

import sfumato.recipes.cascade_training
import sfumato.recipes.dalle2_training
import sfumato.recipes.imagen  # noqa: F401  (each enters itself)
from sfumato.recipes.dalle2 import varied
from sfumato.recipes.registry import LOADERS, RECIPES, load

__all__ = ["LOADERS", "RECIPES", "load", "varied"]
