"""The loss against its formulas, and against exact denoisers of Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.oracles import TINY, GaussianImages
from sfumato.conditions import Condition, Kinds
from sfumato.config import Config
from sfumato.denoisers import Denoiser
from sfumato.engine.average import gamma_of_width
from sfumato.ladder import WEIGHTS, Ladder, coarse
from sfumato.training.loss import draw_levels, measure, stage_loss


def config_of(**settings: str) -> Config:
    return Config(stages=2).with_settings({**TINY, **settings})


class Fixed(Denoiser):
    """A denoiser that gives one answer, and remembers what it was asked."""

    def __init__(self, ladder: Ladder, answer: Callable[..., Tensor], rungs: tuple[int, ...] = ()) -> None:
        super().__init__(
            ladder,
            Kinds(),
            options={"channels": (8,) * ladder.stages, "blocks": (1,) * ladder.stages, "patch": 1, "width": 8},
            rungs=rungs,
        )
        self.answer, self.asked = answer, []

    def forward(
        self, z: Tensor, sigma: Tensor, stage: int, c: Condition | None = None, detail: Tensor | None = None
    ) -> Tensor:
        self.asked.append((z, sigma, detail))
        return self.answer(z, sigma, stage)


@pytest.mark.parametrize("weights", list(WEIGHTS))
@pytest.mark.parametrize("stage", [0, 1])
def test_loss_is_the_weighted_squared_error(weights: str, stage: int):
    ladder = Ladder((8, 8), 1, 2)
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wrong = torch.randn(32, *ladder.shape(stage), generator=torch.Generator().manual_seed(1))
    clean = x if stage else torch.nn.functional.avg_pool2d(x, 2)
    denoiser = Fixed(ladder, lambda z, s, k: clean + wrong)
    config = config_of(weights=weights, plain_share="0")
    loss = stage_loss(denoiser, config, x, Condition(), stage, torch.Generator().manual_seed(2))
    _, sigma, _ = denoiser.asked[0]
    on_p, on_q = ladder.weights(weights, stage, sigma)
    smooth = coarse(wrong) if stage else wrong
    expected = (on_p[:, None, None, None] * smooth**2 + on_q[:, None, None, None] * (wrong - smooth) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_the_best_denoiser_has_the_least_loss():
    """On Gaussian data: scaling the exact posterior mean up or down costs."""
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder, seed=3)
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.multivariate_normal(images.mean, images.covariance, 2000)).view(-1, 1, 4, 4)
    for stage in (0, 1):

        def answer(z: Tensor, sigma: Tensor, k: int, scale: float = 1.0) -> Tensor:
            each = [images.denoise(z[i : i + 1].double(), float(sigma[i]), k) for i in range(len(z))]
            return scale * torch.cat(each).to(z)

        losses = []
        for scale in (0.9, 1.0, 1.1):
            denoiser = Fixed(ladder, lambda z, s, k, c=scale: answer(z, s, k, c))
            stream = torch.Generator().manual_seed(4)
            losses.append(
                float(stage_loss(denoiser, config_of(plain_share="0"), x.float(), Condition(), stage, stream))
            )
        assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_states_are_those_of_the_path_but_for_the_plain_share(share: float):
    ladder, count = Ladder((8, 8), 1, 2), 64
    denoiser = Fixed(ladder, lambda z, s, k: torch.zeros_like(z))
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 50  # louder than most noise
    config = config_of(plain_share=str(share))
    stage_loss(denoiser, config, x, Condition(), 1, torch.Generator().manual_seed(0))
    z, sigma, detail = denoiser.asked[0]
    off = (detail - ladder.detail(1, sigma)).abs() > 1e-6
    assert int(off.sum()) <= share * count and int((detail == 1).sum()) >= share * count
    if share == 0:
        assert float(sigma.max()) <= ladder.jumps[1]
    residual = (z - ladder.blend(x, 1, detail)) / sigma[:, None, None, None]
    assert float(residual.std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("levels", ["uniform", "logit-normal"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_levels_stay_within_their_stage(levels: str, stage: int):
    ladder = Ladder((8, 8), 1, 3)
    sigma = draw_levels(config_of(levels=levels), ladder, stage, 4000, torch.Generator().manual_seed(0))
    assert (
        float(sigma.min()) >= max(ladder.ends[stage], 1e-4) * 0.999
        and float(sigma.max()) <= ladder.jumps[stage] * 1.001
    )
    time = (sigma / (1 + sigma)).numpy()
    low, high = (level / (1 + level) for level in (ladder.ends[stage], ladder.jumps[stage]))
    if levels == "uniform":
        counts, _ = np.histogram(time, bins=10, range=(low, high))
        assert counts.min() > 380 and counts.max() < 420  # stratified: nearly equal
    else:
        logits = np.log(sigma.numpy())
        inside = torch.distributions.Normal(-0.2, 1.0)
        below, above = inside.cdf(
            torch.tensor([np.log(max(ladder.ends[stage], 1e-6)), np.log(ladder.jumps[stage])])
        ).tolist()
        median = float(inside.icdf(torch.tensor((below + above) / 2)))
        assert np.median(logits) == pytest.approx(median, abs=0.05)


def test_z_next_regresses_the_less_noisy_state():
    """The lecture's loss: least for E[z_t | z_{t-1}], which the exact denoiser gives; and 0 only where nothing is lost."""
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder, seed=3)
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.multivariate_normal(images.mean, images.covariance, 3000)).view(-1, 1, 4, 4).float()
    config = config_of(target="z_next", rungs="3,3")
    for stage in (0, 1):
        losses = []
        for scale in (0.5, 1.0, 1.5):
            denoiser = Fixed(
                ladder, lambda z, s, k, c=scale: c * images.denoise(z.double(), float(s[0]), k).to(z), rungs=(3, 3)
            )
            streams = [torch.Generator().manual_seed(seed) for seed in range(5)]
            losses.append([float(stage_loss(denoiser, config, x, Condition(), stage, one)) for one in streams])
            assert all(bool((sigma == sigma[0]).all()) for _, sigma, _ in denoiser.asked)  # a rung for the whole batch
            assert {round(float(s[0]), 4) for _, s, _ in denoiser.asked} <= {
                round(s, 4) for s in denoiser.rungs[stage][:-1]
            }
        assert np.all(np.array(losses[1]) < np.array(losses[0])) and np.all(np.array(losses[1]) < np.array(losses[2]))
        assert min(losses[1]) > 0


