"""Editing: on Gaussian images, where the answers are known; and what a generator must keep to with any network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import GaussianImages, UnitNoise, affine
from PIL import Image
from scipy.linalg import sqrtm
from test_generator import make
from torch import Tensor

from sfumato import editing
from sfumato.conditions import Condition, Kinds
from sfumato.editing import IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION, Edit, edited, level_of, plan
from sfumato.errors import InputError
from sfumato.generator import Generator
from sfumato.ladder import Ladder, pool
from sfumato.samplers import SAMPLERS, Rung, levels_from

ONE, TWO, THREE = Ladder((4, 4), 1, 1), Ladder((4, 4), 1, 2), Ladder((4, 8), 1, 3)
CLIMBING = [name for name in SAMPLERS if name != "mean"]


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
    images = GaussianImages.make(ONE, seed=2)
    sigma = level_of(ONE, strength).sigma
    matrix, shift, covariance = image_map("heun", images, strength, 100)
    flow = np.real(sqrtm(np.linalg.solve(images.covariance + sigma**2 * np.eye(16), images.covariance)))
    np.testing.assert_allclose(matrix, flow, atol=2e-3)
    np.testing.assert_allclose(shift, images.mean - flow @ images.mean, atol=2e-3)
    np.testing.assert_allclose(covariance, sigma**2 * flow @ flow.T, atol=4e-3)


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_image_to_image_by_the_markov_chain_is_the_posterior(strength: float):
    """``E[x' | z]`` with ``z = B x + s e``, on the finest of two stages."""
    images = GaussianImages.make(TWO, seed=2)
    stage, sigma = level_of(TWO, strength)
    gain, blend = images.gain(stage, sigma), images.blend(stage, sigma)
    matrix, _, covariance = image_map("ancestral", images, strength, 200)
    np.testing.assert_allclose(matrix, gain @ blend, atol=0.02)
    np.testing.assert_allclose(covariance, images.remaining(stage, sigma) + sigma**2 * gain @ gain.T, atol=0.03)


@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("heun", 60, 4e-3), ("dpmpp-2m", 100, 0.01)])
@pytest.mark.parametrize("ladder", [TWO, THREE], ids=["S=2", "S=3"])
@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
def test_images_of_the_data_stay_so(sampler: str, steps: int, tolerance: float, ladder: Ladder, strength: float):
    """Noised to any level at any stage and brought up again, what came from the data has the data's distribution."""
    images = GaussianImages.make(ladder, seed=3)
    matrix, shift, covariance = image_map(sampler, images, strength, steps)
    np.testing.assert_allclose(matrix @ images.mean + shift, images.mean, atol=tolerance)
    np.testing.assert_allclose(
        matrix @ images.covariance @ matrix.T + covariance, images.covariance, atol=2 * tolerance
    )


def test_strength_runs_from_the_image_to_the_foot_without_a_leap():
    """Noise in the units of the finest stage (pooling halves it) rises with strength, across the stages too."""
    strengths = np.linspace(0.001, 1, 400)
    levels = [level_of(THREE, float(s)) for s in strengths]
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
            np.testing.assert_allclose(
                levels_from(THREE, (4, 4, 6), editing.Level(stage, sigma)), whole[stage][i:], atol=1e-12
            )
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
    images = GaussianImages.make(THREE, seed=3)
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
    mean, covariance = law(sampler, separate, edit, 100)
    np.testing.assert_allclose(shrink @ mean, small, atol=1e-6)  # float32 in between
    np.testing.assert_allclose(shrink @ covariance @ shrink.T, 0, atol=1e-12)
    tolerance = 0.03 if sampler in ("euler", "ancestral") else 0.01
    np.testing.assert_allclose(mean, enlarge @ small + lost @ images.mean, atol=tolerance)
    np.testing.assert_allclose(covariance, lost @ images.covariance @ lost, atol=3 * tolerance)


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


# -- a generator ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make(size=(8, 16))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.rand(1, 8, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    hole = torch.zeros(1, 8, 16)
    hole[:, 3:6, 5:12] = 1
    return hole


HOW: dict[str, Any] = {"steps": 4, "seed": 3}


