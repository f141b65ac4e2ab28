"""The chain against linear algebra, Bayes' rule, an ODE solver and information theory; no training anywhere."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec, solve_ivp

from helpers.oracles import GaussianImages, UnitNoise, affine, coarse_matrix, inside, pool_matrix, some_rungs
from sfumato.core.errors import InputError
from sfumato.ladder import WEIGHTS, Ladder, Level, coarse, pool, repeat

CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
PLAIN_IS_END = Ladder((4, 8), 1, 3)
PLAIN_ABOVE = Ladder((4, 8), 1, 3, plain=(2.0, 2.0, 0.6))
ONE_STAGE = Ladder((4, 4), 1, 1)
TWO_STAGES = Ladder((4, 4), 1, 2, jumps=(20.0, 1.5), plain=(0.75, 0.2))
LADDERS = [PLAIN_IS_END, PLAIN_ABOVE, ONE_STAGE, TWO_STAGES]
SHAPES = pytest.mark.parametrize("ladder", LADDERS, ids=["plain=end", "plain>end", "S=1", "S=2"])


def as_images(rows: np.ndarray, images: GaussianImages, stage: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).view(-1, 1, *images.size(stage))


def kernel(ladder: Ladder, here: Level, there: Level, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """``down`` as ``z' = K z + n``: K and the covariance of n, read off with unit images and unit noise."""
    _, height, width = ladder.shape(here.stage)

    def walk(noise: UnitNoise) -> torch.Tensor:
        start = torch.zeros(1 + noise.total, 1, height, width, dtype=torch.float64)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", lambda shape, **_: noise(tuple(shape)[1:]))
            return ladder.down(start, here, there)

    offset, covariance = affine(walk)
    np.testing.assert_array_equal(offset, 0)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
        units = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
        matrix = ladder.down(units, here, there).flatten(1).numpy().T
    return matrix, covariance


# -- pooling ------------------------------------------------------------------------------------------------------------


def test_pooling_matches_the_matrices():
    x = torch.randn(3, 1, 4, 8, dtype=torch.float64)
    flat = x.flatten(1).numpy().T
    np.testing.assert_allclose(pool(x).flatten(1).numpy().T, pool_matrix(4, 8) @ flat, atol=1e-12)
    np.testing.assert_allclose(coarse(x).flatten(1).numpy().T, coarse_matrix(4, 8) @ flat, atol=1e-12)
    torch.testing.assert_close(pool(repeat(x)), x)


def test_pooling_halves_white_noise():
    noise = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(pool(noise).std()) == pytest.approx(0.5, rel=0.02)


# -- down ---------------------------------------------------------------------------------------------------------------


@SHAPES
def test_marginal_has_the_moments_of_the_formula(ladder: Ladder):
    images = GaussianImages.make(ladder)
    units = torch.eye(len(images.mean), dtype=torch.float64).view(-1, 1, *ladder.size)
    for stage, sigma in some_rungs(ladder):
        quiet = torch.zeros(len(units), *ladder.shape(stage), dtype=torch.float64)
        expected = images.blend(stage, sigma) @ images.shrinkers[stage]
        np.testing.assert_allclose(ladder.marginal(units, stage, sigma, quiet).flatten(1).numpy().T, expected, **CLOSE)
        noise = torch.randn(quiet.shape, dtype=torch.float64)
        torch.testing.assert_close(ladder.marginal(0 * units, stage, sigma, noise), sigma * noise)


@SHAPES
def test_down_from_the_clean_image_is_the_marginal(ladder: Ladder, monkeypatch: pytest.MonkeyPatch):
    images = GaussianImages.make(ladder)
    top = Level(ladder.stages - 1, 0.0)
    for rung in some_rungs(ladder):
        matrix, covariance = kernel(ladder, top, rung, monkeypatch)
        np.testing.assert_allclose(matrix, images.blend(*rung) @ images.shrinkers[rung.stage], **CLOSE)
        np.testing.assert_allclose(covariance, rung.sigma**2 * np.eye(len(covariance)), **CLOSE)


