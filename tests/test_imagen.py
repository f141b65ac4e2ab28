"""The recipes imagen and cascade: what they store, what they draw, going on after a stop, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import Command
from helpers.oracles import TINY, pictures
from sfumato import TrainingRequest, recipes, training_steps
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.film import film
from sfumato.generator import Generator
from sfumato.guidance import Guidance
from sfumato.recipes import RECIPES, cascade_training, imagen
from sfumato.recipes.cascade import Cascade
from sfumato.training import Progress

SETTINGS = {**TINY, "batch": "8"}
THRESHOLD = 0.9
COLOURS = ("red heart", "green cat", "blue sun")


def captioned(size: tuple[int, int] = (16, 16)) -> ImageSet:
    data = pictures(size=size)
    assert data.labels is not None
    texts = tuple((COLOURS[label], COLOURS[label].split()[0]) for label in data.labels)
    return replace(data, labels=None, classes=(), captions=texts)


def start(data: ImageSet, out: Path, recipe: str = "cascade", **how: Any) -> Iterator[Progress]:
    how = {"steps": 8, "device": "cpu", **how, "settings": {**SETTINGS, **how.get("settings", {})}}
    return RECIPES[recipe](TrainingRequest(data, out, **how))


def finish(data: ImageSet, out: Path, recipe: str = "cascade", **how: Any) -> list[Progress]:
    return list(start(data, out, recipe, **how))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    files = sorted(out.glob("**/*.safetensors"))
    return {f"{f.relative_to(out)}.{k}": v for f in files for k, v in load_file(f).items()}


def assert_same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first and first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# -- imagen ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagen_run(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imagen") / "run"
    finish(captioned(), out, "imagen", settings={"text": bert})
    return out


def test_imagen_draws_with_its_own_guidance(imagen_run: Path):
    generator = recipes.load(imagen_run, "cpu")
    assert isinstance(generator, Generator)
    paper = Guidance(float(imagen.DEFAULTS["guidance"]), threshold=THRESHOLD)
    assert paper.scale > 1 and generator.default_guidance == paper
    torch.manual_seed(0)
    for parameter in generator.denoiser.parameters():  # four steps of training leave the text nearly unheard
        parameter.data += 0.05 * torch.randn_like(parameter)
    drawn = generator.sample(3, prompt="red heart", steps=4)
    assert torch.equal(drawn, generator.sample(3, prompt="red heart", steps=4, guidance=paper))
    assert torch.equal(drawn, generator.sample(3, prompt="red heart", steps=4, guidance=paper.scale))
    for other in (Guidance(paper.scale), Guidance(2.0, threshold=THRESHOLD)):
        assert not torch.allclose(drawn, generator.sample(3, prompt="red heart", steps=4, guidance=other), atol=1e-3)


def test_imagen_changes_the_sampling_not_the_training(imagen_run: Path, bert: str, tmp_path: Path):
    settings = {**SETTINGS, "text": bert}
    list(training_steps(TrainingRequest(captioned(), tmp_path / "plain", steps=8, device="cpu", settings=settings)))
    assert_same(imagen_run, tmp_path / "plain")
    assert Generator.from_pretrained(tmp_path / "plain", "cpu").default_guidance.threshold == 0


def test_another_guidance_is_no_other_run(bert: str, tmp_path: Path):
    finish(captioned(), tmp_path / "run", "imagen", settings={"text": bert}, steps=2)
    finish(captioned(), tmp_path / "run", "imagen", settings={"text": bert, "guidance": "2"}, steps=3)
    generator = recipes.load(tmp_path / "run", "cpu")
    assert generator.default_guidance == Guidance(2.0, threshold=THRESHOLD) and generator.config.drop == 0.1


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (pictures(size=(16, 16)), {}, "imagen is conditioned on text, but bars has no captions"),
        (captioned(), {"drop": "0"}, "guides its samples, which drop=0 makes impossible"),
        (captioned(), {"drop": " 0.00"}, "guides its samples, which drop=0 makes impossible"),
        (captioned(), {"threshold": "2"}, "threshold=2.0 is impossible"),
        (captioned(), {"guidance": "nan"}, "guidance=nan is impossible"),
    ],
)
def test_imagen_says_what_it_cannot_use(data: ImageSet, settings: dict[str, str], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said):
        start(data, tmp_path / "run", "imagen", settings=settings)
    assert not (tmp_path / "run").exists()


# -- cascade: training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade from 8 to 16 pixels, on labels, that nothing stopped. Not to be written to."""
    out = tmp_path_factory.mktemp("cascade") / "run"
    finish(pictures(size=(16, 16)), out)
    return out