@pytest.mark.parametrize("told", [{}, {"label": "shirt"}, {"label": "shirt", "guidance": 2.0, "sampler": "ancestral"}])
def test_full_strength_is_sampling(generator: Generator, picture: Tensor, told: dict[str, Any]):
    assert torch.equal(generator.edit(picture, 3, strength=1, **told, **HOW), generator.sample(3, **told, **HOW))
    assert not torch.equal(generator.edit(picture, 3, strength=0.95, **told, **HOW), generator.sample(3, **told, **HOW))


def test_no_strength_is_the_image(generator: Generator, picture: Tensor, mask: Tensor):
    assert torch.equal(generator.edit(picture, 2, "shirt", strength=0, **HOW), picture.expand(2, 1, 8, 16))
    assert torch.equal(generator.edit(picture, 2, strength=0, mask=mask, **HOW), picture.expand(2, 1, 8, 16))
    near = generator.edit(picture, 2, strength=1e-4, **HOW)
    torch.testing.assert_close(near, picture.expand(2, 1, 8, 16), atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", CLIMBING)
@pytest.mark.parametrize("kind", [IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION])
def test_same_seed_same_picture_whatever_the_batch(
    generator: Generator, picture: Tensor, mask: Tensor, sampler: str, kind: str
):
    image = pool(picture[None])[0] if kind == SUPER_RESOLUTION else picture
    how = {**HOW, "label": ["shirt", "sandal", "shirt", 1, 0], "sampler": sampler, "guidance": 2.0}
    if kind == INPAINTING:
        how["mask"] = mask
    before = torch.get_rng_state()
    whole = generator.edit(image, 5, **how)
    assert torch.equal(torch.get_rng_state(), before)
    assert whole.shape == (5, 1, 8, 16) and whole.dtype == torch.float32
    assert float(whole.min()) >= 0 and float(whole.max()) <= 1
    assert torch.equal(whole, generator.edit(image, 5, **how))
    for batch_size in (1, 2):
        torch.testing.assert_close(whole, generator.edit(image, 5, batch_size=batch_size, **how), atol=1e-4, rtol=0)
    assert not torch.allclose(whole[0], whole[2], atol=1e-3)  # the same label, another stream
    assert not torch.allclose(whole, generator.edit(image, 5, **{**how, "seed": 4}), atol=1e-3)
    assert not torch.allclose(whole, generator.edit(image, 5, **{**how, "label": None, "guidance": 1.0}), atol=1e-3)


def test_known_pixels_stay_as_they_are(generator: Generator, picture: Tensor, mask: Tensor):
    for strength in (None, 0.3):
        painted = generator.edit(picture, 3, mask=mask, strength=strength, **HOW)
        known = (mask == 0).expand(3, -1, -1, -1)
        assert torch.equal(painted[known], picture.expand(3, -1, -1, -1)[known])
        assert not torch.allclose(painted[~known], picture.expand(3, -1, -1, -1)[~known], atol=0.05)
    # At full strength nothing of what is painted over may show.
    other = torch.where(mask == 0, picture, 1 - picture)
    assert torch.equal(generator.edit(other, 3, mask=mask, **HOW), generator.edit(picture, 3, mask=mask, **HOW))
    assert not torch.equal(painted, generator.edit(other, 3, mask=mask, strength=0.3, **HOW))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_enlarged_and_pooled_is_the_small_image(channels: int):
    generator = make(size=(16, 8), channels=channels, stages="3")
    for shape in ((4, 2), (8, 4)):
        small = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(2)).mul(1.6).sub(0.3).clamp(0, 1)
        large = generator.edit(small, 3, **HOW)
        assert large.shape == (3, channels, 16, 8) and float(large.min()) >= 0 and float(large.max()) <= 1
        while large.shape[2:] != shape:
            large = pool(large)
        torch.testing.assert_close(large, small.expand_as(large), atol=1e-5, rtol=0)


