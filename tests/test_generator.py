"""The generator: seeds, labels, batches, files, denoising, guidance by a weaker model; with small untrained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.generators import random_generator
from helpers.oracles import TINY
from sfumato.conditions import Condition, Kinds
from sfumato.config import Config
from sfumato.core.errors import InputError
from sfumato.generator import Generator, to_pixels
from sfumato.guidance import Guidance
from sfumato.samplers import SAMPLERS

CLASSES = ("sandal", "sneaker", "shirt")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


def test_pictures_are_pixels(generator: Generator):
    pixels = generator.sample(5, steps=4)
    assert pixels.shape == (5, 1, 8, 8) and pixels.dtype == torch.float32
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1 and float(pixels.std()) > 0.01
    assert not pixels.requires_grad


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_same_seed_same_picture_whatever_the_batch(generator: Generator, sampler: str):
    how: dict[str, Any] = {"steps": 4, "sampler": sampler, "seed": 3, "guidance": 2.0}
    whole = generator.sample(7, **how)
    assert torch.equal(whole, generator.sample(7, **how))
    for batch_size in (1, 3):
        parts = generator.sample(7, batch_size=batch_size, **how)
        assert int((whole.mul(255).round() - parts.mul(255).round()).abs().max()) <= 1
    assert not torch.allclose(whole, generator.sample(7, **{**how, "seed": 4}), atol=1e-3)
    assert not torch.allclose(whole[0], whole[3], atol=1e-3)  # the same label, another stream


@pytest.mark.parametrize("label", ["shirt", None])
def test_first_picks_up_in_the_middle(generator: Generator, label: str | None):
    """Without a label the classes come in turn, by the number of the image."""
    whole = generator.sample(6, label, steps=4)
    rest = list(generator.trace(2, label, steps=4, first=4))[-1].x_hat
    torch.testing.assert_close(to_pixels(rest), whole[4:], atol=1e-4, rtol=0)


def test_sampling_touches_no_global_random_state(generator: Generator):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generator.sample(2, steps=3, sampler="ancestral")
    assert torch.equal(before, torch.get_rng_state())


# -- labels -------------------------------------------------------------------------------------------------------------


def test_labels_by_name_number_and_list(generator: Generator):
    assert generator.labels(3, "shirt").tolist() == [2, 2, 2]
    assert generator.labels(2, 1).tolist() == [1, 1]
    assert generator.labels(2, "1").tolist() == [1, 1]
    assert generator.labels(3, ["shirt", 0, "sneaker"]).tolist() == [2, 0, 1]
    assert generator.labels(2, np.array([2, 1])).tolist() == [2, 1]  # type: ignore[arg-type]
    assert generator.labels(2, torch.tensor([2, 1])).tolist() == [2, 1]  # type: ignore[arg-type]
    assert generator.labels(5).tolist() == [0, 1, 2, 0, 1]  # in turn
    assert generator.labels(2).dtype == torch.int64
    torch.testing.assert_close(generator.sample(2, "shirt", steps=3), generator.sample(2, [2, 2], steps=3))
    assert not torch.allclose(generator.sample(2, 0, steps=3), generator.sample(2, 1, steps=3), atol=1e-3)


def test_a_name_that_is_a_number_is_a_name():
    assert random_generator(classes=("3", "5", "0")).labels(1, "0").tolist() == [2]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("sneeker", "unknown label 'sneeker': did you mean 'sneaker'"),
        ("SHIRT", "did you mean 'shirt'"),
        ("zzz", "choose one of: sandal, shirt, sneaker"),
        (3, "unknown label 3"),
        (-1, "unknown label -1"),
        (["shirt", "hat"], "unknown label 'hat'"),
        (["shirt"], "1 labels were given for 2 images"),
        ("", "unknown label ''"),
    ],
)
def test_unknown_labels(generator: Generator, label: Any, words: str):
    with pytest.raises(InputError, match=words):
        generator.sample(2, label, steps=2)


def test_a_model_without_labels():
    plain = random_generator(classes=())
    assert plain.sample(2, steps=3).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="trained without labels"):
        plain.sample(2, "shirt", steps=3)
    with pytest.raises(InputError, match="guidance needs labels"):
        plain.sample(2, steps=3, guidance=2.0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sampler": "huen"}, "did you mean 'heun'"),
        ({"steps": 1}, "1 steps are too few"),
        ({"steps": 0}, "0 steps"),
        ({"steps": (3, 3, 3)}, "steps"),
        ({"steps": (3, 0)}, "steps"),
        ({"guidance": -2.0}, "guidance -2"),
        ({"n": 0}, "n=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_impossible_requests(generator: Generator, how: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        generator.sample(**{"n": 2, **how})


def test_tracing_no_image_is_refused(generator: Generator):
    with pytest.raises(InputError, match="n=0"):
        list(generator.trace(0, steps=4))


# -- rung by rung ---------------------------------------------------------------------------------------------------------


def test_trace_climbs_stage_by_stage(generator: Generator):
    rungs = list(generator.trace(2, "shirt", steps=(2, 3), seed=1))
    assert [rung.stage for rung in rungs] == [0, 0, 0, 1, 1, 1, 1]
    for stage in (0, 1):
        sigmas = [rung.sigma for rung in rungs if rung.stage == stage]
        assert sigmas == sorted(sigmas, reverse=True) and len(set(sigmas)) == len(sigmas)
        shape = (2, *generator.ladder.shape(stage))
        assert all(rung.z.shape == shape == rung.x_hat.shape for rung in rungs if rung.stage == stage)
    assert rungs[0].sigma == generator.ladder.jumps[0] and rungs[-1].sigma == 0
    torch.testing.assert_close(to_pixels(rungs[-1].x_hat), generator.sample(2, "shirt", steps=(2, 3), seed=1))


def test_gradients_of_the_caller_survive_a_trace(generator: Generator):
    rungs = generator.trace(1, steps=4)
    next(rungs)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        next(rungs)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


# -- guidance -------------------------------------------------------------------------------------------------------------


def test_guidance_1_is_off(generator: Generator):
    base = generator.sample(3, steps=4)
    assert torch.equal(base, generator.sample(3, steps=4, guidance=1))
    assert not torch.allclose(base, generator.sample(3, steps=4, guidance=3.0), atol=1e-3)
    outside = Guidance(3.0, interval=(1e6, 1e7))
    assert torch.equal(base, generator.sample(3, steps=4, guidance=outside))


def test_guidance_0_is_the_unconditional_model(generator: Generator):
    """u + 0 (c - u): the label must not matter."""
    shirts, sandals = (generator.sample(2, name, steps=4, guidance=0.0) for name in ("shirt", "sandal"))
    torch.testing.assert_close(shirts, sandals)


def test_autoguidance_by_a_weaker_model(generator: Generator):
    weak = random_generator(seed=9)
    how: dict[str, Any] = {"steps": 4, "sampler": "euler"}
    plain = generator.sample(2, **how)
    same = generator.sample(2, **how, guidance=3.0, weak=generator)  # c + 2 (c - c)
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=0)
    assert not torch.allclose(generator.sample(2, **how, guidance=3.0, weak=weak), plain, atol=1e-3)
    alone = generator.sample(2, **how, guidance=0.0, weak=weak)
    torch.testing.assert_close(alone, weak.sample(2, **how), atol=1e-4, rtol=0)
    one, two = (random_generator(seed=seed, classes=()) for seed in (0, 9))
    assert one.sample(2, steps=4, guidance=2.0, weak=two).shape == (2, 1, 8, 8)
    for other in (random_generator(classes=("a", "b", "c")), random_generator(size=(16, 16))):
        with pytest.raises(InputError, match="the weak model must have the same"):
            generator.sample(2, guidance=2.0, weak=other)


# -- denoising ------------------------------------------------------------------------------------------------------------


def test_denoise_works_in_pixels(generator: Generator):
    clean = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator.denoise(clean, 1e-4), clean, atol=0.02, rtol=0)
    each = torch.tensor([0.1, 0.3, 0.6])
    together = generator.denoise(clean, each, ["shirt", "sandal", 1])
    alone = [generator.denoise(clean[i : i + 1], float(each[i]), label) for i, label in enumerate((2, 0, 1))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    nothing, r = Condition(torch.full((3,), 3)), torch.ones(3)  # plain states: r = 1
    dropped = generator.denoiser(2 * clean - 1, 2 * each, 1, nothing, r)
    torch.testing.assert_close(generator.denoise(clean, each), (dropped.detach() + 1) / 2, atol=1e-6, rtol=1e-5)


def test_denoise_of_an_untrained_model_is_the_linear_denoiser():
    config = Config(stages=1).with_settings({**TINY})
    denoiser = config.denoiser(config.ladder((8, 8), 1), Kinds(), smooth_rms=(0.5,), sharp_rms=(0.0,))
    untrained = Generator(denoiser, (), config)
    x = torch.rand(2, 1, 8, 8)
    sigma = 0.3  # 0.6 in [-1, 1] space, where the data's root mean square is 0.5
    expected = ((2 * x - 1) * 0.5**2 / (0.5**2 + 0.6**2) + 1) / 2
    torch.testing.assert_close(untrained.denoise(x, sigma), expected)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16)])
def test_impossible_images(generator: Generator, shape: tuple[int, ...]):
    with pytest.raises(InputError, match="do not fit this model"):
        generator.denoise(torch.zeros(shape), 0.1)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([0.1, 0.2, 0.3])])
def test_impossible_noise(generator: Generator, sigma: Any):
    with pytest.raises(InputError, match="sigma"):
        generator.denoise(torch.zeros(2, 1, 8, 8), sigma)


# -- files ----------------------------------------------------------------------------------------------------------------


RUNGS = {"sharing": "rung", "rungs": "2,2", "target": "z_next"}


@pytest.mark.parametrize("settings", [{}, {"sharing": "stage"}, RUNGS, {"plain": "1,0.5", "jumps": "30,2"}])
def test_saved_and_loaded_it_draws_the_same(tmp_path: Path, settings: dict[str, Any]):
    one = random_generator(**settings)
    one.save(tmp_path / "model")
    how: dict[str, Any] = {"sampler": "euler", "seed": 2}
    for path in (tmp_path / "model", str(tmp_path / "model" / "model.safetensors")):
        two = Generator.from_pretrained(path, "cpu")
        assert two.classes == CLASSES and two.ladder == one.ladder
        assert torch.equal(one.sample(3, **how), two.sample(3, **how))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("size", "channels"), [((8, 16), 3), ((12, 8), 4)])
def test_oblong_and_coloured_models(tmp_path: Path, size: tuple[int, int], channels: int):
    one = random_generator(size=size, channels=channels)
    one.save(tmp_path)
    two = Generator.from_pretrained(tmp_path, "cpu")
    pixels = two.sample(2, steps=4)
    assert pixels.shape == (2, channels, *size)
    assert torch.equal(pixels, one.sample(2, steps=4))


# -- one network a rung -----------------------------------------------------------------------------------------------------


def test_a_network_for_each_rung_draws_without_being_told_how_and_refuses_what_it_cannot_do():
    rung = random_generator(sharing="rung", rungs="2,3", target="z_next")
    assert rung.sample(2).shape == (2, 1, 8, 8)  # no sampler and no steps given: both are the model's own
    assert [one.stage for one in rung.trace(1)] == [0, 0, 0, 1, 1, 1, 1]
    for sampler in ("euler", "ancestral", "mean", "dpmpp-2m"):
        assert rung.sample(1, sampler=sampler).shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match="heun"):
        rung.sample(1, sampler="heun")
    with pytest.raises(InputError, match="leave the steps out"):
        rung.sample(1, sampler="euler", steps=9)
    assert rung.sample(1, sampler="euler", steps=(2, 3)).shape == (1, 1, 8, 8)
