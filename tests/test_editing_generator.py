"""Editing: what a generator must keep to with any network, and the images and masks that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.generators import random_generator
from sfumato.conditions import Condition, Kinds
from sfumato.core.errors import InputError
from sfumato.editing import IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION, edit, edited, plan, start_level
from sfumato.generator import Generator
from sfumato.ladder import Ladder, pool
from sfumato.samplers import SAMPLERS

CLIMBING = [name for name in SAMPLERS if name != "mean"]

# -- a generator ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(size=(8, 16))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    # Squared, so that no value comes back from [-1, 1] space just as it went in.
    return torch.rand(1, 8, 16, generator=torch.Generator().manual_seed(1)).square()


@pytest.fixture(scope="module")
def mask() -> Tensor:
    hole = torch.zeros(1, 8, 16)
    hole[:, 3:6, 5:12] = 1
    return hole


HOW: dict[str, Any] = {"steps": 4, "seed": 3}


@pytest.mark.parametrize("told", [{}, {"label": "shirt"}, {"label": "shirt", "guidance": 2.0, "sampler": "ancestral"}])
def test_full_strength_is_sampling(generator: Generator, picture: Tensor, told: dict[str, Any]):
    sampled = generator.sample(3, **told, **HOW)
    assert torch.equal(edit(generator, picture, 3, strength=1, **told, **HOW), sampled)
    assert not torch.equal(edit(generator, picture, 3, strength=0.95, **told, **HOW), sampled)


def test_no_strength_is_the_image(generator: Generator, picture: Tensor, mask: Tensor):
    assert torch.equal(edit(generator, picture, 2, "shirt", strength=0, **HOW), picture.expand(2, 1, 8, 16))
    assert torch.equal(edit(generator, picture, 2, strength=0, mask=mask, **HOW), picture.expand(2, 1, 8, 16))
    near = edit(generator, picture, 2, strength=1e-4, **HOW)
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
    whole = edit(generator, image, 5, **how)
    assert torch.equal(torch.get_rng_state(), before)
    assert whole.shape == (5, 1, 8, 16) and whole.dtype == torch.float32
    assert float(whole.min()) >= 0 and float(whole.max()) <= 1
    assert torch.equal(whole, edit(generator, image, 5, **how))
    for batch_size in (1, 2):
        torch.testing.assert_close(whole, edit(generator, image, 5, batch_size=batch_size, **how), atol=1e-4, rtol=0)
    assert not torch.allclose(whole[0], whole[2], atol=1e-3)  # the same label, another stream
    assert not torch.allclose(whole, edit(generator, image, 5, **{**how, "seed": 4}), atol=1e-3)
    assert not torch.allclose(whole, edit(generator, image, 5, **{**how, "label": None, "guidance": 1.0}), atol=1e-3)


def test_known_pixels_stay_as_they_are(generator: Generator, picture: Tensor, mask: Tensor):
    for strength in (None, 0.3):
        painted = edit(generator, picture, 3, mask=mask, strength=strength, **HOW)
        known = (mask == 0).expand(3, -1, -1, -1)
        assert torch.equal(painted[known], picture.expand(3, -1, -1, -1)[known])
        assert not torch.allclose(painted[~known], picture.expand(3, -1, -1, -1)[~known], atol=0.05)
    # At full strength nothing of what is painted over may show.
    other = torch.where(mask == 0, picture, 1 - picture)
    assert torch.equal(edit(generator, other, 3, mask=mask, **HOW), edit(generator, picture, 3, mask=mask, **HOW))
    assert not torch.equal(painted, edit(generator, other, 3, mask=mask, strength=0.3, **HOW))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_enlarged_and_pooled_is_the_small_image(channels: int):
    generator = random_generator(size=(16, 8), channels=channels, stages="3")
    for shape in ((4, 2), (8, 4)):
        small = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(2)).mul(1.6).sub(0.3).clamp(0, 1)
        large = edit(generator, small, 3, **HOW)
        assert large.shape == (3, channels, 16, 8) and float(large.min()) >= 0 and float(large.max()) <= 1
        while large.shape[2:] != shape:
            large = pool(large)
        torch.testing.assert_close(large, small.expand_as(large), atol=1e-5, rtol=0)


def test_without_a_label_nothing_is_told(picture: Tensor):
    """In sampling the classes take turns; an image that is to be changed is not told to be each of them."""
    generator = random_generator(size=(8, 16))
    free = edit(generator, picture, 2, strength=0.5, **HOW)
    torch.testing.assert_close(free, edit(generator, picture, 2, "shirt", strength=0.5, guidance=0.0, **HOW))
    bound = random_generator(size=(8, 16), drop="0")
    assert edit(bound, picture, 1, "shirt", strength=0.5, **HOW).shape == (1, 1, 8, 16)
    with pytest.raises(InputError, match="cannot do without a label"):
        edit(bound, picture, 1, strength=0.5, **HOW)


def test_a_model_of_texts_and_one_without_anything(picture: Tensor):
    plain = random_generator(size=(8, 16), classes=())
    assert edit(plain, picture, 2, strength=0.5, **HOW).shape == (2, 1, 8, 16)
    torch.manual_seed(0)
    config = plain.config
    texts = Generator(config.denoiser(config.ladder((8, 16), 1), Kinds(vector=6, tokens=6)), (), config)
    with torch.no_grad():
        for parameter in texts.denoiser.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    told = Condition(vector=torch.randn(3, 6), tokens=torch.randn(3, 4, 6), mask=torch.ones(3, 4, dtype=torch.bool))
    whole = edit(texts, picture, 3, condition=told, strength=0.5, **HOW)
    parts = edit(texts, picture, 3, condition=told, strength=0.5, batch_size=2, **HOW)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=0)
    assert not torch.allclose(whole, edit(texts, picture, 3, strength=0.5, **HOW), atol=1e-3)
    full = edit(texts, picture, 3, condition=told, strength=1, **HOW)
    assert torch.equal(full, texts.sample(3, condition=told, **HOW))


def test_a_network_for_each_rung_begins_at_one(picture: Tensor, mask: Tensor):
    rung = random_generator(size=(8, 16), sharing="rung", rungs="2,3", target="z_next")
    for strength in (0.05, 0.4, 0.5, 0.55, 0.9):
        assert edit(rung, picture, 1, strength=strength).shape == (1, 1, 8, 16)
        asked, planned = start_level(rung.ladder, strength), plan(rung.ladder, picture, strength)
        begun = next(rung.trace(1, "shirt", through=lambda method, p=planned: edited(method, p, on_rungs=True)))
        apart = [abs(s / (1 + s) - asked.sigma / (1 + asked.sigma)) for s in rung.denoiser.rungs[asked.stage][:-1]]
        assert begun.stage == asked.stage and begun.sigma == rung.denoiser.rungs[asked.stage][int(np.argmin(apart))]
    assert edit(rung, picture, 1, mask=mask, sampler="ancestral").shape == (1, 1, 8, 16)
    assert edit(rung, pool(picture[None])[0], 1).shape == (1, 1, 8, 16)


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
        edit(random_generator(), image, 1, **how)


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
        edit(generator, picture, **{"n": 1, **how})


def test_a_sampler_that_does_not_climb_is_refused(generator: Generator, picture: Tensor):
    """One that pays no heed to where it should begin would draw something else than was asked for."""
    planned = plan(generator.ladder, picture)
    with pytest.raises(InputError, match="cannot begin at an image"):
        generator.sample(1, sampler="mean", through=lambda mean: edited(mean, planned), **HOW)