def test_measured_sizes_on_white_images():
    """Variance per pixel, which is what noise of standard deviation s is compared with."""
    x = 0.7 * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth, sharp = measure(x, Ladder((8, 8), 1, 2))
    assert smooth[0] == pytest.approx(0.35, rel=0.02) and sharp[0] == 0


def test_measured_sizes_are_never_zero():
    smooth, sharp = measure(torch.zeros(3, 1, 8, 8), Ladder((8, 8), 1, 2))
    assert min(*smooth, sharp[1]) > 0


def test_about_a_tenth_of_the_conditions_is_dropped():
    label = torch.arange(20_000) % 7
    dropped = Condition(label, vector=torch.ones(20_000, 2)).drop(0.1, 20_000, torch.Generator().manual_seed(0))
    assert dropped.present is not None and dropped.label is label
    assert float(dropped.present.float().mean()) == pytest.approx(0.9, abs=0.01)
    assert bool(Condition(label).drop(0.0, 20_000, torch.Generator()).present.all())  # type: ignore[union-attr]
    assert not bool(Condition(label).drop(1.0, 20_000, torch.Generator()).present.any())  # type: ignore[union-attr]


# -- widths of averages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.27])
def test_gamma_solves_the_width(width: float):
    gamma = gamma_of_width(width)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(width, rel=1e-9)


def test_gamma_is_the_width_of_the_weights_themselves():
    """The relative standard deviation of t under the weights t^gamma is what was asked for."""
    t = np.arange(1, 200_001) / 200_000
    profile = t ** gamma_of_width(0.1)
    profile /= profile.sum()
    assert np.sqrt((profile * t**2).sum() - (profile * t).sum() ** 2) == pytest.approx(0.1, rel=1e-3)
