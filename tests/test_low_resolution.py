"""Images to be enlarged: their noise in closed form, a model that hears them, and a cascade of exact denoisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from helpers.oracles import TINY, coarse_matrix, pictures
from sfumato.conditions import Condition, Kinds
from sfumato.conditions.low_resolution import LEVELS, LowResolution
from sfumato.conditions.sources import ClassLabels
from sfumato.config import Config
from sfumato.core.errors import InputError
from sfumato.denoisers import Denoiser
from sfumato.generator import Generator
from sfumato.ladder import Ladder, pool, repeat
from sfumato.recipes.cascade import Cascade

# -- the noise on small images -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> tuple[Tensor, Condition]:
    """600 images and what they are told."""
    data = pictures(count=12)
    index = np.arange(600) % 12
    x = 2 * data.pixels(index) - 1
    return x, LowResolution(ClassLabels(data), 1).batch(index, x, torch.Generator().manual_seed(0))


def noise_of(x: Tensor, c: Condition) -> Tensor:
    """(c.image - P x) / level, (B, H * W), by matrices."""
    assert c.image is not None and c.level is not None
    smooth = x.flatten(1).double() @ torch.from_numpy(coarse_matrix(8, 8)).T
    return (c.image.flatten(1).double() - smooth) / c.level.double()[:, None]


def test_the_image_is_the_small_one_and_white_noise_of_its_level(told: tuple[Tensor, Condition]):
    noise = noise_of(*told)
    count = noise.numel()
    assert abs(float(noise.mean())) < 4 / count**0.5
    assert float(noise.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise.T.numpy())  # between pixels: none, also within the blocks of one small pixel
    assert np.abs(correlation - np.eye(64)).max() < 5 / 600**0.5
    for part in (noise[:, :32].square().mean(1), noise[:, 32:].square().mean(1)):  # the same at low and at high levels
        assert abs(np.corrcoef(part.numpy(), told[1].level.numpy())[0, 1]) < 4 / 600**0.5  # type: ignore[union-attr]


def test_levels_are_uniform_in_flow_time_and_in_no_order(told: tuple[Tensor, Condition]):
    level = told[1].level
    assert level is not None
    time = (level / (1 + level)).numpy()
    low, high = (s / (1 + s) for s in LEVELS)
    assert stats.kstest(time, "uniform", (low, high - low)).pvalue > 1e-3
    assert float(level.min()) >= LEVELS[0] - 1e-6 and float(level.max()) <= LEVELS[1] + 1e-6
    # The noise levels of x itself rise through a batch; one that did so too would tell the model of them.
    assert abs(np.corrcoef(time, np.arange(600))[0, 1]) < 4 / 600**0.5


def test_what_else_is_told_stays(told: tuple[Tensor, Condition]):
    _, c = told
    labels = pictures(count=12).labels
    assert labels is not None and c.label is not None and c.label.tolist() == [int(labels[i % 12]) for i in range(600)]
    without = c.drop(1.0, 600, torch.Generator().manual_seed(0)).without()
    assert without.image is c.image and without.level is c.level and without.label is None


def test_kinds_and_identity():
    source = LowResolution(ClassLabels(pictures()), 1)
    assert source.kinds == Kinds(classes=3, image=1)
    assert source.identity() == {"levels": list(LEVELS)}
    assert source.identity() != LowResolution(ClassLabels(pictures()), 1, (0.1, 1.0)).identity()


def test_the_same_stream_gives_the_same_condition():
    data = pictures()
    x = 2 * data.pixels(slice(0, 4)) - 1
    one, same, other = (
        LowResolution(ClassLabels(data), 1).batch(np.arange(4), x, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.image, same.image) and torch.equal(one.level, same.level)  # type: ignore[arg-type]
    assert not torch.equal(one.image, other.image)  # type: ignore[arg-type]


# -- a model hears them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_the_image_and_its_level_change_what_is_predicted(network: str):
    settings = TINY if network == "unet" else {"depth": "1", "channels": "64"}
    config = Config(stages=1).with_settings({"network": network, **settings})
    denoiser = config.denoiser(Ladder((8, 8), 1, 1), Kinds(classes=2, image=1))
    torch.manual_seed(0)
    for parameter in denoiser.parameters():  # the last layers begin as zero: then nothing is heard
        nn.init.normal_(parameter, std=0.1)
    z, sigma, label = torch.randn(3, 1, 8, 8), torch.full((3,), 1.0), torch.tensor([0, 1, 1])
    image, level = torch.randn(3, 1, 8, 8), torch.full((3,), 0.2)

    def predicted(image: Tensor, level: Tensor) -> Tensor:
        with torch.no_grad():
            return denoiser(z, sigma, 0, Condition(label=label, image=image, level=level))

    x_hat = predicted(image, level)
    changed = image.clone()
    changed[1] += 0.5
    other = predicted(changed, level)
    assert torch.allclose(other[[0, 2]], x_hat[[0, 2]], atol=1e-6) and not torch.allclose(other[1], x_hat[1], atol=1e-3)
    louder = predicted(image, torch.tensor([0.2, 0.2, 0.8]))
    assert torch.allclose(louder[:2], x_hat[:2], atol=1e-6) and not torch.allclose(louder[2], x_hat[2], atol=1e-3)
    with pytest.raises(InputError, match="enlarges an image: give it one"):
        denoiser(z, sigma, 0, Condition(label=label))


# -- a cascade of exact denoisers --------------------------------------------------------------------------------------

SMOOTH, SHARP = 0.25, 0.1  # standard deviations: of the small image's pixels, of the detail in each direction


class ExactBase(nn.Module):
    """``E[u | z]`` for small images u of independent pixels, N(0, SMOOTH^2)."""

    kinds, ladder = Kinds(), Ladder((4, 4), 1, 1)

    def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
        level = sigma[:, None, None, None]
        return z * SMOOTH**2 / (SMOOTH**2 + level**2)


class ExactUp(nn.Module):
    """``E[x | z, c.image]`` for ``x = Up(u) + Q w``, w white with SHARP: all that is told weighed by its precision."""

    kinds, ladder = Kinds(image=1), Ladder((8, 8), 1, 1)

    def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
        assert c.image is not None and c.level is not None
        level, noise = sigma[:, None, None, None], c.level[:, None, None, None]
        smooth, shown = pool(z), pool(c.image)  # both of u, with half of their noise
        four = SMOOTH**-2 + 4 * noise**-2 + 4 * level**-2
        u = (4 * shown * noise**-2 + 4 * smooth * level**-2) / four
        return repeat(u) + (z - repeat(smooth)) * SHARP**2 / (SHARP**2 + level**2)


def exact(module: type[nn.Module]) -> Generator:
    denoiser: Denoiser = module()  # type: ignore[assignment]
    return Generator(denoiser, (), Config(stages=1), "cpu")


@pytest.mark.parametrize("level", [0.05, 0.5])
def test_exact_models_draw_the_data_whatever_the_level(level: float):
    x = 2 * Cascade([exact(ExactBase), exact(ExactUp)], level).sample(400, steps=40, seed=3) - 1
    small = pool(x)
    sharp = x - repeat(small)
    assert float(small.var()) == pytest.approx(SMOOTH**2, rel=0.06)  # of 6,400 independent numbers
    assert float(sharp.square().sum() / (0.75 * x.numel())) == pytest.approx(SHARP**2, rel=0.04)
    between = np.corrcoef(small.flatten(1).T.numpy())
    assert np.abs(between - np.eye(16)).max() < 4.5 / 400**0.5
    assert abs(np.corrcoef(small.flatten().numpy(), sharp[:, :, ::2, ::2].flatten().numpy())[0, 1]) < 4 / 6400**0.5


class ShowsItsImage(ExactUp):
    """Whatever the noise, the clean image is the smooth part of what is shown."""

    def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
        assert c.image is not None
        return repeat(pool(c.image))


class Constant(ExactBase):
    def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
        return torch.full_like(z, 0.2)


def test_the_small_image_gets_the_noise_that_was_asked_for():
    cascade = Cascade([exact(Constant), exact(ShowsItsImage)])
    x = 2 * cascade.sample(300, steps=2, level=0.3, seed=0) - 1
    small = pool(x)
    assert torch.allclose(x, repeat(small))
    assert float(small.mean()) == pytest.approx(0.2, abs=4 * 0.15 / 4800**0.5)
    assert float(small.std()) == pytest.approx(0.3 / 2, rel=4 / 9600**0.5)  # pooling halves white noise
    again = 2 * cascade.sample(300, steps=2, level=0.03, seed=0) - 1
    assert torch.allclose((pool(again) - 0.2) * 10, small - 0.2, atol=1e-5)  # the same stream, a tenth of the level


def test_the_noises_of_models_and_images_are_unrelated():
    class Start(ExactBase):
        def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
            return z / 40 / 8 if float(sigma[0]) > 39 else torch.zeros_like(z)  # what the sampler starts from

    class ShowsBoth(ExactUp):
        def forward(self, z: Tensor, sigma: Tensor, stage: int, c: Condition) -> Tensor:
            assert c.image is not None
            return torch.where(torch.arange(8) < 4, c.image, z / 40 / 8)

    x = 2 * Cascade([exact(Start), exact(ShowsBoth)], level=0.1).sample(200, steps=1, seed=0) - 1
    image, start = x[..., :4].flatten(1).numpy(), x[..., 4:].flatten(1).numpy()
    together = np.corrcoef(np.concatenate([image, start], axis=1).T)[:32, 32:]
    assert np.abs(together).max() < 4.7 / 200**0.5
    assert float(np.std(start)) == pytest.approx(1 / 8, rel=0.05)
