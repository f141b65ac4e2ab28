"""Distances and manifolds against independent implementations and known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel

from sfumato.core.errors import InputError
from sfumato.metrics import density_coverage, frechet_distance, kernel_distance, manifold, precision_recall
from sfumato.metrics.distances import moments, squared_mmd

RNG = np.random.default_rng(7)


def sets(n: int = 200, m: int = 150, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    mix = RNG.normal(size=(d, d))
    return RNG.normal(size=(n, d)) @ mix, RNG.normal(size=(m, d)) @ mix * 0.8 + 0.5


# -- Frechet distance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (400, 400, 40)])
def test_frechet_against_scipy(n: int, m: int, d: int) -> None:
    a, b = sets(n, m, d)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(np.asarray(linalg.sqrtm(ca @ cb)))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(torch.from_numpy(a), (b.mean(0), cb)) == pytest.approx(expected, rel=1e-8)


def test_frechet_closed_form() -> None:
    # Diagonal covariances commute: the trace term is a sum of squared differences of standard deviations.
    s, t, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0]), np.array([0.0, -1.0, 2.0])
    found = frechet_distance((np.zeros(3), np.diag(s**2)), (shift, np.diag(t**2)))
    assert found == pytest.approx(np.sum(shift**2) + np.sum((s - t) ** 2), rel=1e-12)


def test_frechet_invariances() -> None:
    a, b = sets()
    rotation = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    distance = frechet_distance(a, b)
    assert distance > 0.5
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(a @ rotation + 3, b @ rotation + 3) == pytest.approx(distance, rel=1e-8)
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * distance, rel=1e-8)


def test_frechet_singular_and_equal() -> None:
    # Fewer images than dimensions: the covariance has no inverse, and sqrtm drifts into complex numbers.
    few = RNG.normal(size=(10, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(64, rel=1e-9)
    constant = np.ones((5, 3))
    assert frechet_distance(constant, constant * 2) == pytest.approx(3, rel=1e-12)


def test_moments() -> None:
    a, _ = sets()
    mean, cov = moments(a)
    np.testing.assert_allclose(mean, a.mean(0))
    np.testing.assert_allclose(cov, np.cov(a, rowvar=False))


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), "2 images or more"),
        (np.ones((5, 3)), np.ones((5, 4)), "feature space"),
        (np.ones((5, 3)), np.full((5, 3), np.nan), "not a number"),
        (np.ones(5), np.ones((5, 3)), "shape"),
        ((np.ones(3), np.ones((2, 2))), np.ones((5, 3)), "covariance"),
    ],
)
def test_frechet_refuses(a: Any, b: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        frechet_distance(a, b)


# -- kernel distance --------------------------------------------------------------------------------------------------


def test_mmd_against_double_loop() -> None:
    x, y = sets(14, 11, 5)

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return (float(u @ v) / len(u) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(k(u, v) for u in x for v in y) / (m * n)
    found = squared_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(within_x + within_y - 2 * across, rel=1e-10)


def test_kernel_distance_against_sklearn() -> None:
    x, y = sets(300, 300, 6)
    pairs = {"xx": (x, x), "yy": (y, y), "xy": (x, y)}
    k = {name: polynomial_kernel(*pair, degree=3, gamma=1 / 6, coef0=1) for name, pair in pairs.items()}
    for within in (k["xx"], k["yy"]):
        np.fill_diagonal(within, 0)
    full = k["xx"].sum() / (300 * 299) + k["yy"].sum() / (300 * 299) - 2 * k["xy"].mean()
    mean, std = kernel_distance(x, y, subsets=200, subset_size=150)
    assert std > 0
    assert abs(mean - full) < 4 * std / np.sqrt(200)  # the mean over subsets estimates the full value without bias


def test_kernel_distance_is_unbiased_and_seeded() -> None:
    x = RNG.normal(size=(2000, 4))
    y = RNG.normal(size=(2000, 4))
    mean, std = kernel_distance(x, y, subsets=30, subset_size=200)
    assert abs(mean) < std  # nothing differs: the estimate scatters around 0
    assert kernel_distance(x, y + 1, subsets=30, subset_size=200)[0] > 20 * std
    assert kernel_distance(x, y, subsets=5, seed=1) == kernel_distance(x, y, subsets=5, seed=1)
    assert kernel_distance(x, y, subsets=5, seed=1) != kernel_distance(x, y, subsets=5, seed=2)


# -- precision, recall, density, coverage -----------------------------------------------------------------------------


def brute(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def radii(x: np.ndarray) -> np.ndarray:
        return np.sort(pairwise_distances(x), axis=1)[:, k]

    apart = pairwise_distances(real, fake)
    in_real, in_fake = apart <= radii(real)[:, None], apart <= radii(fake)[None]
    return in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [64_000_000, 3000])
def test_manifolds_against_brute_force(monkeypatch: pytest.MonkeyPatch, k: int, block: int) -> None:
    monkeypatch.setattr(manifold, "_BYTES", block)  # the answer does not depend on how the work is cut up
    real, fake = sets(220, 170, 4)
    precision, recall, density, coverage = brute(real, fake, k)
    assert 0.1 < precision < 1 and 0.1 < coverage < 1
    np.testing.assert_allclose(precision_recall(real, fake, k), (precision, recall), atol=1e-12)
    np.testing.assert_allclose(density_coverage(real, fake, k), (density, coverage), atol=1e-12)


def test_manifolds_known_answers() -> None:
    real, _ = sets()
    assert precision_recall(real, real) == (1, 1)
    assert density_coverage(real, real)[1] == 1
    assert precision_recall(real, real + 1e4) == (0, 0)
    assert density_coverage(real, real + 1e4) == (0, 0)
    # Fake images all around a single real one: good, but nearly all of the others are missed.
    precision, recall = precision_recall(real, real[0] + 1e-3 * RNG.normal(size=(20, 12)))
    assert precision == 1 and recall <= 1 / len(real)
    # Five equal images, far from the origin: radius 0 must hold them despite rounding.
    equal = np.full((5, 3), 1e3 / 3)
    assert precision_recall(equal, equal) == (1, 1)
    with pytest.raises(InputError, match="more than 3 images"):
        precision_recall(real, real[:3])