def test_each_model_is_a_run_of_its_own(run: Path):
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == "cascade"
    assert config["models"] == ["base", "up-1"] and config["sizes"] == [[8, 8], [16, 16]]
    base, up = (Generator.from_pretrained(run / name, "cpu") for name in ("base", "up-1"))
    assert (base.ladder.size, base.ladder.stages, base.kinds.image) == ((8, 8), 1, 0)
    assert (up.ladder.size, up.ladder.stages, up.kinds.image) == ((16, 16), 1, 1)
    assert base.kinds.classes == up.kinds.classes == 3


def test_the_budget_is_shared_by_the_rule(tmp_path: Path):
    data = pictures(size=(64, 64), count=8, channels=3)
    settings = {"channels": "16", "blocks": "1", "patch": "8", "width": "16", "batch": "2"}
    log = list(RECIPES["cascade"](TrainingRequest(data, tmp_path / "run", steps=8, device="cpu", settings=settings)))
    assert [p.part for p in log] == ["base"] * 4 + ["up-1"] * 2 + ["up-2"] * 2
    assert [p.fraction for p in log] == pytest.approx([i / 8 for i in range(1, 9)])
    models = recipes.load(tmp_path / "run", "cpu").models
    assert [model.ladder.size for model in models] == [(side, side) for side in (16, 32, 64)]


@pytest.mark.parametrize(("steps", "count"), [(8, 2), (3, 3), (17, 3), (2, 2), (1001, 3)])
def test_no_step_is_lost_in_sharing(steps: int, count: int):
    from sfumato.engine.budget import Budget

    for name in ("steps", "images"):
        parts = [getattr(part, name) for part in cascade_training._shared(Budget(**{name: steps}), count)]
        assert sum(parts) == steps and min(parts) >= 1 and abs(parts[0] - steps / 2) <= 1
    minutes = [part.minutes for part in cascade_training._shared(Budget(minutes=6.0), count)]
    assert minutes == pytest.approx([3.0, *[3 / (count - 1)] * (count - 1)])


def test_small_images_are_means_of_blocks():
    data = pictures(size=(16, 16), channels=3)
    small = cascade_training._shrunk(data, 2)
    blocks = data.images.reshape(len(data), 4, 4, 4, 4, 3).mean((2, 4))
    assert np.abs(small.images - blocks).max() <= 0.5 + 1e-4
    assert small.labels is data.labels and small.classes == data.classes
    assert cascade_training._shrunk(data, 0) is data


def test_settings_for_one_model(tmp_path: Path):
    settings = {"batch": "6", "up-1.batch": "4", "level": "0.25"}
    finish(pictures(size=(16, 16)), tmp_path / "run", steps=2, settings=settings)
    loaded = recipes.load(tmp_path / "run", "cpu")
    assert [model.config.batch for model in loaded.models] == [6, 4] and loaded.level == 0.25


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_stopped_cascade_goes_on_to_the_same_weights(stop: int, run: Path, tmp_path: Path):
    data = pictures(size=(16, 16))
    with closing(start(data, tmp_path / "run")) as steps:  # type: ignore[type-var]
        for _ in range(stop):
            next(steps)
    if stop == 2:
        with pytest.raises(InputError, match="has no model 'up-1' yet: the same 'sfumato train' command goes on"):
            recipes.load(tmp_path / "run", "cpu")
    log = finish(data, tmp_path / "run")
    assert len(log) == 8 - stop and log[-1].fraction == pytest.approx(1)
    assert_same(run, tmp_path / "run")
    assert finish(data, tmp_path / "run") == []


def test_a_larger_budget_goes_on(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    log = finish(pictures(size=(16, 16)), tmp_path / "run", steps=12)
    assert [(getattr(p, "part", ""), p.step) for p in log] == [("base", 5), ("base", 6), ("up-1", 5), ("up-1", 6)]


# -- cascade: sampling -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lively(run: Path) -> Cascade:
    """The cascade with its weights moved at random: after a few steps of training little is heard."""
    loaded = recipes.load(run, "cpu")
    assert isinstance(loaded, Cascade)
    torch.manual_seed(0)
    for model in loaded.models:
        for parameter in model.denoiser.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return loaded


def test_samples_are_pictures_that_depend_on_seed_and_number_alone(lively: Cascade):
    drawn = lively.sample(5, "red", steps=3, seed=1)
    assert drawn.shape == (5, 1, 16, 16) and drawn.dtype == torch.float32
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert torch.equal(drawn, lively.sample(5, "red", steps=3, seed=1))
    torch.testing.assert_close(lively.sample(5, "red", steps=3, seed=1, batch_size=2), drawn, atol=1e-5, rtol=0)
    torch.testing.assert_close(lively.sample(2, "red", steps=3, seed=1), drawn[:2], atol=1e-5, rtol=0)
    assert not torch.allclose(lively.sample(5, "red", steps=3, seed=2), drawn, atol=1e-2)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "how",
    [{"label": "green"}, {"level": 0.5}, {"guidance": 3.0}, {"steps": (3, 4)}, {"steps": (4, 3)}, {"sampler": "euler"}],
)
def test_what_is_asked_for_is_heard(how: dict[str, Any], lively: Cascade):
    usual: dict[str, Any] = {"label": "red", "steps": 3}
    assert (lively.sample(4, **usual) - lively.sample(4, **{**usual, **how})).abs().max() > 1e-3


