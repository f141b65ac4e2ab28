"""Purification: closed forms with an exact denoiser, exact gradients, one result whatever the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.generators import random_generator
from helpers.oracles import GaussianImages, UnitNoise, affine
from sfumato.classifiers import Classifier
from sfumato.conditions import Condition
from sfumato.core.errors import InputError
from sfumato.defences import Purifier, purified, purify
from sfumato.defences.purification.purifier import answers, entry_level
from sfumato.generator import Generator
from sfumato.ladder import Ladder, Level
from sfumato.samplers import SAMPLERS, ResumedNoise

LADDER = Ladder(size=(4, 4), stages=2, jumps=(10.0, 2.0))
IMAGES = GaussianImages.make(LADDER, 3)


def tiny(kind: torch.dtype = torch.float64, **settings: Any) -> Generator:
    generator = random_generator(1, **settings)
    generator.denoiser.to(kind)
    return generator


# -- the walk down and up ---------------------------------------------------------------------------------------------


def expected(x: np.ndarray, levels: list[tuple[int, list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the Euler walk from ``x`` (16,), all in [-1, 1] space, by matrices."""
    stage, first = levels[0][0], levels[0][1][0]
    mean = IMAGES.blend(stage, first) @ (IMAGES.shrinkers[stage] @ x)
    covariance = first**2 * np.eye(len(mean))
    for stage, sigmas in levels:
        clean, identity = IMAGES.clean(stage)[0], np.eye(len(IMAGES.clean(stage)[0]))
        if stage > levels[0][0]:  # the jump: up, and fresh noise on the detail
            sharp = IMAGES.projections(stage)[1]
            up = np.linalg.pinv(IMAGES.shrinkers[0])  # there are two stages
            mean, covariance = up @ mean, up @ covariance @ up.T + LADDER.jumps[stage] ** 2 * sharp
        for high, low in itertools.pairwise(sigmas):
            ratio, gain = low / high, IMAGES.gain(stage, high)
            change = IMAGES.blend(stage, low) - ratio * IMAGES.blend(stage, high)  # of z' with x^
            step = ratio * identity + change @ gain
            offset = change @ (clean - gain @ IMAGES.blend(stage, high) @ clean)
            mean, covariance = step @ mean + offset, step @ covariance @ step.T
    return mean, covariance


def flow_levels(high: float, low: float, steps: int) -> list[float]:
    times = np.linspace(high / (1 + high), low / (1 + low), steps + 1)
    return (times / (1 - times)).tolist()


@pytest.mark.parametrize(
    ("sigma", "steps", "levels"),
    [
        (0.4, 1, [(1, flow_levels(0.8, 0, 1))]),
        (0.4, 3, [(1, flow_levels(0.8, 0, 3))]),
        (1.0, 2, [(1, flow_levels(2.0, 0, 2))]),
        (3.0, 5, [(0, flow_levels(3.0, 1.0, 2)), (1, flow_levels(2.0, 0, 3))]),
    ],
)
def test_with_an_exact_denoiser_mean_and_covariance_are_known(sigma: float, steps: int, levels: list) -> None:
    purifier = Purifier(IMAGES.denoise, LADDER, sigma=sigma, steps=steps, sampler="euler")
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def walk(noise: UnitNoise) -> Tensor:
        noises = tuple(noise(shape) for shape in purifier.shapes)
        return purifier(x.expand(len(noises[0]), -1, -1, -1), noises)

    mean, covariance = affine(walk)
    wanted_mean, wanted_covariance = expected(2 * x.flatten().numpy() - 1, levels)
    np.testing.assert_allclose(mean, (wanted_mean + 1) / 2, atol=1e-9)
    np.testing.assert_allclose(covariance, wanted_covariance / 4, atol=1e-9)
    assert np.trace(covariance) > 0.01


def test_sigma_is_that_of_pixels_at_full_resolution() -> None:
    assert entry_level(LADDER, 0.25) == Level(1, 0.5)
    assert entry_level(LADDER, 1.0) == Level(1, 2.0)  # where two stages meet, the finer
    assert entry_level(LADDER, 2.0) == Level(0, 2.0)  # sigma 4 in [-1, 1] space, halved by pooling
    assert entry_level(Ladder((8, 8), stages=3, jumps=(40.0, 4.0, 1.0)), 2.0) == Level(1, 2.0)
    for sigma in (0.0, -1.0, float("nan"), 11.0, 1e-5):
        with pytest.raises(InputError, match="cannot purify"):
            Purifier(IMAGES.denoise, LADDER, sigma=sigma)