def test_without_a_label_nothing_is_told(picture: Tensor):
    """In sampling the classes take turns; an image that is to be changed is not told to be each of them."""
    generator = make(size=(8, 16))
    free = generator.edit(picture, 2, strength=0.5, **HOW)
    torch.testing.assert_close(free, generator.edit(picture, 2, "shirt", strength=0.5, guidance=0.0, **HOW))
    bound = make(size=(8, 16), drop="0")
    assert bound.edit(picture, 1, "shirt", strength=0.5, **HOW).shape == (1, 1, 8, 16)
    with pytest.raises(InputError, match="cannot do without a label"):
        bound.edit(picture, 1, strength=0.5, **HOW)


def test_a_model_of_texts_and_one_without_anything(picture: Tensor):
    plain = make(size=(8, 16), classes=())
    assert plain.edit(picture, 2, strength=0.5, **HOW).shape == (2, 1, 8, 16)
    torch.manual_seed(0)
    config = plain.config
    texts = Generator(config.denoiser(config.ladder((8, 16), 1), Kinds(vector=6, tokens=6)), (), config)
    with torch.no_grad():
        for parameter in texts.denoiser.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    told = Condition(vector=torch.randn(3, 6), tokens=torch.randn(3, 4, 6), mask=torch.ones(3, 4, dtype=torch.bool))
    whole = texts.edit(picture, 3, condition=told, strength=0.5, **HOW)
    parts = texts.edit(picture, 3, condition=told, strength=0.5, batch_size=2, **HOW)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=0)
    assert not torch.allclose(whole, texts.edit(picture, 3, strength=0.5, **HOW), atol=1e-3)
    assert torch.equal(
        texts.edit(picture, 3, condition=told, strength=1, **HOW), texts.sample(3, condition=told, **HOW)
    )


def test_a_network_for_each_rung_begins_at_one(picture: Tensor, mask: Tensor):
    rung = make(size=(8, 16), sharing="rung", rungs="2,3", target="z_next")
    for strength in (0.05, 0.4, 0.5, 0.55, 0.9):
        assert rung.edit(picture, 1, strength=strength).shape == (1, 1, 8, 16)
    assert rung.edit(picture, 1, mask=mask, sampler="ancestral").shape == (1, 1, 8, 16)
    assert rung.edit(pool(picture[None])[0], 1).shape == (1, 1, 8, 16)


# -- what is given ---------------------------------------------------------------------------------------------------------------


def test_which_of_the_three(picture: Tensor, mask: Tensor):
    ladder = Ladder((32, 16), 1, 3)

    def kind(height: int, width: int, **how: Any) -> tuple[str, int]:
        edit = plan(ladder, Image.new("L", (width, height), 100), **how)
        assert tuple(edit.image.shape) == ladder.shape(edit.stage)
        return edit.kind, edit.stage

    assert kind(32, 16) == kind(300, 500) == kind(28, 14) == (IMAGE_TO_IMAGE, 2)
    assert kind(16, 8) == kind(18, 9) == kind(8, 16) == (SUPER_RESOLUTION, 1)
    assert kind(8, 4) == kind(3, 3) == (SUPER_RESOLUTION, 0)
    assert kind(8, 4, strength=0.3) == (IMAGE_TO_IMAGE, 2)
    assert kind(8, 4, mask=Image.new("L", (4, 8), 255)) == (INPAINTING, 2)
    assert plan(Ladder((8, 16)), picture).strength == 0.6 and plan(Ladder((8, 16)), picture, mask=mask).strength == 1


