"""Samplers against exact Gaussian data, and against diffusers' schedulers where the two must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.oracles import GaussianImages, UnitNoise, sampled
from sfumato.core.errors import InputError
from sfumato.ladder import Ladder
from sfumato.samplers import SAMPLERS, Noise, Rung, evaluations, share_steps, start

LADDERS = [Ladder((4, 4), 1, 1), *(Ladder((4, 8), 1, stages) for stages in (2, 3))]
ABOVE = Ladder((4, 8), 1, 3, plain=(2.0, 1.0, 0.25))
ON_LADDERS = pytest.mark.parametrize("ladder", [*LADDERS, ABOVE], ids=["S=1", "S=2", "S=3", "S=3 plain>end"])


def error(sampler: str, ladder: Ladder, each: int) -> float:
    """How far the covariance of what a sampler draws is from the data's, relative, with ``each`` steps a stage."""
    images = GaussianImages.make(ladder, seed=2)
    _, covariance = sampled(sampler, images, [each] * ladder.stages)
    return float(np.linalg.norm(covariance - images.covariance) / np.linalg.norm(images.covariance))


# -- the exact Gaussian denoiser ------------------------------------------------------------------------------------------


@ON_LADDERS
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m"])
def test_ode_samplers_converge_to_the_data(sampler: str, ladder: Ladder):
    each, tolerance = {"euler": (400, 0.02), "heun": (100, 1e-3), "dpmpp-2m": (200, 2e-3)}[sampler]
    images = GaussianImages.make(ladder, seed=2)
    mean, covariance = sampled(sampler, images, [each] * ladder.stages)
    np.testing.assert_allclose(mean, images.mean, atol=tolerance)
    np.testing.assert_allclose(covariance, images.covariance, atol=2 * tolerance)


@ON_LADDERS
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_order_of_convergence(sampler: str, order: int, ladder: Ladder):
    coarse, fine = error(sampler, ladder, 40), error(sampler, ladder, 80)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)


@ON_LADDERS
def test_second_order_beats_first_at_equal_evaluations(ladder: Ladder):
    euler = error("euler", ladder, 24)
    assert error("heun", ladder, 12) < euler / 2
    assert error("dpmpp-2m", ladder, 24) < euler / 2


