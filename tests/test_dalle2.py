"""DALL-E 2: the prior on vectors whose law is known, the sphere, the whole recipe in small, going on, files, bad input."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import kstest
from torch import Tensor

from helpers.commands import Command
from helpers.folders import COLOURS
from helpers.oracles import TINY
from helpers.text_models import save_clip_pair
from sfumato import recipes
from sfumato.conditions import Kinds
from sfumato.conditions.image import TransformersClip
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.engine import Budget, train_steps
from sfumato.film import film
from sfumato.recipes import RECIPES, prior_training
from sfumato.recipes.dalle2 import DallE2, slerp
from sfumato.recipes.dalle2_training import SPREAD, Embeddings
from sfumato.recipes.prior import Prior, sample_vectors
from sfumato.recipes.prior_training import Pairs, PriorObjective
from sfumato.training import TrainingRequest

SIDE = 16
STEPS = {"embedding": 18, "prior": 27, "decoder": 135}  # of 180, by the shares


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the prior ---------------------------------------------------------------------------------------------------------


def test_sampling_with_the_exact_denoiser_gives_the_law():
    # x ~ N(m, C): E[x | x + s e] = m + C (C + s^2)^-1 (z - m).
    mean = torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64)
    root = normal(3, 3, seed=1) / 3**0.5
    covariance = root @ root.T

    def denoise(z: Tensor, sigma: float) -> Tensor:
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3, dtype=torch.float64))
        return mean + (z - mean) @ gain.T

    drawn = sample_vectors(denoise, normal(40_000, 3), 16)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.04, rtol=0.04)
    finer = sample_vectors(denoise, normal(40_000, 3), 64)
    exact = mean + (20.0 * normal(40_000, 3) - mean) @ _flow(covariance, 20.0).T
    errors = [float((found - exact).square().mean().sqrt()) for found in (drawn, finer)]
    assert errors[1] < 0.2 * errors[0] < 0.02  # of second order: 4 times the steps, about a sixteenth of the error


def _flow(covariance: Tensor, sigma: float) -> Tensor:
    """The exact map of the probability-flow ODE, from x + s e at ``sigma`` to 0: C^(1/2) (C + s^2)^(-1/2)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag((values / (values + sigma**2)).sqrt()) @ vectors.T


