"""The diffusion classifier against Bayes' rule on Gaussian classes, finite differences, and its own full sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.folders import COLOURS
from helpers.oracles import TINY, GaussianImages, log_density, pictures
from helpers.text_models import save_bert
from sfumato import Classifier, Generator, InputError, train
from sfumato.attacks import pgd
from sfumato.classifiers import match_labels
from sfumato.conditions import Kinds
from sfumato.config import Config
from sfumato.data import ImageSet
from sfumato.defences.diffusion_classifier import DenoiseAs, DiffusionClassifier, classify, diffusion_classifier
from sfumato.ladder import Ladder

LADDER = Ladder((4, 4), 1, 2)


def gaussian_classes(distance: float, count: int = 2) -> list[GaussianImages]:
    """Classes of one covariance, whose means lie ``distance`` apart in each pixel, in [-1, 1] space."""
    base = GaussianImages.make(LADDER)
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (count, 16))
    return [GaussianImages(LADDER, distance / 2 * sign, 0.5 * base.covariance) for sign in signs]


def exact(classes: list[GaussianImages]) -> DenoiseAs:
    """The best denoiser of each class, differentiable; all of a call are at one level."""

    def denoise(z: Tensor, sigma: Tensor, stage: int, label: Tensor) -> Tensor:
        level = float(sigma[0])
        flat, found = z.flatten(1), torch.zeros_like(z.flatten(1))
        for k, images in enumerate(classes):
            parts = images.clean(stage)[0], images.gain(stage, level), images.blend(stage, level)
            mean, gain, blend = map(torch.from_numpy, parts)
            found = torch.where((label == k)[:, None], mean + (flat - blend @ mean) @ gain.T, found)
        return found.view_as(z)

    return denoise


def drawn(classes: list[GaussianImages], each: int) -> tuple[Tensor, Tensor]:
    """Images in the units of pixels, and the log density of each under each class."""
    numbers = np.random.default_rng(1)
    x = np.concatenate([numbers.multivariate_normal(c.mean, c.covariance, each) for c in classes])
    logs = np.stack([log_density(x, c.mean, c.covariance) for c in classes], 1)
    return torch.from_numpy((x + 1) / 2).view(-1, 1, 4, 4), torch.from_numpy(logs)


def test_it_is_the_bayes_classifier_of_gaussian_classes() -> None:
    classes = gaussian_classes(0.9, 3)
    x, logs = drawn(classes, 12)
    logits = 4 * DiffusionClassifier(exact(classes), LADDER, 3, draws=600)(x)  # 16 pixels: times 4 these are nats
    found, bayes = (part - part.mean(1, keepdim=True) for part in (logits, logs))
    # Levels from LOW to HIGH hold nearly all of what tells these classes; what is left is the draws' own noise.
    assert (found - bayes).abs().mean() < 0.15 * bayes.abs().mean()
    assert np.corrcoef(found.flatten(), bayes.flatten())[0, 1] > 0.98
    clear = bayes.topk(2, 1).values
    sure = clear[:, 0] - clear[:, 1] > 2
    assert sure.sum() > 10
    assert torch.equal(logits.argmax(1)[sure], logs.argmax(1)[sure])


def test_elimination_finds_the_winner_of_the_full_sum_for_less() -> None:
    classes = gaussian_classes(1.1, 5)
    x, _ = drawn(classes, 8)
    module = DiffusionClassifier(exact(classes), LADDER, 5, draws=128)
    winner = module(x).argmax(1)
    decision = module.decide(x)
    assert (decision.label == winner).float().mean() >= 0.97
    assert decision.passes.double().mean() < 0.5 * 5 * 128
    whole = module.decide(x, alpha=0)
    assert torch.equal(whole.label, winner)
    assert bool((whole.passes == 5 * 128).all()) and bool(whole.alive.all())
    torch.testing.assert_close(-whole.losses / 4, module(x))
    torch.testing.assert_close(decision.shares.sum(1), torch.ones(len(x), dtype=torch.float64))
    assert bool((decision.shares[~decision.alive] == 0).all())


def test_a_beginning_of_the_draws_is_spread_over_all_levels() -> None:
    whole = DiffusionClassifier(exact(gaussian_classes(0.9)), LADDER, 2, draws=512).plan
    for count in (16, 64):
        assert abs(sum(draw.stage for draw in whole[:count]) / count - sum(draw.stage for draw in whole) / 512) < 0.1
        mean, all_of_them = (np.mean([np.log(draw.sigma) for draw in part]) for part in (whole[:count], whole))
        assert abs(mean - all_of_them) < 0.3


def test_gradients_are_exact() -> None:
    classes = gaussian_classes(0.9, 3)
    x, _ = drawn(classes, 1)
    module = DiffusionClassifier(exact(classes), LADDER, 3, draws=3, rows=4)  # rows: classes in several parts
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(module, (leaf,), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_batch_and_parts_change_nothing(rows: int) -> None:
    classes = gaussian_classes(0.9, 3)
    x, _ = drawn(classes, 3)
    module = DiffusionClassifier(exact(classes), LADDER, 3, draws=8)
    other = DiffusionClassifier(exact(classes), LADDER, 3, draws=8, rows=rows)
    torch.testing.assert_close(other(x[4:6]), module(x)[4:6])


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return train(pictures(64), tmp_path_factory.mktemp("bars") / "run", steps=120, settings=TINY, device="cpu")


def test_a_small_model_classifies_its_bars(generator: Generator) -> None:
    data = pictures(30, seed=1)
    classifier = diffusion_classifier(generator, draws=24)
    assert isinstance(classifier, Classifier)
    assert classifier.labels == data.classes and classifier.size == (8, 8) and classifier.channels == 1
    x, y = data.pixels(slice(0, 30)), match_labels(classifier, data)
    decision = classify(classifier, x)
    assert (decision.label == y).float().mean() > 0.8
    assert (classifier.predict(x) == decision.label).float().mean() > 0.9
    assert decision.passes.max() <= 3 * 24


def test_the_order_of_classes_changes_nothing(generator: Generator) -> None:
    x = pictures(6, seed=2).pixels(slice(0, 6))
    one = diffusion_classifier(generator, draws=12)
    other = diffusion_classifier(generator, ["blue", "red", "green"], draws=12)
    torch.testing.assert_close(one.logits(x)[:, [2, 0, 1]], other.logits(x), rtol=1e-4, atol=1e-4)
    names = [[c.labels[int(k)] for k in classify(c, x).label] for c in (one, other)]
    assert names[0] == names[1]


def test_attacks_attack_it(generator: Generator) -> None:
    data = pictures(6, seed=1)
    classifier = diffusion_classifier(generator, draws=8)
    x, y = data.pixels(slice(0, 6)), match_labels(classifier, data)
    logits, gradient = classifier.gradient(x, lambda z: torch.nn.functional.cross_entropy(z, y, reduction="none"))
    assert logits.shape == (6, 3)
    assert bool(gradient.isfinite().all()) and bool((gradient.flatten(1).norm(dim=1) > 0).all())
    assert all(p.grad is None for p in generator.denoiser.parameters())
    attacked = pgd(classifier, x, y, norm="Linf", eps=0.3, steps=5, seed=0)
    gained = [torch.nn.functional.cross_entropy(classifier.logits(one), y) for one in (x, attacked)]
    assert gained[1] > gained[0]


def test_a_model_of_texts_takes_its_classes_as_prompts(tmp_path: Path) -> None:
    encoder = save_bert(tmp_path / "bert")
    images = np.stack([np.full((8, 8, 3), list(COLOURS.values())[i % 3], np.uint8) for i in range(24)])
    captions = tuple((f"a {list(COLOURS)[i % 3]} square",) for i in range(24))
    settings = {**TINY, "text": str(encoder), "batch": "8"}
    train(ImageSet(images, None, (), "squares", "train", captions), tmp_path / "run", steps=100, settings=settings)
    prompts = [f"a {name} square" for name in COLOURS]
    squares = ImageSet(images, None, (), "squares", "test")
    classifier = diffusion_classifier(Generator.from_pretrained(tmp_path / "run", "cpu"), prompts, draws=12)
    assert classifier.labels == tuple(prompts)
    assert classify(classifier, squares.pixels(slice(0, 6))).label.tolist() == [0, 1, 2, 0, 1, 2]


def test_models_without_classes_are_refused(tmp_path: Path, generator: Generator) -> None:
    train(pictures(12, labelled=False), tmp_path / "bare", steps=1, settings=TINY)
    with pytest.raises(InputError, match="without labels and texts"):
        diffusion_classifier(Generator.from_pretrained(tmp_path / "bare", "cpu"))
    for names, says in ((["red", "rad"], "did you mean 'red'"), (["red"], "two or more")):
        with pytest.raises(InputError, match=says):
            diffusion_classifier(generator, names)
    config = Config(stages=1, options={"channels": (16,), "blocks": (1,), "patch": 2})
    ladder = config.ladder((8, 8), 1)
    of_texts = Generator(config.denoiser(ladder, Kinds(vector=8, tokens=8)), (), config)
    with pytest.raises(InputError, match="name them"):
        diffusion_classifier(of_texts)


def test_bad_input(generator: Generator) -> None:
    classifier = diffusion_classifier(generator, draws=2)
    for x, says in (
        (torch.zeros(2, 3, 8, 8), "do not fit"),
        (torch.zeros(2, 1, 16, 16), "do not fit"),
        (torch.full((2, 1, 8, 8), 2.0), "from 0 to 1"),
        (torch.zeros(0, 1, 8, 8), "one image or more"),
    ):
        with pytest.raises(InputError, match=says):
            classify(classifier, x)
    with pytest.raises(InputError, match="alpha"):
        classify(classifier, torch.zeros(1, 1, 8, 8), alpha=1.5)
    with pytest.raises(InputError, match="only a diffusion classifier"):
        classify(Classifier(torch.nn.Flatten()), torch.zeros(1, 1, 8, 8))
    wrong: list[tuple[dict[str, Any], str]] = [({"draws": 0}, "draws=0"), ({"weights": "elbow"}, "did you mean 'elbo'")]
    for how, says in wrong:
        with pytest.raises(InputError, match=says):
            diffusion_classifier(generator, **how)