@SHAPES
def test_two_rungs_down_are_one(ladder: Ladder, monkeypatch: pytest.MonkeyPatch):
    for here, middle, there in itertools.combinations(some_rungs(ladder)[1::2], 3):
        first, first_noise = kernel(ladder, here, middle, monkeypatch)
        second, second_noise = kernel(ladder, middle, there, monkeypatch)
        both, both_noise = kernel(ladder, here, there, monkeypatch)
        np.testing.assert_allclose(second @ first, both, **CLOSE)
        np.testing.assert_allclose(second @ first_noise @ second.T + second_noise, both_noise, **CLOSE)


def test_down_in_samples_has_the_marginal_of_the_data():
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder)
    generator = torch.Generator().manual_seed(0)
    factor = torch.from_numpy(np.linalg.cholesky(images.covariance))
    x = torch.from_numpy(images.mean) + torch.randn(60_000, 16, generator=generator, dtype=torch.float64) @ factor.T
    z = ladder.down(x.view(-1, 1, 4, 4), Level(1, 0.0), Level(1, 0.7), generator)
    z = ladder.down(z, Level(1, 0.7), Level(0, 1.5), generator)
    mean, covariance = images.noisy(0, 1.5)
    rows = z.flatten(1).numpy()
    np.testing.assert_allclose(rows.mean(0), mean, atol=0.04)
    np.testing.assert_allclose(np.cov(rows.T), covariance, atol=0.08)


def test_down_to_where_it_is_changes_nothing():
    z = torch.randn(2, 1, 4, 8)
    assert torch.equal(PLAIN_IS_END.down(z, Level(2, 0.5), Level(2, 0.5)), z)


def test_down_is_deterministic_given_the_generator():
    z = torch.randn(2, 1, 4, 8)
    one, two, other = (
        PLAIN_IS_END.down(z, Level(2, 0.1), Level(0, 9.0), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (Level(1, 2.0), Level(1, 1.9)),  # less noise
        (Level(0, 5.0), Level(1, 3.0)),  # up a stage
        (Level(2, 0.1), Level(1, 0.2)),  # the coarser stage begins at end_1 = 0.5
        (Level(2, 0.0), Level(0, 0.5)),  # ... and at end_0 = 2
        (Level(2, 0.1), Level(2, 1.5)),  # beyond J_2 = 1
        (Level(1, 4.0), Level(1, 4.5)),
    ],
)
def test_down_refuses_levels_that_are_not_further_down(here: Level, there: Level):
    z = torch.randn(1, *PLAIN_IS_END.shape(here.stage))
    with pytest.raises(ValueError, match="Level"):
        PLAIN_IS_END.down(z, here, there)


# -- up -----------------------------------------------------------------------------------------------------------------


@SHAPES
def test_jump_is_exact(ladder: Ladder):
    """At the end of stage k-1 the state is N(x_{k-1}, end^2 I); jumped, it must be N(P x_k, J_k^2 I)."""
    images = GaussianImages.make(ladder)
    for stage in range(1, ladder.stages):
        size, below = math.prod(images.size(stage)), math.prod(images.size(stage - 1))
        quiet = torch.zeros(below, *ladder.shape(stage), dtype=torch.float64)
        units = torch.eye(below, dtype=torch.float64).view(-1, *ladder.shape(stage - 1))
        up = ladder.jump(units, stage, quiet).flatten(1).numpy().T  # of z
        noise = torch.eye(size, dtype=torch.float64).view(-1, *ladder.shape(stage))
        still = torch.zeros(size, *ladder.shape(stage - 1), dtype=torch.float64)
        detail = ladder.jump(still, stage, noise).flatten(1).numpy().T  # of e
        jump, end = ladder.jumps[stage], ladder.ends[stage - 1]
        covariance = end**2 * up @ up.T + detail @ detail.T
        np.testing.assert_allclose(covariance, jump**2 * np.eye(size), atol=1e-10)
        before = images.blend(stage - 1, end) @ images.shrinkers[stage - 1]
        np.testing.assert_allclose(up @ before, images.blend(stage, jump) @ images.shrinkers[stage], atol=1e-12)
        assert images.share(stage, jump) == 0 and images.share(stage - 1, end) == 1


def test_jump_in_samples_has_the_marginal_of_the_next_stage():
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder, seed=5)
    random = np.random.default_rng(0)
    x = random.multivariate_normal(images.mean, images.covariance, 60_000)
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    z = ladder.marginal(as_images(x, images, 1), 0, ladder.ends[0], torch.randn(60_000, 1, 2, 2, **draw))
    rows = ladder.jump(z, 1, torch.randn(60_000, 1, 4, 4, **draw)).flatten(1).numpy()
    mean, covariance = images.noisy(1, ladder.jumps[1])
    np.testing.assert_allclose(rows.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(rows.T), covariance, atol=0.15)