def test_any_mode_is_brought_to_the_models_channels(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    clear = Image.fromarray(pixels)
    clear.save(tmp_path / "clear.png")
    alpha = pixels[..., 3:] / 255
    on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for image in (clear, tmp_path / "clear.png", str(tmp_path / "clear.png")):
        rgba = plan(Ladder((8, 8), 4, 1), image).image
        np.testing.assert_array_equal(rgba.permute(1, 2, 0).mul(255).round(), pixels)
        rgb = plan(Ladder((8, 8), 3, 1), image).image
        np.testing.assert_allclose(rgb.permute(1, 2, 0) * 255, on_white, atol=1)
        grey = plan(Ladder((8, 8), 1, 1), image).image
        np.testing.assert_allclose(grey[0] * 255, on_white @ (0.299, 0.587, 0.114), atol=1.5)
    shades = Image.fromarray(pixels[..., 0])
    for channels in (3, 4):
        image = plan(Ladder((8, 8), channels, 1), shades).image
        np.testing.assert_array_equal(image[:3].mul(255).round(), np.broadcast_to(pixels[..., 0], (3, 8, 8)))
    tensor = torch.rand(3, 8, 8)
    assert torch.equal(plan(Ladder((8, 8), 3, 1), tensor[None]).image, tensor)
    assert plan(Ladder((16, 8), 1, 1), tensor).image.shape == (1, 16, 8)


def test_a_mask_goes_where_the_image_goes():
    """A wide photo is cropped to the middle, its mask with it; half grey is the border between keeping and painting."""
    image, mask = Image.new("L", (64, 32), 50), Image.new("L", (64, 32), 127)
    mask.paste(129, (32, 0, 64, 32))
    known = plan(Ladder((8, 8), 1, 1), image, mask=mask).known
    assert known is not None and known[0, :, :4].all() and not known[0, :, 4:].any()


@pytest.mark.parametrize(
    ("image", "how", "words"),
    [
        ("missing.png", {}, r"'missing.png' is no file"),
        (".", {}, r"'\.' is no file"),
        ("text.png", {}, r"'text.png' cannot be used: not an image"),
        ("empty.png", {}, r"'empty.png' cannot be used"),
        ("huge.png", {}, r"'huge.png' cannot be used: too large \(9000x8000"),
        ("dot.png", {}, r"'dot.png' cannot be used: too small"),
        ("good.png", {"strength": 1.5}, "strength 1.5 is impossible"),
        ("good.png", {"strength": -0.1}, "strength -0.1 is impossible"),
        ("good.png", {"strength": float("nan")}, "strength nan is impossible"),
        ("good.png", {"mask": "wide.png"}, r"'wide.png' is 16x8, but 'good.png' is 8x8: give a mask of the same size"),
        ("good.png", {"mask": "black.png"}, r"'black.png' has no white in it"),
        ("good.png", {"mask": "missing.png"}, r"'missing.png' is no file"),
        ("good.png", {"mask": torch.zeros(1, 8, 8)}, r"the mask has no white in it"),
        (torch.zeros(2, 8, 8), {}, r"the image to start from is a torch.float32 tensor of shape \(2, 8, 8\)"),
        (torch.zeros(3, 1, 8, 8), {}, "give floats"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), {}, "give floats"),
        (torch.full((1, 8, 8), 2.0), {}, r"outside \[0, 1\]"),
        (torch.full((1, 8, 8), float("nan")), {}, r"outside \[0, 1\]"),
    ],
)
def test_impossible_images(inside: Path, image: Any, how: dict[str, Any], words: str):
    Image.new("L", (8, 8), 99).save("good.png")
    Image.new("L", (16, 8), 255).save("wide.png")
    Image.new("L", (8, 8), 0).save("black.png")
    Image.new("L", (1, 1), 0).save("dot.png")
    Path("text.png").write_text("not an image")
    Path("empty.png").touch()
    if image == "huge.png":
        Image.new("1", (9000, 8000)).save("huge.png")
    with pytest.raises(InputError, match=words):
        make().edit(image, 1, **how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sampler": "mean"}, "sampler 'mean' adds no noise"),
        ({"sampler": "eular"}, "did you mean 'euler'"),
        ({"n": 0}, "n=0"),
        ({"resample": 1}, "give a mask too"),
        ({"resample": -1, "mask": torch.ones(1, 8, 16)}, "resample=-1 is impossible"),
        ({"label": "boot"}, "unknown label 'boot'"),
        ({"prompt": "a boot"}, "trained with labels"),
    ],
)
def test_impossible_edits(generator: Generator, picture: Tensor, how: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        generator.edit(picture, **{"n": 1, **how})


def test_a_sampler_that_does_not_climb_is_refused(generator: Generator, picture: Tensor):
    """One that pays no heed to where it should begin would draw something else than was asked for."""
    how: dict[str, Any] = {
        **HOW,
        "sampler": "mean",
        "through": lambda mean: edited(mean, plan(generator.ladder, picture)),
    }
    with pytest.raises(InputError, match="cannot begin at an image"):
        generator.sample(1, **how)
