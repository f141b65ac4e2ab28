"""How far apart two sets of images are in a feature space: Frechet distance and kernel distance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfumato.core.errors import InputError

Features = np.ndarray | Tensor  # (N, D), one row an image
Moments = tuple[Features, Features]  # mean (D,) and covariance (D, D)


def moments(features: Features) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of (N, D) features, in float64. Raises InputError for N < 2."""
    x = as_matrix(features)
    if len(x) < 2:
        raise InputError(f"a distance needs 2 images or more in each set, and one has {len(x)}: give more")
    mean = x.mean(0)  # (D,)
    centred = x - mean  # (N, D)
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(a: Features | Moments, b: Features | Moments) -> float:
    """Frechet distance between the Gaussians fitted to two sets of features; 0 for equal moments.

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Dowson & Landau 1982; Heusel et al. 2017, as FID).

    Each of ``a`` and ``b`` is (N, D) features or a pair of mean (D,) and covariance (D, D). The estimate from N images
    lies above the distance of the distributions, by an amount that shrinks with N: compare only at equal N.

    The trace of the root is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``: the two roots are symmetric, so
    no complex numbers arise, and small eigenvalues are not lost to rounding as they are in a root of the product.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _moments_of(a), _moments_of(b)
    if mean_a.shape != mean_b.shape:
        problem = f"features of {len(mean_a)} and of {len(mean_b)} numbers an image cannot be compared"
        raise InputError(f"{problem}: take both from the same feature space")
    root = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    return max(0.0, float(distance))


def kernel_distance(
    a: Features, b: Features, *, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance (KID, Binkowski et al. 2018) of two (N, D) sets: mean and standard deviation over random subsets.

    The unbiased squared maximum mean discrepancy with the kernel ``(x.y / D + 1)^3``; it may fall below 0 and does not
    depend on N on average. A subset takes ``subset_size`` rows of each set without repetition, or half of the smaller
    set where that is less, so that subsets differ.
    """
    x, y = as_matrix(a), as_matrix(b)
    size = min(subset_size, max(2, min(len(x), len(y)) // 2))
    if min(len(x), len(y)) < 2:
        raise InputError(f"a distance needs 2 images or more in each set, not {len(x)} and {len(y)}: give more")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        rows_x, rows_y = (torch.from_numpy(rng.permutation(len(z))[:size]) for z in (x, y))
        values.append(squared_mmd(x[rows_x], y[rows_y]))
    return float(np.mean(values)), float(np.std(values))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (M, D) and (N, D), kernel ``(x.y / D + 1)^3``."""

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def within(u: Tensor) -> Tensor:  # mean over pairs of two different images
        k = kernel(u, u)
        return (k.sum() - k.trace()) / (len(u) * (len(u) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def as_matrix(features: Features) -> Tensor:
    """Features as a (N, D) float64 tensor on the CPU; InputError for another shape or for NaN and infinity."""
    x = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if x.ndim != 2:
        raise InputError(f"features must be (images, numbers), not of shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("some features are infinite or not a number: look at the images and at the feature space")
    return x


def _moments_of(given: Features | Moments) -> tuple[Tensor, Tensor]:
    if not isinstance(given, tuple):
        return moments(given)
    mean, cov = (torch.as_tensor(part).detach().to("cpu", torch.float64) for part in given)
    if cov.shape != (len(mean), len(mean)):
        raise InputError(f"a mean of shape {tuple(mean.shape)} does not go with a covariance of {tuple(cov.shape)}")
    return mean, cov


def _root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
