"""Likelihoods against closed forms: Gaussian images with their exact denoiser, 8-bit pixels with known probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.oracles import TINY, GaussianImages, log_density, pictures, random_covariance
from sfumato import Generator, InputError, train
from sfumato.conditions import Condition
from sfumato.ladder import Ladder
from sfumato.likelihood import auroc, bound, flow, integral, integration_figure, png_bits, score
from sfumato.likelihood.bound import DenoiseAt
from sfumato.likelihood.pixels import CELL, FLOOR, dequantise, on_grid, reconstruction, round_to_bytes
from sfumato.samplers import Noise

LADDERS = pytest.mark.parametrize(
    "ladder",
    [
        Ladder((2, 2), 1, 1, jumps=(300.0,)),
        Ladder((4, 4), 1, 2, jumps=(300.0, 2.0)),
        Ladder((4, 4), 1, 2, jumps=(300.0, 1.5), plain=(0.75, 0.6)),
    ],
    ids=["one stage", "two stages", "two stages, plain below"],
)


def exact(images: GaussianImages) -> DenoiseAt:
    """The best denoiser there is, differentiable, for a level an image."""

    def denoise(z: Tensor, sigma: Tensor, stage: int) -> Tensor:
        mean, covariance = (torch.from_numpy(part) for part in images.clean(stage))
        smooth, sharp = (torch.from_numpy(part) for part in images.projections(stage))
        shares = torch.tensor([images.share(stage, level) for level in sigma.tolist()], dtype=torch.float64)
        blend = smooth + shares[:, None, None] * sharp  # (B, D, D)
        noisy = blend @ covariance @ blend.mT + sigma.double()[:, None, None] ** 2 * torch.eye(len(mean))
        away = z.flatten(1) - blend @ mean
        return (mean + (covariance @ blend.mT @ torch.linalg.solve(noisy, away[..., None]))[..., 0]).view_as(z)

    return denoise


def samples(images: GaussianImages, count: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Images (B, 1, H, W) float64 and their exact ``-log p`` in nats."""
    drawn = np.random.default_rng(seed).multivariate_normal(images.mean, images.covariance, count)
    nats = -log_density(drawn, images.mean, images.covariance)
    return torch.from_numpy(drawn).view(count, 1, *images.ladder.size), nats


@LADDERS
def test_the_bound_of_an_exact_denoiser_is_the_density_of_each_image(ladder: Ladder) -> None:
    images = GaussianImages.make(ladder)
    x, nats = samples(images, 12)
    found = bound(exact(images), ladder, x, Noise(0, range(12)), draws=1000, floor=2e-3, eight_bit=False)
    error = found.variance.sqrt().numpy()
    away = (found.total.numpy() - nats) / error
    assert error.mean() < 0.2 * x[0].numel()
    assert np.abs(away).max() < 4
    assert abs(away.mean()) < 4 / math.sqrt(len(away))  # and it is not off in one direction


def test_a_worse_denoiser_gives_a_higher_bound_by_its_excess_error() -> None:
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder)
    x, nats = samples(images, 16)
    good = exact(images)

    def wrong(z: Tensor, sigma: Tensor, stage: int) -> Tensor:
        return good(z, sigma, stage) + 0.3 * (sigma / (1 + sigma))[:, None, None, None]

    made = [bound(d, ladder, x, Noise(0, range(16)), 100, 2e-3, eight_bit=False) for d in (good, wrong)]
    assert (made[1].total - made[0].total).mean() > 0.2
    assert made[1].total.mean() > nats.mean()


@LADDERS
def test_the_ode_gives_the_density(ladder: Ladder) -> None:
    images = GaussianImages.make(ladder)
    x, _ = samples(images, 3)
    floor = 1e-3
    mean, covariance = images.noisy(ladder.stages - 1, floor)
    nats = -log_density(x.flatten(1).numpy(), mean, covariance)
    found = flow(exact(images), ladder, x, None, steps=48, floor=floor, eight_bit=False)
    # z_0 is taken for N(0, J_0^2), and is N(mean, C + J_0^2): that much is the ladder's, not the method's.
    np.testing.assert_allclose(found.numpy(), nats, atol=1e-2)


