"""Norms, projections and steepest steps against their definitions, brute force and an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from sfumato.attacks.norms import dual, norm_of, per_sample, project, project_box_ball, project_onto, steepest
from sfumato.core.errors import InputError
from sfumato.core.streams import Streams

ALL = ("Linf", "L2", "L1", "L0")
SHAPES = ((5,), (2, 3), (2, 4, 4))
NORM, SHAPE, SEED = st.sampled_from(ALL), st.sampled_from(SHAPES), st.integers(0, 10_000)
EPS, SIZE = st.floats(0.05, 6), st.floats(0.1, 3)


def drawn(shape: tuple[int, ...], seed: int, size: float) -> tuple[Tensor, Tensor]:
    """Pixels, some of them 0 and 1, and a perturbation."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(3, *shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return x, size * torch.randn(3, *shape, generator=generator)


@settings(max_examples=80, deadline=None)
@given(NORM, SHAPE, SEED, EPS, SIZE)
def test_projection_onto_box_and_ball(norm: str, shape: tuple[int, ...], seed: int, eps: float, size: float):
    x, delta = drawn(shape, seed, size)
    found = project_box_ball(x, delta, norm, eps)
    assert (norm_of(found, norm) <= eps * (1 + 1e-6) + 1e-7).all()
    assert ((x + found >= -1e-7) & (x + found <= 1 + 1e-7)).all()
    torch.testing.assert_close(project_box_ball(x, found, norm, eps), found, atol=1e-6, rtol=0)
    # Nearer than any other feasible point that can be guessed: random ones, and ones close to what was found.
    distance = norm_of(found - delta, "L2")
    generator = torch.Generator().manual_seed(seed + 1)
    for spread in (0.01, 0.1, 1.0):
        for _ in range(10):
            other = found + spread * torch.randn(found.shape, generator=generator)
            if norm == "L0":
                order = torch.rand(3, delta[0].numel(), generator=generator).argsort(1)
                other = other * (order < int(eps)).reshape(other.shape)
            other = torch.maximum(torch.minimum(other, 1 - x), -x)
            if norm != "L0":
                other *= per_sample((eps / norm_of(other, norm).clamp_min(1e-9)).clamp_max(1), other)
            assert (norm_of(other - delta, "L2") >= distance - 1e-5).all()


