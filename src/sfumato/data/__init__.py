"""Data: images with labels or captions, from built-in sets, folders, .npz files and the Hub, decoded once into memory maps.

>>> from sfumato.data import load
>>> digits = load("digits")
>>> len(digits), digits.size, digits.channels, digits.classes[:3]
(1497, (8, 8), 1, ('0', '1', '2'))
>>> tuple(digits.pixels([0, 1]).shape)
(2, 1, 8, 8)
"""

from __future__ import annotations

from sfumato.data.builtin import SOURCES
from sfumato.data.cache import cache_folder
from sfumato.data.check import CaptionReport, Report, check
from sfumato.data.fit import fit_array, suggest_size
from sfumato.data.imageset import ImageSet
from sfumato.data.preview import captioned_grid, preview
from sfumato.data.sources import SPLITS, load

__all__ = ["SOURCES", "SPLITS", "CaptionReport", "ImageSet", "Report", "cache_folder", "captioned_grid", "check"]
__all__ += ["fit_array", "load", "preview", "suggest_size"]
