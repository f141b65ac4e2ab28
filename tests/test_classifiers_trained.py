"""Classifiers that are trained here: networks, augmentation, going on, files, accuracy."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from helpers.classifiers import classifier_steps, pictures, same, small_network
from sfumato import classifiers
from sfumato.classifiers import Classifier, find_classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.classifiers.networks import NETWORKS
from sfumato.classifiers.objective import augment
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.data import ImageSet, load


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (4, (12, 20)), (1, (64, 64))])
def test_networks_take_images_of_any_size(name: str, channels: int, size: tuple[int, int]):
    network = NETWORKS[name](channels, size, 7)
    assert network(torch.rand(2, channels, *size)).shape == (2, 7)


def test_augmented_images_are_shifted_and_mirrored_ones():
    """Each result is one of the nine shifts of its image, or of its mirrored one, which the oracle makes by padding."""
    x = pictures(256, 2, 5)
    found = augment(x, 1, True, torch.Generator().manual_seed(0))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    shifted = [padded[:, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    choices = torch.stack([*shifted, *(s.flip(-1) for s in shifted)])  # (18, B, C, H, W)
    matches = (choices == found).flatten(2).all(2)  # (18, B)
    assert bool((matches.sum(0) == 1).all()) and int(matches.any(1).sum()) == 18
    assert torch.equal(augment(x, 0, False, torch.Generator()), x)


def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path):
    whole = classifiers.train_classifier("digits", tmp_path / "whole", epochs=0.75, device="cpu")
    for progress in classifier_steps(tmp_path / "parts", epochs=0.75):
        if progress.step == 5:
            break  # what is left of the generator is closed: as after Ctrl-C
    assert not (tmp_path / "parts" / checkpoint.MODEL).exists()
    steps = list(classifier_steps(tmp_path / "parts", epochs=0.75))
    assert steps[0].step == 6 and steps[-1].step == 12
    assert same(whole, classifiers.load_classifier(tmp_path / "parts", "cpu"))
    assert not list(classifier_steps(tmp_path / "parts", epochs=0.75))
    with pytest.raises(InputError, match="seed was 0, now 1"):
        classifier_steps(tmp_path / "parts", epochs=0.75, seed=1)


def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path: Path):
    torch.manual_seed(0)
    network = NETWORKS["resnet"](3, (16, 12), 4).eval()
    labels = ("a", "ü", "<b>", "")
    classifier = Classifier(network, mean=(0.1, 0.2, 1 / 3), std=0.7, labels=labels, size=(16, 12), channels=3)
    classifiers.save_classifier(tmp_path, classifier, {"test": {"accuracy": 0.5}})
    x = torch.rand(3, 3, 16, 12)
    again = find_classifier(tmp_path, "cpu")
    torch.testing.assert_close(again(x), classifier(x), rtol=1e-5, atol=1e-5)
    assert again.labels == labels and again.size == (16, 12) and again.channels == 3
    assert classifier.mean is not None and again.mean is not None and torch.equal(classifier.mean, again.mean)
    assert same(classifier, again)
    assert classifiers.read_description(tmp_path)["test"]["accuracy"] == 0.5
    classifiers.save_classifier(tmp_path / "again", again)  # what was loaded can be saved
    assert torch.equal(find_classifier(tmp_path / "again", "cpu")(x), again(x))
    with pytest.raises(InputError, match="cannot be saved"):
        classifiers.save_classifier(tmp_path, Classifier(small_network()))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = NETWORKS["convnet"](1, (8, 8), 3)
    classifiers.save_classifier(tmp_path, Classifier(network, mean=0.5, std=0.5, labels="abc", size=(8, 8), channels=1))
    return tmp_path


def test_hostile_files_are_refused(saved: Path):
    file = saved / checkpoint.MODEL
    good = file.read_bytes()
    mapped, description = checkpoint.read(file)
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}  # the file is about to be written over
    file.write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(InputError, match="damaged, or no safetensors"):
        find_classifier(saved)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="damaged"):
        find_classifier(saved)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="not one of sfumato's"):
        find_classifier(saved)
    wrong: dict[str, list[Any]] = {
        "kind": ["generator"],
        "format": [99],
        "network": ["vit", "resnet"],
        "channels": [-1, 10**7],
        "labels": [["a", "b"], ["a", "a", "b"], "abc", [1, 2, 3]],
        "size": [[8], [8, -1], [8, 10**9]],
        "mean": [["a"], None],
        "std": [[0.0]],
    }
    for key, value in ((key, value) for key, values in wrong.items() for value in values):
        checkpoint.write(saved, tensors, {**description, key: value})
        with pytest.raises(InputError):
            find_classifier(saved, "cpu")
    checkpoint.write(saved, {**tensors, "head.bias": torch.zeros(4)}, description)
    with pytest.raises(InputError, match="does not fit its network"):
        find_classifier(saved, "cpu")


def test_training_refuses_what_it_cannot_learn(tmp_path: Path):
    unlabelled = replace(load("digits"), images=load("digits").images[:60], labels=None, classes=())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data": unlabelled}, "no labels"),
        ({"network": "convnett"}, r"unknown network 'convnett'.*did you mean 'convnet'"),
        ({"minutes": 0}, "leaves no time"),
        ({"shift": 8}, "shift 8"),
    ]
    for how, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            classifier_steps(tmp_path / "a", **how)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").write_text("")
    with pytest.raises(InputError, match="is a file"):
        classifier_steps(tmp_path / "b")


def test_an_image_set_is_divided(tmp_path: Path):
    digits = load("digits")
    assert digits.labels is not None
    part = replace(digits, images=digits.images[:200], labels=digits.labels[:200])
    classifiers.train_classifier(part, tmp_path, epochs=1, device="cpu")
    described = classifiers.read_description(tmp_path)
    assert described["test"]["count"] == 20 and described["test"]["data"] == "a tenth held out"
    assert "(180 images" in described["training"]["data"]


@pytest.mark.parametrize(("correct", "count"), [(0, 20), (20, 20), (7, 20), (913, 1000)])
def test_the_interval_is_that_of_the_exact_test(correct: int, count: int):
    from scipy.stats import binomtest

    expected = binomtest(correct, count).proportion_ci(0.95, "exact")
    assert Accuracy(correct, count).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_labels_are_matched_by_name():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0] = [0, 1, 2, 1]  # the pixel says the class
    data = ImageSet(images, np.array([1, 0, 0, 0]), ("one", "zero"), "made", "test")

    def model(x: Tensor) -> Tensor:
        return F.one_hot((255 * x[:, 0, 0, 0]).round().long(), 3).float()

    named = Classifier(model, labels=("zero", "one", "two"))
    evaluation = classifiers.evaluate_classifier(named, data)
    assert (evaluation.overall.correct, evaluation.overall.count) == (3, 4)
    assert evaluation.classes == {"one": Accuracy(2, 3), "zero": Accuracy(1, 1)}
    assert classifiers.match_labels(named, data).tolist() == [0, 1, 1, 1]
    assert classifiers.match_labels(Classifier(model), data).tolist() == [1, 0, 0, 0]  # no names: by number
    with pytest.raises(InputError, match="class 'one' that the classifier does not know"):
        classifiers.match_labels(Classifier(model, labels=("zero", "uno", "two")), data)
    many = replace(data, classes=("a", "b", "c", "d"))
    with pytest.raises(InputError, match="4 classes, the classifier 3"):
        classifiers.match_labels(Classifier(model), many)