def test_labels_are_told_to_all_models(lively: Cascade):
    base, up = lively.models
    plain, green = (Cascade([base, up]).sample(3, label, steps=2) for label in ("red", "green"))
    for model in (base, up):
        network: Any = model.denoiser.networks[0]
        kept: torch.Tensor = network.embed.label.weight
        before = kept.detach().clone()
        kept.data[0] += 1.0  # of red
        assert (Cascade([base, up]).sample(3, "red", steps=2) - plain).abs().max() > 1e-3
        assert torch.equal(Cascade([base, up]).sample(3, "green", steps=2), green)
        kept.data.copy_(before)


def test_each_class_in_turn_and_progress(lively: Cascade):
    told: list[tuple[int, int]] = []
    drawn = lively.sample(5, steps=2, batch_size=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
    names = [lively.classes[i] for i in lively.labels(5)]
    assert names == ["red", "green", "blue", "red", "green"]
    torch.testing.assert_close(lively.sample(5, names, steps=2), drawn, atol=1e-5, rtol=0)


def test_saved_and_loaded_it_draws_the_same(lively: Cascade, tmp_path: Path):
    lively.save(tmp_path / "saved")
    loaded = recipes.load(tmp_path / "saved", "cpu")
    assert torch.equal(loaded.sample(2, "blue", steps=2), lively.sample(2, "blue", steps=2))
    assert loaded.ladder.size == (16, 16) and loaded.default_guidance == Guidance()


def test_a_cascade_that_is_told_nothing(tmp_path: Path):
    finish(pictures(size=(16, 16), labelled=False), tmp_path / "run", steps=2)
    assert recipes.load(tmp_path / "run", "cpu").sample(2, steps=2).shape == (2, 1, 16, 16)


def test_texts(bert: str, tmp_path: Path):
    finish(captioned(), tmp_path / "run", settings={"text": bert}, steps=4)
    loaded = recipes.load(tmp_path / "run", "cpu")
    assert loaded.default_guidance == Guidance(float(imagen.DEFAULTS["guidance"]), threshold=THRESHOLD)
    assert all(model.kinds.tokens and model.config.drop == 0.1 for model in loaded.models)
    drawn = loaded.sample(2, prompt=["red heart", "blue sun"], steps=2)
    assert drawn.shape == (2, 1, 16, 16)
    with pytest.raises(InputError, match="trained without labels"):
        loaded.sample(2, "red")


# -- cascade: bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "how", "said"),
    [
        ((8, 8), {}, "images of 8x8 are too small for a cascade"),
        ((16, 12), {}, "images of 16x12 are too small for a cascade"),
        ((18, 18), {}, "images of 18x18 are too small for a cascade, or cannot be halved into an even size"),
        ((16, 16), {"settings": {"base": "16"}}, "base='16' does not fit images of 16x16: give 8"),
        ((32, 32), {"settings": {"base": "4"}}, "base='4' does not fit images of 32x32: give 16 or 8"),
        ((16, 16), {"settings": {"level": "0"}}, "level=0 is impossible: give a noise level over 0"),
        ((16, 16), {"settings": {"level": "low"}}, "level='low' cannot be read: give a number"),
        ((16, 16), {"settings": {"stages": "2"}}, "stages= does not fit a cascade"),
        ((16, 16), {"settings": {"up-1.stages": "2"}}, "stages= does not fit a cascade"),
        ((16, 16), {"settings": {"up1.batch": "2"}}, "'up1.batch' names no model of this cascade: did you mean 'up-1'"),
        ((16, 16), {"settings": {"bacth": "2"}}, "unknown setting 'bacth': did you mean 'batch'"),
        ((16, 16), {"settings": {"up-1.text": "other"}}, "share one text encoder, but text= is minilm and other"),
        ((16, 16), {"steps": 1}, "--steps 1 cannot be shared over 2 models: give 2 or more"),
        ((16, 16), {"steps": 0}, "--steps 0 leaves no time to train"),
        ((16, 16), {"steps": 4, "images": 4}, "the budget was given as images and steps"),
        ((16, 16), {"preset": "tinny"}, "unknown preset 'tinny'"),
    ],
)
def test_bad_input_leaves_nothing_behind(size: tuple[int, int], how: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said):
        start(pictures(size=size), tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_not_written_into(run: Path, digits_run: Path, tmp_path: Path):
    data = pictures(size=(16, 16))
    with pytest.raises(InputError, match="holds another run, a single model"):
        start(data, digits_run)
    shutil.copytree(run, tmp_path / "run")
    before = tensors(tmp_path / "run")
    with pytest.raises(InputError, match=r"another run \(a cascade from 8x8 to 16x16, now 16x16 to 32x32\)"):
        start(pictures(size=(32, 32)), tmp_path / "run")
    with pytest.raises(InputError, match=r"holds another run .*batch was 8, now 4"):
        start(data, tmp_path / "run", settings={"up-1.batch": "4"})
    with pytest.raises(InputError, match=r"holds another run .*seed was 0, now 1"):
        start(data, tmp_path / "run", seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"recipe": "dalle2"}')
    with pytest.raises(InputError, match="holds another run: give another --out"):
        start(data, tmp_path / "other")
    assert before.keys() == tensors(tmp_path / "run").keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        (', "format": 9', "is of format 9, this sfumato reads format 1: update it"),
        (', "format": 1, "models": ["../x"], "sizes": [[8, 8]], "level": 0.1', "is damaged"),
        (', "format": 1, "models": ["base"], "sizes": [[8, 8]], "level": -1', "level=-1 is impossible"),
        (', "format": 1, "models": "base", "sizes": 3, "level": 0.1', "is damaged"),
    ],
)
def test_a_damaged_config_is_said_to_be(text: str, said: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(f'{{"recipe": "cascade"{text}}}')
    with pytest.raises(InputError, match=said):
        recipes.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n": 0}, "n=0 and batch_size=64: both must be 1 or more"),
        ({"level": 0.0}, "level=0 is impossible"),
        ({"level": float("nan")}, "level=nan is impossible"),
        ({"steps": (2, 2, 2)}, r"steps \(2, 2, 2\) do not fit 2 models"),
        ({"label": "gren"}, "unknown label 'gren': did you mean 'green'"),
        ({"prompt": "a cat"}, "a prompt was given, but this model was trained with labels"),
        ({"weak": "something"}, "a weak model cannot guide a cascade"),
        ({"sampler": "eulr"}, "unknown sampler 'eulr'"),
    ],
)
def test_impossible_samples(how: dict[str, Any], said: str, lively: Cascade):
    with pytest.raises(InputError, match=said):
        lively.sample(**how)