def test_the_ode_converges_at_fourth_order() -> None:
    ladder = Ladder((4, 4), 1, 2, plain=(1.0, 0.6))
    images = GaussianImages.make(ladder)
    x, _ = samples(images, 2)

    def nats(steps: int) -> Tensor:
        return flow(exact(images), ladder, x, None, steps, 0.05, eight_bit=False)

    best = nats(64)
    coarse, fine = ((nats(steps) - best).abs().max() for steps in (8, 16))
    assert coarse / fine > 9


def test_hutchinsons_estimate_is_unbiased() -> None:
    ladder = Ladder((4, 4), 1, 2)
    images = GaussianImages.make(ladder)
    x = samples(images, 1)[0].expand(64, -1, -1, -1)
    denoise = exact(images)
    drawn = flow(denoise, ladder, x, Noise(0, range(64)), 8, 0.01, eight_bit=False)
    whole = flow(denoise, ladder, x[:1], None, 8, 0.01, eight_bit=False)
    assert drawn.std() > 0.05
    assert abs(drawn.mean() - whole[0]) < 4 * drawn.std() / 8


# -- 8-bit pixels ---------------------------------------------------------------------------------------------------------

VALUES = torch.tensor([0, 1, 100, 255], dtype=torch.float64) * CELL - 1
SHARES = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)


def of_four_values(z: Tensor, sigma: Tensor, stage: int) -> Tensor:
    """The exact denoiser of images whose pixels are independent, of four values with known probabilities."""
    fits = SHARES.log() - 0.5 * ((z[..., None] - VALUES) / sigma[:, None, None, None, None]) ** 2
    return (fits.softmax(-1) * VALUES).sum(-1)


def four_values() -> tuple[Tensor, Tensor]:
    """Images and the bits of each."""
    which = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [3, 2, 3, 1]])
    return VALUES[which].view(3, 1, 2, 2), -SHARES[which].log2().sum(1)


def test_bits_of_8_bit_images_are_those_of_their_probability() -> None:
    ladder = Ladder((2, 2), 1, 1)
    x, bits = four_values()
    many = x.repeat_interleave(24, 0)
    for drawn in (
        bound(of_four_values, ladder, many, Noise(1, range(72)), draws=64).total,
        flow(of_four_values, ladder, many, Noise(1, range(72)), steps=60),
    ):
        found = (drawn / math.log(2)).view(3, 24)
        assert ((found.mean(1) - bits).abs() < 4 * found.std(1) / math.sqrt(24) + 0.12).all(), (found.mean(1), bits)


def test_the_grid_changes_nothing_above_a_cell_and_rounds_at_the_floor() -> None:
    x_hat = torch.linspace(-1.1, 1.1, 400, dtype=torch.float64).view(1, 1, 20, 20)
    inside = x_hat.clamp(-1, 1)
    torch.testing.assert_close(on_grid(x_hat, torch.tensor([2 * CELL])), inside)
    torch.testing.assert_close(on_grid(x_hat, torch.tensor([0.9999 * CELL])), inside, rtol=0, atol=1e-6)
    steps = (x_hat + 1) / CELL
    clear = (steps - steps.round()).abs() < 0.4
    rounded = on_grid(x_hat, torch.tensor([FLOOR]))
    torch.testing.assert_close(rounded[clear], round_to_bytes(x_hat)[clear], atol=4e-4, rtol=0)


def test_the_last_term_is_what_the_noise_leaves_open() -> None:
    """Against a direct sum over all 256 values, by drawing."""
    x = torch.tensor([[0, 128], [255, 30]]).view(1, 1, 2, 2).double() * CELL - 1
    everything = torch.arange(256).double() * CELL - 1
    noise = torch.randn(4000, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for floor in (FLOOR, CELL / 3, CELL):
        fits = -0.5 * ((x + floor * noise)[..., None] - everything) ** 2 / floor**2
        drawn = (fits.logsumexp(-1) + 0.5 * noise**2).flatten(1).sum(1)
        assert abs(float(reconstruction(x, floor, True)) - drawn.mean()) < 5 * drawn.std() / math.sqrt(4000) + 1e-6


def test_dequantised_images_stay_in_their_cells_with_the_density_that_is_said() -> None:
    x = torch.zeros(4, 1, 50, 50)
    u, log_q = dequantise(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), CELL / 2)
    assert bool(((u - x).abs() <= CELL / 2).all())
    again = torch.distributions.Normal(0, CELL / 2)
    inside = 2 * again.cdf(torch.tensor(CELL / 2)) - 1
    torch.testing.assert_close(log_q.float(), (again.log_prob(u) - inside.log()).flatten(1).sum(1), rtol=1e-4, atol=0.1)


