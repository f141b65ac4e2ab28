"""Editing Gaussian images with the exact denoiser, where the answers are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from helpers.oracles import GaussianImages, UnitNoise, affine
from sfumato import editing
from sfumato.editing import IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION, Edit, edited, start_level
from sfumato.ladder import Ladder, pool
from sfumato.samplers import SAMPLERS, Rung, levels_from

ONE, TWO, THREE = Ladder((4, 4), 1, 1), Ladder((4, 4), 1, 2), Ladder((4, 8), 1, 3)
CLIMBING = [name for name in SAMPLERS if name != "mean"]


def exact(ladder: Ladder, seed: int) -> GaussianImages:
    """Gaussian images that compute the gain of each level once."""
    images = GaussianImages.make(ladder, seed=seed)
    object.__setattr__(images, "gain", cache(images.gain))
    return images


def walk(sampler: str, images: GaussianImages, edit: Edit, steps: int, **how: Any) -> Callable[[UnitNoise], list[Rung]]:
    """The rungs of an edit with the exact denoiser of these images, ``steps`` in each stage."""

    def rungs(noise: UnitNoise) -> list[Rung]:
        climb = edited(SAMPLERS[sampler], edit, **how)
        return list(climb(images.denoise, images.ladder, noise, [steps] * images.ladder.stages))  # type: ignore[arg-type]

    return rungs


def law(sampler: str, images: GaussianImages, edit: Edit, steps: int, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what an edit draws."""
    rungs = walk(sampler, images, edit, steps, **how)
    return affine(lambda noise: rungs(noise)[-1].x_hat)


def holding(x: np.ndarray, size: tuple[int, int], **how: Any) -> Edit:
    """An edit of the image x, flat and in [-1, 1] space."""
    how = {"kind": IMAGE_TO_IMAGE, "stage": -1} | how
    return Edit(image=(torch.from_numpy(x).view(1, *size) + 1) / 2, **how)


def image_map(sampler: str, images: GaussianImages, strength: float, steps: int) -> tuple[np.ndarray, ...]:
    """(M, c, C): image to image draws from ``N(M x + c, C)``."""
    size, pixels = images.ladder.size, len(images.mean)

    def mean(x: np.ndarray) -> np.ndarray:
        return walk(sampler, images, holding(x, size, strength=strength), steps)(UnitNoise())[-1].x_hat.numpy().ravel()

    shift = mean(np.zeros(pixels))
    matrix = np.stack([mean(unit) - shift for unit in np.eye(pixels)], axis=1)
    return matrix, shift, law(sampler, images, holding(np.zeros(pixels), size, strength=strength), steps)[1]


# -- image to image ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.2, 0.7])
def test_image_to_image_by_the_ode_is_the_gaussian_flow(strength: float):
    """One stage: ``x' = mu + S^1/2 (S + s^2)^-1/2 (x + s e - mu)``."""
    images = exact(ONE, 2)
    sigma = start_level(ONE, strength).sigma
    matrix, shift, covariance = image_map("heun", images, strength, 100)
    flow = np.real(sqrtm(np.linalg.solve(images.covariance + sigma**2 * np.eye(16), images.covariance)))
    np.testing.assert_allclose(matrix, flow, atol=2e-3)
    np.testing.assert_allclose(shift, images.mean - flow @ images.mean, atol=2e-3)
    np.testing.assert_allclose(covariance, sigma**2 * flow @ flow.T, atol=4e-3)


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_image_to_image_by_the_markov_chain_is_the_posterior(strength: float):
    """``E[x' | z]`` with ``z = B x + s e``, on the finest of two stages."""
    images = exact(TWO, 2)
    stage, sigma = start_level(TWO, strength)
    gain, blend = images.gain(stage, sigma), images.blend(stage, sigma)
    matrix, _, covariance = image_map("ancestral", images, strength, 120)
    np.testing.assert_allclose(matrix, gain @ blend, atol=0.02)
    np.testing.assert_allclose(covariance, images.remaining(stage, sigma) + sigma**2 * gain @ gain.T, atol=0.05)