@SHAPES
def test_coarsest_and_jump_noise_have_as_many_numbers_as_the_image(ladder: Ladder):
    images = GaussianImages.make(ladder)
    ranks = [np.linalg.matrix_rank(images.projections(k)[1]) for k in range(1, ladder.stages)]
    assert math.prod(images.size(0)) + sum(ranks) == math.prod(ladder.size)


@SHAPES
def test_slope_is_the_derivative_of_the_marginal_path(ladder: Ladder):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, *ladder.size, generator=generator, dtype=torch.float64)
    for stage in range(ladder.stages):
        noise = torch.randn(2, *ladder.shape(stage), generator=generator, dtype=torch.float64)
        for share in (0.11, 0.5, 0.93):
            sigma = inside(ladder, stage, share)
            levels = torch.tensor([sigma - 1e-4, sigma, sigma + 1e-4], dtype=torch.float64)
            path = [ladder.marginal(x, stage, level, noise) for level in levels]
            slope = ladder.slope(path[1], ladder.shrink(x, stage), stage, sigma)
            torch.testing.assert_close(slope, (path[2] - path[0]) / 2e-4, rtol=1e-4, atol=1e-4)


@SHAPES
def test_glide_is_the_ode_solved(ladder: Ladder):
    images = GaussianImages.make(ladder)
    random = np.random.default_rng(3)
    for stage in range(ladder.stages):
        smooth, sharp = images.projections(stage)
        x_hat, z = random.standard_normal((2, len(smooth)))
        pairs = [(0.9, 0.4), (1.0, 0.5), (0.4, 0.05)]
        for high, low in [(inside(ladder, stage, a), inside(ladder, stage, b)) for a, b in pairs]:

            def slope(s: float, z: np.ndarray, x: np.ndarray = x_hat, k: int = stage, p=smooth, q=sharp) -> np.ndarray:
                r = images.share(k, s)
                jump, plain = ladder.jumps[k], ladder.plain[k]
                change = -1 / (jump - plain) if k and s > plain else 0.0
                return change * (q @ x) + (z - p @ x - r * (q @ x)) / s

            solved = solve_ivp(slope, (high, low), z, rtol=1e-9, atol=1e-10, max_step=(high - low) / 50).y[:, -1]
            ours = ladder.ddim_step(as_images(z, images, stage), as_images(x_hat, images, stage), stage, high, low)
            np.testing.assert_allclose(ours.flatten().numpy(), solved, rtol=2e-4, atol=2e-4)


def test_glide_to_zero_is_the_prediction():
    z, x_hat = torch.randn(2, 2, 1, 4, 8)
    torch.testing.assert_close(PLAIN_IS_END.ddim_step(z, x_hat, 2, 0.4, 0.0), x_hat)


