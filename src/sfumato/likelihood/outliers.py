"""Out-of-distribution detection by likelihood, and how well it works."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InputError


def png_bits(x: Tensor) -> Tensor:
    """(N,) bits per dimension that PNG needs for images (N, C, H, W) in [0, 1]: how complex they are.

    Simple images are likely under any model; ``bits - png_bits`` detects out-of-distribution images where bits alone rank
    them the wrong way round (Serra et al. 2020, arXiv 1909.11480).
    """
    from PIL import Image

    from sfumato.core.pictures import to_bytes

    sizes = []
    for image in to_bytes(x):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG", optimize=True)
        sizes.append(8 * len(file.getvalue()) / image.size)
    return torch.tensor(sizes, dtype=torch.float64)


@dataclass(frozen=True)
class Auroc:
    """How often an image from outside scores higher than one from inside (ties count half), with its 95% interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"auroc": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def auroc(inside: Tensor, outside: Tensor) -> Auroc:
    """Area under the curve that tells ``outside`` (M,) from ``inside`` (N,) by its higher scores.

    The interval is the fifth method of Newcombe (2006, Statistics in Medicine 25, 559), which solves for the areas whose
    own standard error covers the one that was found: it is sound at 0 and 1 too.

    Raises:
        InputError: nothing on one side, or numbers that are not finite.
    """
    if not len(inside) or not len(outside) or not bool(torch.cat([inside, outside]).isfinite().all()):
        raise InputError("an AUROC needs scores on both sides, all of them finite: give one image or more of each kind")
    m, n = len(outside), len(inside)
    order = torch.searchsorted(inside.sort().values.contiguous(), outside.contiguous(), side="left")
    upto = torch.searchsorted(inside.sort().values.contiguous(), outside.contiguous(), side="right")
    value = float((order + upto).double().mean()) / (2 * n)
    return Auroc(value, *(_newcombe(value, m, n, sign) for sign in (-1, 1)))


def _newcombe(value: float, m: int, n: int, sign: int) -> float:
    """The end of the interval below (sign -1) or above (1): bisection for ``|a - value| = 1.96 sqrt(V(a))``."""
    middle = (m + n) / 2 - 1

    def excess(area: float) -> float:
        spread = 1 + middle * ((1 - area) / (2 - area) + area / (1 + area))
        return abs(area - value) - 1.959964 * math.sqrt(area * (1 - area) * spread / (m * n))

    near, far = value, 0.0 if sign < 0 else 1.0
    for _ in range(60):
        half = (near + far) / 2
        near, far = (half, far) if excess(half) < 0 else (near, half)
    return (near + far) / 2