@settings(max_examples=40, deadline=None)
@given(NORM, SHAPE, SEED, EPS, SIZE)
def test_projection_onto_the_ball(norm: str, shape: tuple[int, ...], seed: int, eps: float, size: float):
    delta = drawn(shape, seed, size)[1]
    found = project(delta, norm, eps)
    assert (norm_of(found, norm) <= eps * (1 + 1e-6)).all()
    torch.testing.assert_close(project(found, norm, eps), found, atol=1e-6, rtol=0)
    inside = norm_of(delta, norm) <= eps
    torch.testing.assert_close(found[inside], delta[inside])
    # In the middle of a box that is wide enough the box makes no difference.
    scaled = 0.2 * delta / delta.abs().max()
    if norm != "L0":
        both = project_box_ball(torch.full_like(delta, 0.5), scaled, norm, 0.1 * eps)
        torch.testing.assert_close(both, project(scaled, norm, 0.1 * eps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("seed", range(4))
def test_projection_against_an_optimiser(norm: str, seed: int):
    x, delta = drawn((5,), seed, 0.8)
    eps = 0.6
    found = project_box_ball(x, delta, norm, eps)
    for clean, wanted, ours in zip(x.double().numpy(), delta.double().numpy(), found.numpy(), strict=True):
        # delta = up - down makes the L1 ball a linear constraint
        left = (lambda v: eps - v.sum()) if norm == "L1" else (lambda v: eps**2 - ((v[:5] - v[5:]) ** 2).sum())
        ball, exact = {"type": "ineq", "fun": left}, {"ftol": 1e-12, "maxiter": 500}
        box = [*zip(np.zeros(5), 1 - clean, strict=True), *zip(np.zeros(5), clean, strict=True)]

        def away(v: np.ndarray, wanted: np.ndarray = wanted) -> float:
            return ((v[:5] - v[5:] - wanted) ** 2).sum()

        best = minimize(away, np.zeros(10), method="SLSQP", bounds=box, constraints=[ball], options=exact)
        np.testing.assert_allclose(ours, best.x[:5] - best.x[5:], atol=2e-3)


def test_l1_ball_of_many_pixels_is_used_up():
    generator = torch.Generator().manual_seed(0)
    x, delta = torch.rand(2, 150_000, generator=generator), torch.randn(2, 150_000, generator=generator)
    found = project_box_ball(x, delta, "L1", 500.0)
    torch.testing.assert_close(norm_of(found, "L1"), torch.full((2,), 500.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_steepest_step_attains_the_dual_norm(norm: str):
    slope = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    step = steepest(slope, norm)
    torch.testing.assert_close(norm_of(step, norm), torch.ones(4))
    torch.testing.assert_close((step * slope).sum((1, 2)), norm_of(slope, dual(norm)))
    assert not steepest(torch.zeros_like(slope), norm).any()
    tiny = steepest(1e-35 * slope, norm)  # keeps its direction
    torch.testing.assert_close(tiny, step, atol=1e-4, rtol=0)


def test_sparse_steps_share_evenly():
    slope = torch.tensor([[3.0, -2.0, 1.0, 0.5], [3.0, -2.0, 1.0, 0.5]])
    step = steepest(slope, "L1", torch.tensor([2, 3]))
    torch.testing.assert_close(step, torch.tensor([[0.5, -0.5, 0, 0], [1 / 3, -1 / 3, 1 / 3, 0]]))


def test_sizes_per_sample():
    delta = torch.ones(3, 2, 2)
    eps = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(norm_of(project(delta, "Linf", eps), "Linf"), eps)
    x = torch.full_like(delta, 0.5)
    torch.testing.assert_close(norm_of(project_onto(x, x + delta, "L2", eps) - x, "L2"), eps)
    with pytest.raises(InputError, match="3 samples"):
        project(delta, "L2", torch.ones(2))


def test_an_unknown_norm_is_named():
    with pytest.raises(InputError, match="did you mean 'Linf'"):
        norm_of(torch.ones(1, 2), "linf")
    with pytest.raises(InputError, match="L0"):
        steepest(torch.ones(1, 2), "L0")


# -- random streams -------------------------------------------------------------------------------------------------------


def test_streams_belong_to_the_sample():
    alone, together = Streams(7, [5]), Streams(7, [3, 5, 9])
    first = together.normal((4,))
    torch.testing.assert_close(alone.normal((4,)), first[1:2], rtol=0, atol=0)
    kept = together.keep(torch.tensor([False, True, False]))
    torch.testing.assert_close(alone.uniform((2, 3)), kept.uniform((2, 3)), rtol=0, atol=0)
    assert not torch.equal(Streams(7, [5]).normal((4,)), Streams(8, [5]).normal((4,)))
    assert not torch.equal(Streams(7, [5]).normal((4,)), Streams(7, [5], salt=1).normal((4,)))


def test_streams_are_distributed_as_they_say():
    from scipy import stats

    streams = Streams(0, range(50))
    for values, law in ((streams.uniform((2000,)), "uniform"), (streams.normal((2000,)), "norm")):
        assert stats.kstest(values.flatten().numpy(), law).pvalue > 1e-3
        assert abs(float(torch.corrcoef(values).triu(1).abs().max())) < 0.12  # samples, of 2000 numbers each
        neighbours = torch.stack([values[:, 1:].flatten(), values[:, :-1].flatten()])
        assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.015
    counts = streams.integers(5, (2000,)).flatten().bincount(minlength=5)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(float(streams.sign((2000,)).mean())) < 0.02