@SHAPES
def test_posterior_is_bayes_rule(ladder: Ladder, monkeypatch: pytest.MonkeyPatch):
    """``q(z_low | z_high, x)`` by conditioning the joint Gaussian of ``marginal`` and the kernel ``down``."""
    images = GaussianImages.make(ladder)
    random = np.random.default_rng(7)
    for stage in range(ladder.stages):
        smooth, sharp = images.projections(stage)
        x, z = random.standard_normal((2, len(smooth)))
        for a, b in [(0.8, 0.3), (1.0, 0.6), (0.3, 0.05)]:
            high, low = inside(ladder, stage, a), inside(ladder, stage, b)
            matrix, noise = kernel(ladder, Level(stage, low), Level(stage, high), monkeypatch)
            covariance = np.linalg.inv(np.eye(len(x)) / low**2 + matrix.T @ np.linalg.solve(noise, matrix))
            mean = covariance @ (images.blend(stage, low) @ x / low**2 + matrix.T @ np.linalg.solve(noise, z))
            given = as_images(z, images, stage), as_images(x, images, stage)
            ours, std_p, std_q = ladder.posterior(*given, stage, high, low)
            np.testing.assert_allclose(ours.flatten().numpy(), mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(std_p**2 * smooth + std_q**2 * sharp, covariance, rtol=1e-5, atol=1e-6)


def test_posterior_at_zero_is_the_prediction():
    z, x_hat = torch.randn(2, 2, 1, 4, 8)
    mean, std_p, std_q = PLAIN_IS_END.posterior(z, x_hat, 2, 0.4, 0.0)
    torch.testing.assert_close(mean, x_hat)
    assert std_p == std_q == 0


# -- weights ------------------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("floor", [0.05, 0.3])
def test_likelihood_weights_sum_to_the_mutual_information(ladder: Ladder, floor: float):
    """I(x; z(floor)) in nats: the error of the best denoiser, weighted and summed over every stage, and the prior."""
    images = GaussianImages.make(ladder)

    def rate(n: float, stage: int) -> np.ndarray:
        sigma = n / (1 - n)
        on_p, on_q = ladder.likelihood_weights(stage, torch.tensor([sigma], dtype=torch.float64))
        left = images.remaining(stage, sigma)
        smooth, sharp = images.projections(stage)
        # (stage 0 has P = I, so that there the trace on Q is of a zero matrix)
        error = float(on_p) * np.trace(smooth @ left) + float(on_q) * np.trace(sharp @ left)
        return np.array([error * (1 + sigma) ** 2])  # ds = (1 + s)^2 dn

    total = 0.0
    for stage in range(ladder.stages):
        cuts = sorted({max(ladder.ends[stage], floor), max(ladder.plain[stage], floor), ladder.jumps[stage]})
        for low, high in itertools.pairwise(cuts):
            total += quad_vec(lambda n, k=stage: rate(n, k), low / (1 + low), high / (1 + high), epsrel=1e-8)[0][0]
    _, coarsest = images.clean(0)
    prior = 0.5 * np.linalg.slogdet(np.eye(len(coarsest)) + coarsest / ladder.jumps[0] ** 2)[1]
    exact = 0.5 * np.linalg.slogdet(images.noisy(ladder.stages - 1, floor)[1] / floor**2)[1]
    assert total + prior == pytest.approx(exact, rel=1e-5)


@SHAPES
def test_velocity_weight_is_the_squared_error_of_the_velocity(ladder: Ladder):
    """A wrong x^ bends d(z / (1 + s)) / dn by just what the weights say, on P and on Q."""
    generator = torch.Generator().manual_seed(0)
    for stage in range(ladder.stages):
        z, x, wrong = torch.randn(3, 1, *ladder.shape(stage), generator=generator, dtype=torch.float64)
        for share in (0.05, 0.4, 0.95):
            sigma = max(inside(ladder, stage, share), 0.021)

            def velocity(x_hat: torch.Tensor, z: torch.Tensor = z, k: int = stage, s: float = sigma) -> torch.Tensor:
                return (1 + s) ** 2 * (ladder.slope(z, x_hat, k, s) / (1 + s) - z / (1 + s) ** 2)

            on_p, on_q = ladder.weights("velocity", stage, torch.tensor([sigma], dtype=torch.float64))
            smooth = coarse(wrong) if stage else wrong
            expected = on_p * smooth.square().sum() + on_q * (wrong - smooth).square().sum()
            error = (velocity(x + wrong) - velocity(x)).square().sum()
            torch.testing.assert_close(error, expected.squeeze(), rtol=1e-5, atol=1e-8)


def test_elbo_weights_are_the_likelihood_in_flow_time():
    sigma = torch.tensor([0.6, 0.8, 0.95], dtype=torch.float64)
    weights = PLAIN_ABOVE.weights("elbo", 2, sigma), PLAIN_ABOVE.likelihood_weights(2, sigma)
    for ours, bound in zip(*weights, strict=True):
        torch.testing.assert_close(ours, bound * (1 + sigma) ** 2)


@pytest.mark.parametrize("name", list(WEIGHTS))
@SHAPES
def test_weights_are_finite_and_not_negative(name: str, ladder: Ladder):
    for stage in range(ladder.stages):
        sigma = torch.tensor([0.0, *(inside(ladder, stage, share) for share in (0.0, 0.2, 0.6, 1.0))])
        for weight in ladder.weights(name, stage, sigma):
            assert weight.shape == sigma.shape
            assert bool(torch.isfinite(weight).all()) and bool((weight >= 0).all())


def test_unknown_weight_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'velocity'"):
        PLAIN_IS_END.weights("velocty", 0, torch.ones(1))
