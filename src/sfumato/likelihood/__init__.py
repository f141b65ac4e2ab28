"""How likely an image is under a generator: the ladder's bound, the exact change of variables, and the plain integral.

>>> from sfumato.likelihood import auroc
>>> import torch
>>> str(auroc(inside=torch.tensor([1.0, 2.0, 3.0]), outside=torch.tensor([2.5, 4.0])))
'0.833 (0.313 to 0.981)'
"""

from __future__ import annotations

from sfumato.likelihood.bound import Bound, DenoiseAt, bound
from sfumato.likelihood.figure import integration_figure
from sfumato.likelihood.flow import flow
from sfumato.likelihood.integral import Integral, integral
from sfumato.likelihood.outliers import Auroc, auroc, png_bits
from sfumato.likelihood.score import METHODS, Score, ScoreSettings, score

__all__ = [
    "METHODS",
    "Auroc",
    "Bound",
    "DenoiseAt",
    "Integral",
    "Score",
    "ScoreSettings",
    "auroc",
    "bound",
    "flow",
    "integral",
    "integration_figure",
    "png_bits",
    "score",
]