@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("heun", 40, 4e-3), ("dpmpp-2m", 60, 0.01)])
@pytest.mark.parametrize("ladder", [TWO, Ladder((4, 4), 1, 3)], ids=["S=2", "S=3"])
@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_images_of_the_data_stay_so(sampler: str, steps: int, tolerance: float, ladder: Ladder, strength: float):
    """Noised to any level at any stage and brought up again, what came from the data has the data's distribution."""
    images = exact(ladder, 3)
    matrix, shift, covariance = image_map(sampler, images, strength, steps)
    np.testing.assert_allclose(matrix @ images.mean + shift, images.mean, atol=tolerance)
    found = matrix @ images.covariance @ matrix.T + covariance
    np.testing.assert_allclose(found, images.covariance, atol=2 * tolerance)


def test_strength_runs_from_the_image_to_the_foot_without_a_leap():
    """Noise in the units of the finest stage (pooling halves it) rises with strength, across the stages too."""
    strengths = np.linspace(0.001, 1, 400)
    levels = [start_level(THREE, float(s)) for s in strengths]
    assert levels[-1] == (0, THREE.jumps[0])
    assert {level.stage for level in levels} == {0, 1, 2}
    noise = np.log([level.sigma * 2.0 ** (2 - level.stage) for level in levels])
    assert (np.diff(noise) > 0).all() and np.diff(noise)[40:].max() < 0.2
    for level in levels:
        assert THREE.ends[level.stage] < level.sigma <= THREE.jumps[level.stage]


def test_levels_from_the_middle_of_a_stage():
    whole = THREE.levels([4, 4, 6])
    for stage, count in enumerate((4, 4, 6)):
        for i, sigma in enumerate(whole[stage][:-1]):
            left = levels_from(THREE, (4, 4, 6), editing.Level(stage, sigma))
            np.testing.assert_allclose(left, whole[stage][i:], atol=1e-12)
        between = 0.5 * (whole[stage][1] + whole[stage][2])
        left = levels_from(THREE, (4, 4, 6), editing.Level(stage, between))
        assert left[0] == between and left[-1] == whole[stage][-1] and len(left) == count
    with pytest.raises(ValueError, match="not within its stage"):
        levels_from(THREE, (4, 4, 6), editing.Level(1, 39.0))


# -- inpainting ---------------------------------------------------------------------------------------------------------------