def test_models_that_do_not_fit_each_other(lively: Cascade):
    base, up = lively.models
    for wrong in ([up, base], [base, base], [base, up, up]):
        with pytest.raises(InputError, match=r"cannot enlarge those .* must be trained to enlarge, to twice the size"):
            Cascade(wrong)
    with pytest.raises(InputError, match="level=0 is impossible"):
        Cascade([base, up], level=0.0)


def test_no_film(lively: Cascade):
    with pytest.raises(InputError, match="film one of its models, such as its base/"):
        film(lively, 1)


def test_no_cascade_there(digits_run: Path, tmp_path: Path):
    for folder in (digits_run, tmp_path / "nothing"):
        with pytest.raises(InputError, match="holds no cascade"):
            Cascade.from_pretrained(folder)


# -- the command line --------------------------------------------------------------------------------------------------


def test_train_and_sample_by_command(sfumato: Command, inside: Path):
    from PIL import Image

    sets = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    for kind in ("red", "blue"):
        (inside / "data" / kind).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (16, 16), 40 * i).save(inside / "data" / kind / f"{i}.png")
    sfumato("train", "--data", "data", "--recipe", "cascade", "--out", "run", "--steps", 4, *sets).done()
    sfumato("sample", "run", "--label", "red", "-n", 2, "--steps", 2, "-o", "out.png").done()
    assert (inside / "out.png").exists()
    small = sfumato("train", "--data", "digits", "--recipe", "cascade", "--out", "r2")
    assert "too small for a cascade" in small.sentence
    assert "has no captions" in sfumato("train", "--data", "data", "--recipe", "imagen", "--out", "r3").sentence