@pytest.mark.parametrize(("sampler", "draws"), [("euler", 2), ("ancestral", 4), ("heun", 2), ("dpmpp-2m", 2)])
def test_steps_are_the_evaluations_on_the_way_up(sampler: str, draws: int) -> None:
    seen: list[tuple[int, float]] = []

    def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
        seen.append((stage, sigma))
        return IMAGES.denoise(z, sigma, stage)

    for sigma, steps, stages in ((0.03, 3, {1}), (0.4, 1, {1}), (0.77, 4, {1}), (2.5, 4, {0, 1})):
        purifier = Purifier(denoise, LADDER, sigma=sigma, steps=steps, sampler=sampler)
        seen.clear()
        noise = purifier.noise([0], 1)
        found = purifier(torch.rand(1, 1, 4, 4, dtype=torch.float64), noise)
        assert found.shape == (1, 1, 4, 4) and bool(found.isfinite().all())
        assert {stage for stage, _ in seen} == stages and seen[0] == purifier.level
        # Heun takes two evaluations a step, but one where it ends at sigma 0.
        assert len(seen) == (2 * steps - 1 if sampler == "heun" else steps)
        if sigma == 2.5 and sampler == "ancestral":
            assert len(purifier.shapes) == 2 + steps - 1  # start and jump; a draw a step, but for the last
        if sampler != "ancestral":
            assert len(purifier.shapes) == len(stages)


# -- gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "sigma", "steps"), [("euler", 0.3, 2), ("ancestral", 1.4, 3), ("dpmpp-2m", 0.4, 3)]
)
def test_the_gradient_is_exact_by_finite_differences(sampler: str, sigma: float, steps: int) -> None:
    purifier = Purifier.of(tiny(), sigma=sigma, steps=steps, sampler=sampler)
    noise = tuple(e.double() for e in purifier.noise([5], 2))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    towards = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = x.clone().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda at: purifier(at, noise).flatten(), leaf).view(64, 64)
    assert jacobian.norm() > 0.1
    for direction in towards:
        h = 1e-5 * direction.view_as(x)
        with torch.no_grad():
            slope = (purifier(x + h, noise) - purifier(x - h, noise)).flatten() / 2e-5
        torch.testing.assert_close(jacobian @ direction, slope, rtol=1e-5, atol=1e-7)


def test_through_the_classifier_too() -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    defended = purified(classifier, Purifier.of(tiny(), sigma=0.4, steps=2), draws=3, fixed=True)
    x, direction = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64)
    _, slope = defended.gradient(x, lambda logits: logits[:, 0])
    h = 1e-5 * direction
    both = [defended(at)[:, 0].detach() for at in (x + h, x - h)]
    torch.testing.assert_close((slope * direction).flatten(1).sum(1), (both[0] - both[1]) / 2e-5, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None and p.requires_grad for p in classifier.module.parameters())  # type: ignore[union-attr]


