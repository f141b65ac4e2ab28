"""Which part of the differences is quality and which is variety: precision, recall, density and coverage.

Every set is described by balls around its images that reach to their k-th nearest neighbour in the same set.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.metrics.distances import Features, as_matrix

_BYTES = 64_000_000  # of one block of distances


def precision_recall(real: Features, fake: Features, k: int = 3) -> tuple[float, float]:
    """Share of fake images inside the real manifold, and of real images inside the fake one, each in [0, 1].

    Kynkaanniemi et al. 2019, equations 1 to 3. ``real``: (N, D), ``fake``: (M, D); N and M over k, else InputError.
    """
    x, y = _pair(real, fake, k)
    x_radii, y_radii = _radii(x, k), _radii(y, k)  # (N,), (M,)
    inside_real = torch.zeros(len(y), dtype=torch.bool)
    inside_fake = torch.zeros(len(x), dtype=torch.bool)
    for rows, distances in _blocks(x, y):  # (B, M)
        inside_real |= (distances <= x_radii[rows, None]).any(0)
        inside_fake[rows] = (distances <= y_radii).any(1)
    return float(inside_real.double().mean()), float(inside_fake.double().mean())


def density_coverage(real: Features, fake: Features, k: int = 5) -> tuple[float, float]:
    """Density (0 and up, 1 for equal distributions) and coverage (in [0, 1]) of the real manifold by fake images.

    Naeem et al. 2020: density counts in how many real balls a fake image lies, divided by k; coverage is the share of
    real balls with a fake image inside. ``real``: (N, D), ``fake``: (M, D); N and M over k, else InputError.
    """
    x, y = _pair(real, fake, k)
    radii = _radii(x, k)  # (N,)
    hits, covered = 0, 0
    for rows, distances in _blocks(x, y):  # (B, M)
        inside = distances <= radii[rows, None]
        hits += int(inside.sum())
        covered += int(inside.any(1).sum())
    return hits / (k * len(y)), covered / len(x)


def _pair(real: Features, fake: Features, k: int) -> tuple[Tensor, Tensor]:
    x, y = as_matrix(real), as_matrix(fake)
    if min(len(x), len(y)) <= k:
        problem = f"{k} nearest neighbours need more than {k} images in each set"
        raise InputError(f"{problem}, not {len(x)} and {len(y)}: give more images")
    centre = x.mean(0)  # distances stay, rounding errors shrink
    return x - centre, y - centre


def _radii(x: Tensor, k: int) -> Tensor:
    """(N,) squared distance of every row to its k-th nearest other row."""
    # The row itself comes out at distance 0, so it is the first of k + 1.
    return torch.cat([block.kthvalue(k + 1, dim=1).values for _, block in _blocks(x, x)])


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances (B, M) of some rows of x (N, D) to all rows of y (M, D), a bounded number of rows at a time."""
    step = max(1, _BYTES // (8 * len(y)))
    y_norms = y.square().sum(1)  # (M,)
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        norms = x[rows].square().sum(1, keepdim=True) + y_norms  # (B, M)
        squared = norms.addmm(x[rows], y.T, alpha=-2)  # float64: good to 1e-15 of the norms
        yield rows, torch.where(squared <= 1e-14 * norms, 0.0, squared)  # equal rows are at 0, not at rounding error