@pytest.mark.parametrize("ladder", LADDERS, ids=["S=1", "S=2", "S=3"])
def test_ancestral_converges_to_the_data(ladder: Ladder):
    images = GaussianImages.make(ladder, seed=2)
    each = 60
    mean, covariance = sampled("ancestral", images, [each] * ladder.stages)
    np.testing.assert_allclose(mean, images.mean, atol=0.02)
    first = float(np.linalg.norm(covariance - images.covariance) / np.linalg.norm(images.covariance))
    assert first < 0.1
    assert error("ancestral", ladder, each // 2) > 1.5 * first  # first order: half the steps, twice the error


@ON_LADDERS
def test_mean_sampler_loses_variance(ladder: Ladder):
    """The lecture's caveat: composing posterior means without their noise makes pictures too smooth."""
    images = GaussianImages.make(ladder, seed=2)
    mean, covariance = sampled("mean", images, [20] * ladder.stages)
    np.testing.assert_allclose(mean, images.mean, atol=0.05)
    assert np.linalg.eigvalsh(images.covariance - covariance).min() > -1e-6  # smaller in every direction
    assert np.trace(covariance) < 0.5 * np.trace(images.covariance)


def test_true_start_differs_from_white_noise_by_the_prior_only():
    """Started from N(0, J_0^2 I) and not from the exact marginal, the coarse image is off by about 1 / J_0^2."""
    images = GaussianImages.make(Ladder((4, 4), 1, 2), seed=2)
    rungs = SAMPLERS["heun"](images.denoise, images.ladder, UnitNoise(), [200, 200])  # type: ignore[arg-type]
    middle = list(rungs)[-1].x_hat.flatten().numpy()
    assert np.abs(middle - images.mean).max() < 0.05


# -- the walk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@ON_LADDERS
def test_rungs_climb(sampler: str, ladder: Ladder):
    images = GaussianImages.make(ladder)
    calls: list[tuple[int, float]] = []

    def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
        assert tuple(z.shape[1:]) == ladder.shape(stage)
        assert sigma > 0  # at sigma 0 there is nothing left to predict
        calls.append((stage, sigma))
        return images.denoise(z, sigma, stage)

    steps = [k + 2 for k in range(ladder.stages)]
    rungs = list(SAMPLERS[sampler](denoise, ladder, UnitNoise(), steps))  # type: ignore[arg-type]
    assert [r.stage for r in rungs] == sorted(r.stage for r in rungs)
    for stage in range(ladder.stages):
        sigmas = [r.sigma for r in rungs if r.stage == stage]
        assert sigmas == ladder.levels(steps)[stage]
    assert rungs[-1].sigma == 0
    torch.testing.assert_close(rungs[-1].z, rungs[-1].x_hat)  # the picture
    counts = [sum(1 for stage, _ in calls if stage == k) for k in range(ladder.stages)]
    assert tuple(counts) == evaluations(sampler, steps)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_first_prediction_comes_before_the_second_is_asked_for(sampler: str):
    images = GaussianImages.make(LADDERS[2])
    calls = []

    def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
        calls.append(sigma)
        return images.denoise(z, sigma, stage)

    rungs = SAMPLERS[sampler](denoise, LADDERS[2], UnitNoise(), [3, 3, 3])  # type: ignore[arg-type]
    assert calls == []
    assert next(rungs).sigma == LADDERS[2].jumps[0]
    assert len(calls) == 1


def test_registry_suggests_the_nearest():
    assert set(SAMPLERS) >= {"euler", "heun", "dpmpp-2m", "ancestral", "mean"}
    with pytest.raises(InputError, match="unknown sampler 'huen': did you mean 'heun'"):
        SAMPLERS.find("huen")


@pytest.mark.parametrize("total", range(2, 60))
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_shared_steps_add_up(total: int, stages: int):
    ladder = Ladder((32, 32), 1, stages)
    if total < stages:
        with pytest.raises(InputError, match=f"{total} steps are too few for {stages} stages"):
            share_steps(ladder, total)
    else:
        steps = share_steps(ladder, total)
        assert sum(steps) == total and min(steps) >= 1 and steps[-1] == max(steps)


# -- noise ----------------------------------------------------------------------------------------------------------------


def test_noise_of_an_image_does_not_depend_on_its_batch():
    whole = Noise(7, range(5))
    parts = [Noise(7, range(2)), Noise(7, range(2, 5))]
    for shape in ((1, 2, 4), (3, 8, 8)):
        assert torch.equal(whole(shape), torch.cat([part(shape) for part in parts]))


def test_noise_is_standard_normal_and_unrelated_between_neighbours():
    drawn = torch.stack([Noise(seed, range(40))((1, 16, 16)) for seed in range(3)]).flatten(2)  # (3, 40, 256)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    correlations = torch.corrcoef(drawn.flatten(0, 1)) - torch.eye(120)
    assert float(correlations.abs().max()) < 0.4  # 256 numbers: chance gives 0.06, and 0.3 once in a million


def test_no_two_images_of_a_large_request_share_their_noise():
    """torch's generator on the CPU keeps 32 bits of its seed: streams may not be left to chance in 2^32."""
    count = 50_000  # of seeds drawn at random, a pair is likelier than not within two such requests
    seeds: list[int] = []

    class Recorder(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seeds.append(seed & 0xFFFFFFFF)
            return self

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "Generator", Recorder)
        Noise(1, range(count))
    if not seeds:
        pytest.skip("the noise does not come from torch.Generator.manual_seed")
    assert len(set(seeds)) == count


def test_start_has_the_coarsest_shape_and_size():
    z = start(LADDERS[2], Noise(0, range(500)))
    assert tuple(z.shape) == (500, 1, 1, 2)
    assert float(z.std()) == pytest.approx(40, rel=0.1)


# -- diffusers --------------------------------------------------------------------------------------------------------------

SIZE = Ladder((8, 8), 3, 1)
STEPS = 12


class Recorded:
    """Random numbers from a stream, kept so that another sampler can be given the same."""

    def __init__(self) -> None:
        self.stream = torch.Generator().manual_seed(0)
        self.drawn: list[Tensor] = []

    def __call__(self, shape: Sequence[int]) -> Tensor:
        self.drawn.append(torch.randn(2, *shape, generator=self.stream))
        return self.drawn[-1]


def bent(z: Tensor, sigma: float, stage: int) -> Tensor:
    """A denoiser that is not linear, so that orders and coefficients all show."""
    return torch.tanh(z / (1 + sigma)) * (1 - 0.3 * sigma / (1 + sigma)) + 0.1 * torch.sin(3 * z / (1 + sigma))


def ours(sampler: str) -> tuple[Tensor, list[Tensor], list[float]]:
    noise = Recorded()
    picture = list(SAMPLERS[sampler](bent, SIZE, noise, [STEPS]))[-1].x_hat  # type: ignore[arg-type]
    return picture, noise.drawn, SIZE.levels([STEPS])[0]


def prepared(scheduler: Any, sigmas: Sequence[float] | Tensor, count: int) -> Any:
    """A scheduler made to walk our levels."""
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.as_tensor(sigmas, dtype=torch.float32)
    scheduler.timesteps = torch.arange(count, 0, -1, dtype=torch.float32)
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    return scheduler


def walk(scheduler: Any, z: Tensor, output: Callable[[Tensor, int], Tensor]) -> Tensor:
    for i, t in enumerate(scheduler.timesteps):
        z = scheduler.step(output(z, i), t, z, return_dict=False)[0]
    return z


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EDMEulerScheduler"])
def test_euler_is_diffusers(name: str):
    diffusers = pytest.importorskip("diffusers")
    picture, drawn, sigmas = ours("euler")
    if name == "EulerDiscreteScheduler":
        scheduler = prepared(diffusers.EulerDiscreteScheduler(prediction_type="sample"), sigmas, STEPS)
    else:
        scheduler = prepared(diffusers.EDMEulerScheduler(), sigmas, STEPS)
        scheduler.precondition_outputs = lambda sample, output, sigma: output
    theirs = walk(scheduler, sigmas[0] * drawn[0], lambda z, i: bent(z, sigmas[i], 0))
    torch.testing.assert_close(picture, theirs, rtol=1e-4, atol=1e-5)


def flowing(scheduler: Any, times: Tensor, drawn: list[Tensor], first: float, indices: Sequence[int]) -> Tensor:
    """A flow-matching scheduler works on ``z / (1 + s)`` and flow times, and wants the velocity ``e - x``."""

    def velocity(scaled: Tensor, i: int) -> Tensor:
        n = float(times[indices[i]])
        return (scaled - bent(scaled / (1 - n), n / (1 - n), 0)) / n

    return walk(scheduler, first * drawn[0] / (1 + first), velocity)


def test_euler_is_flow_matching_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    picture, drawn, sigmas = ours("euler")
    times = torch.tensor([s / (1 + s) for s in sigmas])
    scheduler = prepared(diffusers.FlowMatchEulerDiscreteScheduler(), times, STEPS)
    theirs = flowing(scheduler, times, drawn, sigmas[0], range(STEPS))
    torch.testing.assert_close(picture, theirs, rtol=1e-4, atol=1e-5)


def test_heun_is_flow_matching_heun_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    picture, drawn, sigmas = ours("heun")
    times = torch.tensor([s / (1 + s) for s in sigmas])
    twice = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
    scheduler = prepared(diffusers.FlowMatchHeunDiscreteScheduler(), twice, 2 * STEPS - 1)
    # Both at the end of a step and at the next one's start:
    called = [0, *(i for i in range(1, STEPS) for _ in range(2))]
    theirs = flowing(scheduler, times, drawn, sigmas[0], called)
    torch.testing.assert_close(picture, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_dpmpp_2m_is_diffusers(name: str):
    diffusers = pytest.importorskip("diffusers")
    picture, drawn, sigmas = ours("dpmpp-2m")
    options: dict[str, Any] = {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    options |= {"final_sigmas_type": "zero", "lower_order_final": False}
    if name == "EDMDPMSolverMultistepScheduler":
        scheduler = prepared(diffusers.EDMDPMSolverMultistepScheduler(**options), sigmas, STEPS)
        scheduler.precondition_outputs = lambda sample, output, sigma: output
        scale = [1.0] * (STEPS + 1)
    else:
        # This one works on z / sqrt(1 + s^2), where the noise is variance preserving.
        made = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", **options)
        scheduler = prepared(made, sigmas, STEPS)
        scale = [(1 + s**2) ** 0.5 for s in sigmas]
    theirs = walk(scheduler, sigmas[0] * drawn[0] / scale[0], lambda z, i: bent(z * scale[i], sigmas[i], 0))
    torch.testing.assert_close(picture, theirs, rtol=1e-4, atol=1e-5)


def test_ancestral_is_diffusers(monkeypatch: pytest.MonkeyPatch):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    picture, drawn, sigmas = ours("ancestral")
    scheduler = prepared(diffusers.EulerAncestralDiscreteScheduler(prediction_type="sample"), sigmas, STEPS)
    again = iter([*drawn[1:], torch.zeros_like(drawn[0])])  # the last step, to sigma 0, adds nothing
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(again))
    # diffusers has not written prediction_type "sample" for this one: ask for the noise and give (z - x^) / s.
    scheduler.register_to_config(prediction_type="epsilon")
    theirs = walk(scheduler, sigmas[0] * drawn[0], lambda z, i: (z - bent(z, sigmas[i], 0)) / sigmas[i])
    torch.testing.assert_close(picture, theirs, rtol=1e-4, atol=1e-5)


def test_rung_is_a_plain_record():
    rung = Rung(1, 0.5, torch.zeros(1), torch.ones(1))
    assert rung._fields == ("stage", "sigma", "z", "x_hat")