def right_half(ladder: Ladder) -> Tensor:
    """What is known: the left half, (1, H, W) bool."""
    known = torch.zeros(1, *ladder.size, dtype=torch.bool)
    known[..., : ladder.size[1] // 2] = True
    return known


@pytest.mark.parametrize("sampler", CLIMBING)
@pytest.mark.parametrize("resample", [0, 1])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_known_part_is_the_noised_image_on_every_rung(sampler: str, resample: int, strength: float):
    """RePaint's claim: there ``z ~ N(B x, s^2 I)`` at every level and stage, and after every jump."""
    images = exact(THREE, 3)
    x = np.random.default_rng(0).normal(0, 0.5, 32)
    known = right_half(THREE)
    edit = holding(x, THREE.size, kind=INPAINTING, strength=strength, known=known)
    rungs = walk(sampler, images, edit, 3, resample=resample)
    for i, rung in enumerate(rungs(UnitNoise())):
        here = (THREE.shrink(known.double()[None], rung.stage) == 1).numpy().ravel()
        mean, covariance = affine(lambda noise, i=i: rungs(noise)[i].z)
        expected = images.blend(rung.stage, rung.sigma) @ images.shrinkers[rung.stage] @ x
        np.testing.assert_allclose(mean[here], expected[here], atol=1e-6)
        np.testing.assert_allclose(covariance[np.ix_(here, here)], rung.sigma**2 * np.eye(here.sum()), atol=1e-5)


def smooth(ladder: Ladder, length: float) -> GaussianImages:
    """Images whose pixels are alike within ``length``."""
    places = np.stack(np.meshgrid(*map(np.arange, ladder.size), indexing="ij"), -1).reshape(-1, 2)
    apart = ((places[:, None] - places[None]) ** 2).sum(-1)
    covariance = 0.5 * np.exp(-apart / (2 * length**2)) + 0.01 * np.eye(len(places))
    return GaussianImages(ladder, np.zeros(len(places)), covariance)


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ancestral"])
@pytest.mark.parametrize("stages", [1, 3])
def test_painted_part_nears_its_conditional_mean(sampler: str, stages: int):
    """``E[unknown | known] = K known``. RePaint tends to it: how near it comes is stated here, with the default steps."""
    images = smooth(Ladder((8, 8), 1, stages), 2.0)
    x = np.linalg.cholesky(images.covariance) @ np.random.default_rng(0).standard_normal(64)
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    known[:, 2:5, 3:6] = False  # off the blocks of all stages
    inside, outside = ~known.numpy().ravel(), known.numpy().ravel()
    cross = images.covariance[np.ix_(inside, outside)]
    expected = cross @ np.linalg.solve(images.covariance[np.ix_(outside, outside)], x[outside])
    errors = []
    for resample in (0, 2, 8):
        edit = holding(x, (8, 8), kind=INPAINTING, known=known)
        mean, _ = law(sampler, images, edit, 6, resample=resample)
        np.testing.assert_allclose(mean[outside], x[outside], atol=1e-9)
        errors.append(float(np.linalg.norm(mean[inside] - expected) / np.linalg.norm(expected)))
    assert errors[1] < 0.75 * errors[0], errors  # what resampling is for
    assert errors[0] < 0.75 and errors[1] < 0.4 and errors[2] < 0.2, errors


# -- super-resolution -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", CLIMBING)
@pytest.mark.parametrize("at", [0, 1])
def test_enlarged_has_the_small_image_and_the_details_of_the_data(sampler: str, at: int):
    """With details that do not depend on the small image: ``N(Up y + Q mu, Q S Q)``, Q what the poolings destroy."""
    ladder = THREE
    images = GaussianImages.make(ladder, seed=1)
    shrink = images.shrinkers[at]
    enlarge = np.linalg.pinv(shrink)
    kept = enlarge @ shrink
    lost = np.eye(32) - kept
    separate = GaussianImages(ladder, images.mean, kept @ images.covariance @ kept + lost @ images.covariance @ lost)
    small = np.random.default_rng(5).normal(0, 0.3, len(shrink))
    edit = holding(small, images.size(at), kind=SUPER_RESOLUTION, stage=at)
    mean, covariance = law(sampler, separate, edit, 60)
    np.testing.assert_allclose(shrink @ mean, small, atol=1e-6)  # float32 in between
    np.testing.assert_allclose(shrink @ covariance @ shrink.T, 0, atol=1e-12)
    tolerance = 0.03 if sampler in ("euler", "ancestral") else 0.01
    np.testing.assert_allclose(mean, enlarge @ small + lost @ images.mean, atol=tolerance)
    np.testing.assert_allclose(covariance, lost @ images.covariance @ lost, atol=3 * tolerance)


@pytest.mark.parametrize("sampler", CLIMBING)
def test_small_image_is_noised_in_white(sampler: str):
    """The jump from the end of its stage: pooled, every state is the small image and white noise of that level."""
    images = exact(THREE, 1)
    small = np.random.default_rng(5).normal(0, 0.3, 2)
    rungs = walk(sampler, images, holding(small, (1, 2), kind=SUPER_RESOLUTION, stage=0), 3)
    for i, rung in enumerate(rungs(UnitNoise())):
        halve = images.shrinkers[0] @ np.linalg.pinv(images.shrinkers[rung.stage])
        mean, covariance = affine(lambda noise, i=i: rungs(noise)[i].z)
        np.testing.assert_allclose(halve @ mean, small, atol=1e-6)
        expected = (rung.sigma * 0.5**rung.stage) ** 2 * np.eye(2)
        np.testing.assert_allclose(halve @ covariance @ halve.T, expected, atol=1e-6)
        if i == 0:
            np.testing.assert_allclose(covariance, rung.sigma**2 * np.eye(len(covariance)), atol=1e-6)


def test_clipping_is_the_projection_on_what_fits():
    """In [0, 1], with the right means, and no image that is both lies nearer."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 8, 8, generator=numbers, dtype=torch.float64)
    small = torch.rand(2, 2, 2, generator=numbers, dtype=torch.float64).pow(3)  # many near 0
    small[0, 0, 0], small[1, 1, 1] = 0, 1
    fits = editing.clipped_towards(x, small, 2)
    assert fits.min() >= 0 and fits.max() <= 1
    torch.testing.assert_close(pool(pool(fits)), small.expand(3, 2, 2, 2), atol=1e-6, rtol=0)
    for _ in range(50):
        other = editing.clipped_towards(torch.rand(3, 2, 8, 8, generator=numbers, dtype=torch.float64), small, 2)
        # The angle at the projection is never acute, for a convex set.
        assert float(((x - fits) * (other - fits)).sum()) < 1e-5