class Store:
    """In the place of a LatentStore: each text has a vector of its own."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self.vectors = vectors

    def __getitem__(self, texts: list[str]) -> Any:
        from sfumato.conditions.text import Latents

        return Latents(torch.zeros(0), torch.zeros(0), torch.stack([self.vectors[text] for text in texts]))


def test_a_trained_prior_gives_the_mean_of_what_a_text_stands_for(monkeypatch: pytest.MonkeyPatch):
    # Four texts; the embeddings of each are spread about a point of its own.
    centres = F.normalize(normal(4, 6, seed=3).float(), dim=1)
    embeddings = F.normalize(centres.repeat(64, 1) + 0.15 * normal(256, 6, seed=4).float(), dim=1)
    texts = ["one", "two", "three", "four"]
    points = dict(zip(texts, F.normalize(normal(4, 6, seed=5).float(), dim=1), strict=True))
    store: Any = Store(dict(zip(texts, normal(4, 5, seed=6).float(), strict=True)))
    monkeypatch.setattr(prior_training, "LatentStore", lambda *_: store)
    embedding: Any = SimpleNamespace(texts=lambda names: torch.stack([points[name] for name in names]))
    blank = np.zeros((256, 4, 4, 1), np.uint8)
    data = ImageSet(blank, None, (), "made", "train", tuple((texts[i % 4],) for i in range(256)))
    torch.manual_seed(0)
    prior = Prior(6, 5, hidden=48, blocks=2)
    objective = PriorObjective(prior, Pairs(data, embeddings, embedding, reader=None))  # type: ignore[arg-type]
    for _ in train_steps(objective, Budget(steps=400)):
        pass
    prior.eval()
    noise = normal(4 * 200, 1, 6, seed=7).float()
    asked = [text for text in texts for _ in range(200)]
    given = torch.stack([points[text] for text in asked]), store[asked].vector
    drawn = prior.sample(*given, noise, guidance=1.0).view(4, 200, 6)
    wanted = torch.stack([embeddings[i::4].mean(0) for i in range(4)])
    torch.testing.assert_close(drawn.mean(1), wanted, atol=0.1, rtol=0)
    spread = torch.stack([embeddings[i::4].std(0).mean() for i in range(4)])
    torch.testing.assert_close(drawn.std(1).mean(1), spread, atol=0.04, rtol=0)
    # Without the text: the mean of all. With more guidance: less spread.
    free = prior.sample(*given, noise, guidance=0.0)
    torch.testing.assert_close(free.mean(0), embeddings.mean(0), atol=0.12, rtol=0)
    assert float(prior.sample(*given, noise, guidance=3.0).view(4, 200, 6).std(1).mean()) < 0.9 * float(spread.mean())


def test_of_the_candidates_the_one_most_like_the_text_is_kept():
    torch.manual_seed(0)
    prior = Prior(8, 5, hidden=16, blocks=1).eval()
    text, vector, noise = F.normalize(normal(20, 8).float(), dim=1), normal(20, 5).float(), normal(20, 3, 8).float()
    each = torch.stack([prior.sample(text, vector, noise[:, i : i + 1]) for i in range(3)], dim=1)
    best = (each @ text[:, :, None]).squeeze(2).argmax(1)
    torch.testing.assert_close(prior.sample(text, vector, noise), each[torch.arange(20), best])
    assert len(set(best.tolist())) > 1


# -- the sphere --------------------------------------------------------------------------------------------------------


def test_slerp_goes_along_the_great_circle_at_constant_speed():
    a, b = F.normalize(normal(5, 7), dim=1), F.normalize(normal(5, 7, seed=1), dim=1)
    angle = torch.acos((a * b).sum(1))
    for share in (0.0, 0.25, 0.5, 1.0):
        between = slerp(a, b, share)
        torch.testing.assert_close(torch.acos((a * between).sum(1).clamp(-1, 1)), share * angle, atol=1e-6, rtol=0)
        rank = torch.linalg.matrix_rank(torch.stack([a, b, between], 1), atol=1e-9)
        assert rank.tolist() == [2] * 5
    torch.testing.assert_close(slerp(a, a, 0.5), a, atol=1e-4, rtol=0)


def test_the_decoder_is_told_embeddings_with_a_little_noise():
    table = F.normalize(normal(3, 200).float(), dim=1)
    source = Embeddings(table, "digest")
    index = np.arange(3).repeat(500)
    told = source.batch(index, torch.zeros(1500, 3, 4, 4), torch.Generator().manual_seed(0)).vector
    assert told is not None and source.kinds == Kinds(vector=200)
    torch.testing.assert_close(told.norm(dim=1), torch.ones(1500))
    tangent = ((told * table[index]).sum(1).clamp(-1, 1).acos().tan() / SPREAD).numpy()
    assert kstest(tangent, "uniform").statistic < 0.06  # noise evenly of 0 to SPREAD times the length


# -- the whole ---------------------------------------------------------------------------------------------------------


def squares(count: int = 12, side: int = SIDE, seed: int = 0) -> ImageSet:
    noise = np.random.default_rng(seed).integers(-10, 11, (count, side, side, 3))
    names = list(COLOURS)
    images = np.stack([np.clip(COLOURS[names[i % 3]] + noise[i], 0, 255) for i in range(count)]).astype(np.uint8)
    return ImageSet(images, None, (), "squares", "train", tuple((f"a {names[i % 3]} square",) for i in range(count)))


def start(out: Path, text: str, steps: int = 180, data: ImageSet | None = None, **settings: str) -> Any:
    chosen = {**TINY, "batch": "8", "text": text, **settings}
    return RECIPES["dalle2"](TrainingRequest(data or squares(), out, steps=steps, settings=chosen, device="cpu"))


def tensors(out: Path) -> dict[str, Tensor]:
    files = sorted(out.glob("*/model.safetensors"))
    return {f"{f.parent.name}.{key}": value for f in files for key, value in load_file(f).items()}


@pytest.fixture(scope="module")
def trained(bert: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    out = tmp_path_factory.mktemp("dalle2") / "run"
    return out, list(start(out, bert))


@pytest.fixture(scope="module")
def model(trained: tuple[Path, list[Any]]) -> DallE2:
    """Not to be changed."""
    return recipes.load(trained[0], "cpu")


def plain(name: str) -> Tensor:
    """(3, H, W) of one colour."""
    return torch.tensor(COLOURS[name])[:, None, None].expand(3, SIDE, SIDE) / 255


def colours(pixels: Tensor) -> list[str]:
    """The nearest of the colour names, of the mean of each image (N, 3, H, W)."""
    wanted = torch.tensor(list(COLOURS.values())) / 255
    return [list(COLOURS)[i] for i in torch.cdist(pixels.mean((2, 3)), wanted).argmin(1)]


@pytest.mark.slow
def test_the_parts_share_the_budget(trained: tuple[Path, list[Any]]):
    out, steps = trained
    for part, count in STEPS.items():
        assert sum(step.part == part for step in steps) == count and (out / part / "model.safetensors").exists()
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert json.loads((out / "config.json").read_text())["recipe"] == "dalle2"


def test_prompts_are_drawn(model: DallE2):
    asked = [f"a {name} square" for name in COLOURS] * 2
    drawn = model.sample(6, prompt=asked, seed=1)
    assert drawn.shape == (6, 3, SIDE, SIDE) and colours(drawn) == list(COLOURS) * 2
    assert torch.equal(drawn, model.sample(6, prompt=asked, seed=1))
    assert not torch.equal(drawn, model.sample(6, prompt=asked, seed=2))
    torch.testing.assert_close(model.sample(6, prompt=asked, seed=1, batch_size=2), drawn, atol=1e-4, rtol=1e-4)
    assert model.sample(2).shape == (2, 3, SIDE, SIDE)  # of anything
    imagined = model.imagine(asked, seed=1)
    assert not torch.allclose(imagined[0], imagined[3], atol=1e-4)  # the same text, another image of it
    torch.testing.assert_close(imagined[:2], model.imagine(asked[:2], seed=1), atol=1e-5, rtol=1e-4)


def test_variations_interpolations_and_edits(model: DallE2, tmp_path: Path):
    red, blue = plain("red"), plain("blue")
    varied = model.variations(red, 3)
    assert colours(varied) == ["red"] * 3 and not torch.equal(varied[0], varied[1])
    Image.new("RGB", (40, 30), COLOURS["blue"]).save(tmp_path / "blue.png")
    assert colours(model.variations(tmp_path / "blue.png", 2)) == ["blue"] * 2
    between = model.interpolate(red, blue, 5)
    assert colours(between[[0, -1]]) == ["red", "blue"]
    torch.testing.assert_close(between[:1], model.variations(red, 1), atol=1e-5, rtol=1e-4)
    changed = model.edit(red, "a blue square", "a red square", strength=0.9, n=4)
    torch.testing.assert_close(changed[:1], model.variations(red, 1), atol=1e-5, rtol=1e-4)
    assert colours(changed[[0, -1]]) == ["red", "blue"]
    torch.testing.assert_close(changed[-1:], model.edit(red, "a blue square", "a red square", strength=0.9))
    assert not torch.equal(model.edit(red, "a blue square", strength=0.9), changed[-1:])  # away from the usual text


def test_editing_goes_through_the_decoder(model: DallE2):
    from sfumato import editing

    red = plain("red")
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, SIDE // 2 :] = 1
    drawn = editing.edit(model, red, 2, mask=mask, prompt="a blue square")  # type: ignore[arg-type]
    torch.testing.assert_close(drawn[..., : SIDE // 2], red[..., : SIDE // 2].expand(2, -1, -1, -1))


def test_going_on_gives_the_same_weights(bert: str, tmp_path: Path):
    list(start(tmp_path / "whole", bert, steps=20))  # 2, 3 and 15 for the parts
    # Each goes on from the one before: in the embedding, at its end, in the prior, in the decoder.
    for stop in (1, 1, 2, 5):
        with closing(start(tmp_path / "run", bert, steps=20)) as steps:
            for _ in range(stop):
                next(steps)
        if stop == 1:
            with pytest.raises(InputError, match="not trained to the end"):
                recipes.load(tmp_path / "run", "cpu")
    list(start(tmp_path / "run", bert, steps=20))
    whole, stopped = tensors(tmp_path / "whole"), tensors(tmp_path / "run")
    assert whole.keys() == stopped.keys()
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []
    assert list(start(tmp_path / "run", bert, steps=20)) == []

    # A larger budget goes on with all but the embedding, on which the other parts stand.
    assert {step.part for step in start(tmp_path / "run", bert, steps=30)} == {"prior", "decoder"}
    after = tensors(tmp_path / "run")
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], whole[name])} == {"prior", "decoder"}


def test_a_clip_in_place_of_an_embedding_of_its_own(bert: str, tmp_path: Path):
    clip = str(save_clip_pair(tmp_path / "clip"))
    parts = {step.part for step in start(tmp_path / "run", bert, steps=4, embedding=clip)}
    assert parts == {"prior", "decoder"}
    model = recipes.load(tmp_path / "run", "cpu")
    assert isinstance(model.embedding, TransformersClip)
    assert model.sample(2, prompt="red", steps=4).shape == (2, 3, SIDE, SIDE)
    with pytest.raises(InputError, match="holds another run"):
        start(tmp_path / "run", bert, steps=4)


def test_saved_and_loaded(model: DallE2, tmp_path: Path):
    model.save(tmp_path / "copy")
    again = recipes.load(tmp_path / "copy", "cpu")
    assert torch.equal(again.sample(2, prompt="a red square"), model.sample(2, prompt="a red square"))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_trainings_that_cannot_be(bert: str, digits_run: Path, tmp_path: Path):
    bare = ImageSet(squares().images, None, (), "bare", "train")
    for changes, sentence in (
        ({"data": bare}, "bare has no captions"),
        ({"drop": "0"}, "leave drop at 0.1"),
        ({"flip": "true"}, "leave flip out"),
        ({"steps": 2}, "cannot be shared over 3 parts"),
        ({"embedding": str(tmp_path / "none")}, "no image-text embedding"),
        ({"text": str(tmp_path / "none")}, "no language model"),
        ({"channls": "1"}, "unknown setting 'channls'"),
    ):
        with pytest.raises(InputError, match=sentence):
            start(tmp_path / "run", **{"text": bert, **changes})  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    shutil.copytree(digits_run, tmp_path / "digits")
    with pytest.raises(InputError, match="a model of another kind"):
        start(tmp_path / "digits", bert)


def test_requests_that_cannot_be(model: DallE2):
    red = torch.rand(3, SIDE, SIDE)
    for request, sentence in (
        (lambda: model.sample(2, "red"), "give a --prompt"),
        (lambda: model.sample(2, prompt=" "), "empty"),
        (lambda: model.sample(2, prompt="red", weak=model), "leave it out"),
        (lambda: film(model, 1), "decoder/"),
        (lambda: model.interpolate(red, red, 1), "2 images or more"),
        (lambda: model.edit(red, "red", strength=2.0), "strength 2.0 is impossible"),
        (lambda: model.edit(red, "red", "red"), "say the same"),
        (lambda: model.edit(red, " "), "empty"),
        (lambda: model.variations("nowhere.png", 1), "nowhere.png"),
    ):
        with pytest.raises(InputError, match=sentence):
            request()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"recipe": "dalle3"}', "which this sfumato does not know"),
        ('{"recipe": "dalle2"', "cannot be read"),
        ('{"recipe": "dalle2"}', "is damaged"),
        ('{"recipe": "dalle2", "format": 9}', "is of format 9"),
        ('{"recipe": "dalle2", "format": 1, "text": "minilm", "embedding": ""}', "it has no embedding yet"),
    ],
)
def test_damaged_folders(tmp_path: Path, config: str, sentence: str):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=sentence):
        recipes.load(tmp_path, "cpu")


# -- the command line --------------------------------------------------------------------------------------------------


def drawn(name: str) -> Tensor:
    """(N, 3, H, W)."""
    return torch.from_numpy(np.load(name)["images"]).permute(0, 3, 1, 2) / 255


def test_commands(sfumato: Command, inside: Path, trained: tuple[Path, list[Any]], digits_run: Path):
    run = trained[0]
    Image.new("RGB", (16, 16), COLOURS["red"]).save("red.png")
    Image.new("RGB", (20, 16), COLOURS["blue"]).save("blue.png")
    assert sfumato("sample", run, "--prompt", "a red square", "-n", 2, "-o", "a.png").status == 0
    result = sfumato("vary", run, "red.png", "-n", 3, "-o", "v.npz")
    assert result.status == 0 and "3 variations: v.npz" in result.out, result
    assert colours(drawn("v.npz")) == ["red"] * 3
    result = sfumato("vary", run, "red.png", "blue.png", "-n", 3, "-o", "i.npz")
    assert result.status == 0 and "3 images from one to the other: i.npz" in result.out, result
    assert colours(drawn("i.npz")[[0, 2]]) == ["red", "blue"]
    words = ("--toward", "a blue square", "--away", "a red square", "--strength", 0.9)
    assert sfumato("vary", run, "red.png", *words, "-n", 3, "-o", "t.npz").status == 0
    assert colours(drawn("t.npz")[[0, 2]]) == ["red", "blue"]

    for arguments, sentence in (
        (("vary", digits_run, "red.png"), "--recipe dalle2"),
        (("vary", run, "none.png"), "none.png"),
        (("vary", run, "red.png", "red.png", "red.png"), "give one or two"),
        (("vary", run, "red.png", "--prompt", "red"), "--prompt"),
        (("vary", run, "red.png", "--weak", run), "--weak"),
        (("vary", run, "red.png", "--away", "red"), "--toward"),
        (("vary", run, "red.png", "blue.png", "--toward", "red"), "give one"),
        (("vary", run, "red.png", "--strength", "0.5"), "--toward"),
        (("sample", run, "--variations", "red.png"), "sfumato vary"),
        (("film", run), "decoder/"),
    ):
        assert sentence in sfumato(*arguments, "-o", "no.png").sentence
    assert not Path("no.png").exists()


def test_training_by_command(sfumato: Command, inside: Path, bert: str, monkeypatch: pytest.MonkeyPatch):
    from helpers.folders import write_captioned

    monkeypatch.setattr("sfumato.metrics.retrieval._LEAST", 2)  # steps of the judge's training
    monkeypatch.setattr("sfumato.metrics.retrieval._EPOCHS", 1)

    write_captioned(inside / "captioned")
    sets = [f"--set={key}={value}" for key, value in {**TINY, "text": bert, "batch": "8"}.items()]
    command = ("train", "--data", "captioned", "--recipe", "dalle2", "--out", "run", "--steps", 6, *sets)
    result = sfumato(*command)
    assert result.status == 0 and "trained run: decoder: " in result.out and "--prompt" in result.out, result
    assert sfumato("evaluate", "run", "--data", "captioned", "-n", 10, "--features", "image-text").status == 0
    wrong = sfumato("train", "--data", "captioned", "--recipe", "dalle", "--out", "r")
    assert "did you mean 'dalle2'" in wrong.sentence