def test_checkpoints_change_no_gradient_and_hold_memory() -> None:
    generator = tiny()
    for parameter in generator.denoiser.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)

    def plain(purifier: Purifier, at: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        z = purifier.ladder.marginal(2 * at - 1, *purifier.level, noise[0])

        def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
            return generator.denoiser(z, torch.full((len(z),), sigma, dtype=z.dtype), stage, Condition())

        rungs = SAMPLERS["euler"](denoise, purifier.ladder, ResumedNoise(None, purifier.level, z), (1, count))  # type: ignore[arg-type]
        return (list(rungs)[-1].x_hat + 1) / 2

    def cost(walk: Callable[[Tensor], Tensor]) -> tuple[int, Tensor]:
        """Bytes kept for the way back, and the gradient."""
        kept = [0]

        def pack(tensor: Tensor) -> Tensor:
            kept[0] += tensor.numel() * tensor.element_size()
            return tensor

        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = walk(leaf).square().sum()
        return kept[0], torch.autograd.grad(value, leaf)[0]

    bytes_of, sigma = {}, generator.ladder.jumps[1] / 2  # the finest stage's jump: all steps are of that stage
    for count in (2, 8):
        purifier = Purifier(Purifier.of(generator).denoise, generator.ladder, sigma=sigma, steps=count)
        noise = tuple(e.double() for e in purifier.noise([0, 1]))
        mine, slope = cost(lambda at, p=purifier, e=noise: p(at, e))
        other, wanted = cost(lambda at, p=purifier, e=noise: plain(p, at, e))
        torch.testing.assert_close(slope, wanted, rtol=1e-12, atol=1e-14)
        bytes_of[count] = (mine, other)
    grown = bytes_of[8][0] - bytes_of[2][0]
    assert grown <= 6 * 8 * x.numel() * 8  # a few states a step
    assert bytes_of[8][1] - bytes_of[2][1] > 20 * max(grown, 6 * x.numel() * 8)


def test_identity_backward_is_exact_where_the_purifier_is_the_identity() -> None:
    ladder = Ladder((4, 4), stages=1, jumps=(10.0,))
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    for denoise, same in ((lambda z, sigma, stage: z, True), (lambda z, sigma, stage: z.tanh(), False)):
        purifier = Purifier(denoise, ladder, sigma=0.2, steps=1)
        noises = [purifier.noise([0, 1, 2], draw=k) for k in range(2)]
        found = []
        for through in ("exact", "identity"):
            leaf = x.clone().requires_grad_()
            logits = answers(classifier, purifier, leaf, noises, through)
            found.append((logits.detach(), torch.autograd.grad(logits[:, 1].sum(), leaf)[0]))
        torch.testing.assert_close(found[0][0], found[1][0])  # the forward pass is the true one either way
        assert torch.allclose(found[0][1], found[1][1]) == same


def test_an_image_is_the_same_in_any_batch() -> None:
    purifier = Purifier.of(tiny(), sigma=1.4, steps=3, sampler="ancestral")
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    whole = purify(purifier, x, seed=3)
    for size in (1, 2):
        torch.testing.assert_close(purify(purifier, x, seed=3, batch_size=size), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(purify(purifier, x[[4, 1]], seed=3, ids=[4, 1]), whole[[4, 1]], rtol=1e-6, atol=1e-6)
    assert bool(((whole >= 0) & (whole <= 1)).all())
    assert not torch.allclose(purify(purifier, x, seed=4), whole)
    noise = [purifier.noise([7, 9], 1, draw)[0] for draw in (0, 1)]
    assert not torch.allclose(noise[0], noise[1]) and not torch.allclose(noise[0][0], noise[0][1])


def test_random_draws_anew_and_fixed_does_not() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), labels=("a", "b", "c"))
    purifier = Purifier.of(tiny(kind=torch.float32), sigma=0.4, steps=1)
    x = torch.rand(1, 1, 8, 8).expand(2, -1, -1, -1)
    fixed, random = purified(classifier, purifier, fixed=True), purified(classifier, purifier)
    assert fixed.labels == ("a", "b", "c") and fixed.size == (8, 8) and fixed.channels == 1
    first, second = fixed(x), random(x)
    assert torch.equal(first, fixed(x)) and torch.allclose(first[0], first[1])
    assert not torch.allclose(second, random(x)) and not torch.allclose(second[0], second[1])
    assert torch.equal(second, purified(classifier, purifier)(x))  # but the same from the start
    assert fixed.forwards == 4
    many = purified(classifier, purifier, draws=4, fixed=True)(x[:1])
    each = [classifier(purifier(x[:1], purifier.noise([0], 0, k)), bounded=False).softmax(1) for k in range(4)]
    torch.testing.assert_close(many.exp(), torch.stack(each).mean(0), rtol=1e-5, atol=1e-6)


def test_bad_input() -> None:
    generator = tiny()
    for settings, says in (
        ({"sampler": "eulr"}, "did you mean 'euler'"),
        ({"sampler": "mean"}, "adds no noise after its start"),
        ({"steps": 0}, "too few"),
        ({"steps": 1, "sigma": 3.0}, "give 2 or more"),
        ({"sigma": 1e9}, "cannot purify"),
    ):
        with pytest.raises(InputError, match=says):
            Purifier.of(generator, **settings)  # type: ignore[arg-type]
    rungs: dict[str, Any] = {"sharing": "rung", "rungs": "2,2"}
    for how, says in (({"drop": "0"}, "cannot do without a label"), (rungs, "network for each of its rungs")):
        with pytest.raises(InputError, match=says):
            Purifier.of(tiny(torch.float64, **how))
    purifier = Purifier.of(generator, sigma=0.3, steps=1)
    with pytest.raises(InputError, match="do not fit this model"):
        purifier(torch.zeros(1, 3, 8, 8), purifier.noise([0]))
    with pytest.raises(InputError, match="the noise does not fit"):
        purifier(torch.zeros(3, 1, 8, 8), purifier.noise([0, 1]))
    with pytest.raises(InputError, match="pixels run from"):
        purify(purifier, torch.full((1, 1, 8, 8), 2.0))
    with pytest.raises(InputError, match="one id an image"):
        purify(purifier, torch.zeros(2, 1, 8, 8), ids=[1])
    with pytest.raises(InputError, match="1 draw"):
        purified(Classifier(nn.Flatten()), purifier, draws=0)
