"""Exact answers to test against: the chain as matrices, Gaussian images whose best denoiser is linear algebra, and tiny models.

Nothing here uses the formulas of ``sfumato.ladder``: pooling, P, Q and r are written out anew, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sfumato.data import ImageSet
from sfumato.ladder import Ladder, Level
from sfumato.samplers import SAMPLERS

TINY = {
    "channels": "16,16",
    "blocks": "1,1",
    "width": "32",
    "precision": "float32",
}  # a network for tests of the plumbing


def inside(ladder: Ladder, stage: int, share: float) -> float:
    """A noise level of a stage: 0 is its end, 1 its jump (to the bit: the sum may round to just above it)."""
    end, jump = ladder.ends[stage], ladder.jumps[stage]
    return min(end + share * (jump - end), jump)


def some_rungs(ladder: Ladder) -> list[Level]:
    """Levels all the way down a ladder, clean image first; both sides of every boundary among them."""
    rungs = []
    for stage in reversed(range(ladder.stages)):
        rungs += [Level(stage, inside(ladder, stage, share)) for share in (0.0, 0.03, 0.4, 0.7, 1.0)]
    return rungs


def pool_matrix(height: int, width: int) -> np.ndarray:
    """A as a matrix, (h/2 * w/2, h * w), for images flattened row by row."""
    rows = np.kron(np.eye(height // 2), [[0.5, 0.5]])
    columns = np.kron(np.eye(width // 2), [[0.5, 0.5]])
    return np.kron(rows, columns)


def coarse_matrix(height: int, width: int) -> np.ndarray:
    """P = Up A, the orthogonal projection on images that are constant over 2x2 blocks; 4 A^T is Up."""
    pool = pool_matrix(height, width)
    return 4 * pool.T @ pool


def log_density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(N,) of a normal distribution at x (N, D)."""
    normal = torch.distributions.MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance))
    return normal.log_prob(torch.from_numpy(x)).numpy()