# -- the integral ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2])
def test_the_integral_converges_in_one_and_two_dimensions(dimension: int) -> None:
    covariance = random_covariance(dimension, seed=3) if dimension > 1 else np.eye(1)
    factor = torch.from_numpy(np.linalg.cholesky(covariance))
    generator = torch.Generator().manual_seed(0)

    def draw(first: int, n: int) -> Tensor:
        z = torch.randn(n, dimension, dtype=torch.float64, generator=generator)
        return (z @ factor.T).view(n, 1, 1, dimension)

    x = draw(0, 6)
    blurred = covariance + 0.2**2 * np.eye(dimension)
    exact = -log_density(x.view(6, dimension).numpy(), np.zeros(dimension), blurred)
    found = integral(draw, x, samples=20_000, std=0.2)
    assert (np.abs(found.nats[-1].numpy() - exact) < 5 * found.error.numpy()).all()
    assert found.error.max() < 0.2
    few, many = ((found.nats[i].numpy() - exact) ** 2 for i in (len(found.counts) // 2, -1))
    assert many.mean() < few.mean() / 10


def test_the_integral_is_hopeless_in_many_dimensions_and_says_so() -> None:
    dimension, std = 256, 0.2
    generator = torch.Generator().manual_seed(0)

    def draw(first: int, n: int) -> Tensor:
        return torch.randn(n, 1, 16, 16, generator=generator)

    x = draw(0, 4)
    variance = 1 + std**2
    exact = 0.5 * (x.double().square().flatten(1).sum(1) / variance + dimension * math.log(2 * math.pi * variance))
    found = integral(draw, x, samples=2000, std=std)
    assert bool((found.nats[-1] > exact + 1000).all())  # nats: the likelihood is too low by e^1000 and more
    assert bool((found.effective < 2).all())


# -- a model's score ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return train(pictures(64), tmp_path_factory.mktemp("bars") / "run", steps=30, settings=TINY, device="cpu")


@pytest.mark.parametrize("method", ["bound", "ode", "integral"])
def test_scores_do_not_depend_on_the_batch(generator: Generator, method: str) -> None:
    x = pictures(6, seed=1).pixels(slice(0, 6))
    one = score(generator, x, method=method, draws=8, batch_size=6)
    other = score(generator, x, method=method, draws=8, batch_size=4)
    assert one.bits.shape == one.error.shape == (6,) and bool(one.bits.isfinite().all())
    torch.testing.assert_close(one.bits, other.bits, rtol=1e-4, atol=1e-4)
    assert one.evaluations == {"bound": 8, "ode": 32}.get(method, one.evaluations)
    assert not torch.equal(one.bits, score(generator, x, method=method, draws=8, seed=3).bits)
    if one.parts:
        torch.testing.assert_close(sum(one.parts.values()), one.bits)


def test_a_model_finds_its_own_images_likelier_than_noise(generator: Generator) -> None:
    inside = score(generator, pictures(8, seed=1).pixels(slice(0, 8)))
    outside = score(generator, torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert inside.mean < outside.mean
    assert auroc(inside.bits, outside.bits).value == 1
    assert outside.mean > 7.5
    assert inside.mean_error > 0 and bool((inside.error > 0).all())


def test_scores_are_conditioned_on_a_label(generator: Generator) -> None:
    x = pictures(3, seed=1).pixels(slice(0, 3))
    conditional = score(generator, x, ["red", "green", "blue"])
    assert not torch.equal(conditional.bits, score(generator, x).bits)
    same = score(generator, x, condition=Condition(label=torch.arange(3)))
    assert torch.equal(conditional.bits, same.bits)


def test_the_figure_holds_the_three_estimates(generator: Generator, tmp_path: Path) -> None:
    picture, numbers = integration_figure(generator, pictures(2, seed=1).pixels(slice(0, 2)), samples=32)
    assert picture.size[0] > 600 and len(picture.convert("L").getcolors(1 << 16) or []) > 20
    for curve in numbers["integral"]:
        assert curve["evaluations"] == sorted(curve["evaluations"]) and len(curve["bits"]) > 8
        assert curve["least"] < curve["bits"][-1]
        assert 1 <= curve["effective_samples"] <= 32
    assert math.isfinite(numbers["bound"]["bits"][-1]) and math.isfinite(numbers["ode"]["bits"])


@pytest.mark.parametrize(
    ("shape", "how", "says"),
    [
        ((2, 3, 8, 8), {}, "do not fit this model"),
        ((2, 1, 16, 16), {}, "do not fit this model"),
        ((0, 1, 8, 8), {}, "do not fit this model"),
        ((2, 1, 8, 8), {"method": "bond"}, "did you mean 'bound'"),
        ((2, 1, 8, 8), {"draws": 0}, "give 1 or more"),
        ((2, 1, 8, 8), {"draws": 1}, "too few"),
        ((2, 1, 8, 8), {"label": "purple"}, "unknown label"),
        ((2, 1, 8, 8), {"prompt": "a red bar"}, "trained with labels"),
        ((2, 1, 8, 8), {"label": ["red", "blue"], "method": "integral", "draws": 2}, "all have the same condition"),
    ],
)
def test_bad_input(generator: Generator, shape: tuple[int, ...], how: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        score(generator, torch.zeros(shape), **how)


def test_pixels_outside_their_range_are_refused(generator: Generator) -> None:
    for value in (1.5, -0.1, math.nan):
        with pytest.raises(InputError, match="from 0 to 1"):
            score(generator, torch.full((1, 1, 8, 8), value))


def test_models_that_cannot_be_scored(tmp_path: Path) -> None:
    train(pictures(12), tmp_path / "rung", steps=1, settings={**TINY, "sharing": "rung", "rungs": "2", "stages": "1"})
    train(pictures(12), tmp_path / "told", steps=1, settings={**TINY, "drop": "0"})
    x = torch.zeros(3, 1, 8, 8)
    with pytest.raises(InputError, match="needs all noise levels"):
        score(Generator.from_pretrained(tmp_path / "rung"), x)
    conditional = Generator.from_pretrained(tmp_path / "told")
    with pytest.raises(InputError, match="drop=0"):
        score(conditional, x)
    assert score(conditional, x, ["red", "green", "blue"], draws=4).bits.shape == (3,)


# -- out-of-distribution images -------------------------------------------------------------------------------------------------------


def test_auroc_is_that_of_scikit_learn_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    numbers = np.random.default_rng(0)
    inside, outside = numbers.integers(0, 9, 40), numbers.integers(2, 12, 25)
    expected = roc_auc_score([0] * 40 + [1] * 25, [*inside, *outside])
    found = auroc(torch.from_numpy(inside), torch.from_numpy(outside))
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high < 1


def test_the_interval_covers_the_true_area() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (0.5, 2.0):
        true = 0.5 * (1 + math.erf(shift / 2))
        covered = 0
        for _ in range(300):
            found = auroc(torch.randn(30, generator=generator), torch.randn(20, generator=generator) + shift)
            covered += found.low <= true <= found.high
        assert covered / 300 > 0.92
    certain = auroc(torch.zeros(20), torch.ones(20))
    assert certain.value == certain.high == 1 and 0.8 < certain.low < 1
    with pytest.raises(InputError, match="finite"):
        auroc(torch.zeros(3), torch.tensor([math.nan]))


def test_png_knows_a_simple_image() -> None:
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, noisy = png_bits(torch.cat([torch.full_like(noise, 0.5), noise]))
    assert plain < 1 and noisy > 7.5