def random_covariance(dimension: int, seed: int, low: float = 0.3, high: float = 2.0) -> np.ndarray:
    """A dense covariance with eigenvalues from ``low`` to ``high``."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))
    return (basis * np.geomspace(low, high, dimension)) @ basis.T


@dataclass(frozen=True)
class GaussianImages:
    """Grey images ``x ~ N(mean, covariance)`` on a ladder: every expectation of the chain in closed form."""

    ladder: Ladder
    mean: np.ndarray  # (H * W,)
    covariance: np.ndarray  # (H * W, H * W)

    @staticmethod
    def make(ladder: Ladder, seed: int = 0) -> GaussianImages:
        pixels = ladder.size[0] * ladder.size[1]
        return GaussianImages(
            ladder, np.random.default_rng(seed + 1).normal(0, 0.5, pixels), random_covariance(pixels, seed)
        )

    def size(self, stage: int) -> tuple[int, int]:
        shrink = 2 ** (self.ladder.stages - 1 - stage)
        return self.ladder.size[0] // shrink, self.ladder.size[1] // shrink

    @cached_property
    def shrinkers(self) -> list[np.ndarray]:
        """``A^(S-1-k)`` as a matrix, by stage."""
        matrices = [np.eye(len(self.mean))]
        for stage in range(self.ladder.stages - 1, 0, -1):
            matrices.append(pool_matrix(*self.size(stage)) @ matrices[-1])
        return matrices[::-1]

    def clean(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of x_k."""
        shrink = self.shrinkers[stage]
        return shrink @ self.mean, shrink @ self.covariance @ shrink.T

    def share(self, stage: int, sigma: float) -> float:
        """r_k(s)."""
        jump, plain = self.ladder.jumps[stage], self.ladder.plain[stage]
        return 1.0 if stage == 0 else min(max((jump - sigma) / (jump - plain), 0.0), 1.0)

    def projections(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        """P and Q of a stage (stage 0 has no detail to lose: there P is the identity)."""
        height, width = self.size(stage)
        identity = np.eye(height * width)
        smooth = coarse_matrix(height, width) if stage else identity
        return smooth, identity - smooth

    def blend(self, stage: int, sigma: float) -> np.ndarray:
        """B = P + r Q."""
        smooth, sharp = self.projections(stage)
        return smooth + self.share(stage, sigma) * sharp

    def noisy(self, stage: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of z(s)."""
        (mean, covariance), blend = self.clean(stage), self.blend(stage, sigma)
        return blend @ mean, blend @ covariance @ blend.T + sigma**2 * np.eye(len(mean))

    def gain(self, stage: int, sigma: float) -> np.ndarray:
        """G of ``E[x_k | z] = mu_k + G (z - B mu_k)``."""
        (_, covariance), blend = self.clean(stage), self.blend(stage, sigma)
        return np.linalg.solve(self.noisy(stage, sigma)[1], blend @ covariance).T

    def remaining(self, stage: int, sigma: float) -> np.ndarray:
        """The covariance of x_k that is left when z is known."""
        _, covariance = self.clean(stage)
        return covariance - self.gain(stage, sigma) @ self.blend(stage, sigma) @ covariance

    def denoise(self, z: Tensor, sigma: float, stage: int) -> Tensor:
        """The exact ``E[x_k | z]``, as samplers call it: (B, 1, h, w) float64."""
        mean, gain = self.clean(stage)[0], self.gain(stage, sigma)
        flat = z.flatten(1).numpy()
        return torch.from_numpy(mean + (flat - self.blend(stage, sigma) @ mean) @ gain.T).view_as(z)


class UnitNoise:
    """Noise for reading off an affine map: image 0 gets zeros, image i the i-th unit vector of all noise that is ever drawn."""

    def __init__(self, total: int = 0) -> None:
        self.total, self.used = total, 0
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, shape: Sequence[int]) -> Tensor:
        count = int(np.prod(shape))
        self.shapes.append(tuple(shape))
        rows = torch.zeros(1 + self.total, count, dtype=torch.float64)
        if self.total:
            rows[1 + self.used : 1 + self.used + count] = torch.eye(count, dtype=torch.float64)
        self.used += count
        return rows.view(-1, *shape)


class ExactStart(UnitNoise):
    """UnitNoise whose first draw makes ``z_0`` exactly the marginal of the data at J_0, not only N(0, J_0^2 I)."""

    def __init__(self, images: GaussianImages, total: int = 0) -> None:
        super().__init__(total)
        jump = images.ladder.jumps[0]
        mean, covariance = images.noisy(0, jump)
        self.shift = torch.from_numpy(mean / jump)
        self.factor = torch.from_numpy(np.linalg.cholesky(covariance) / jump)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        first = not self.shapes
        drawn = super().__call__(shape)
        return (drawn.flatten(1) @ self.factor.T + self.shift).view_as(drawn) if first else drawn


def affine(
    walk: Callable[[UnitNoise], Tensor], make: Callable[[int], UnitNoise] = UnitNoise
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of ``walk(noise)``, exactly, where the result is affine in the noise."""
    probe = make(0)
    walk(probe)
    images = walk(make(probe.used)).flatten(1).numpy()  # (1 + draws, pixels)
    matrix = images[1:] - images[0]
    return images[0], matrix.T @ matrix


def sampled(sampler: str, images: GaussianImages, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what a sampler draws with the exact denoiser of ``images``."""

    def walk(noise: UnitNoise) -> Tensor:
        rungs = SAMPLERS[sampler](images.denoise, images.ladder, noise, steps)  # type: ignore[arg-type]
        return list(rungs)[-1].x_hat

    return affine(walk, lambda total: ExactStart(images, total))


def pictures(
    count: int = 48,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    classes: int = 3,
    labelled: bool = True,
    seed: int = 0,
) -> ImageSet:
    """A small set of bright bars on noise: the class says at which height the bar lies."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 40, (count, *size, channels), dtype=np.uint8)
    labels = (np.arange(count) % classes).astype(np.int64)
    for image, label in zip(images, labels, strict=True):
        row = int(label) * size[0] // classes
        image[row : row + max(size[0] // classes, 1)] += 200
    names = tuple(["red", "green", "blue", "black", "white"][:classes])
    return ImageSet(images, labels if labelled else None, names if labelled else (), "bars", "train")
