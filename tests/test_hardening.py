"""Adversarial training: the inner maximisation, the losses, averaging, the guard, going on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.classifiers import DIGITS, hardened, images, random_linear, same
from helpers.generators import saved_generator
from sfumato.classifiers import NETWORKS, Classifier, load_classifier, match_labels, read_description, save_classifier
from sfumato.classifiers.objective import Network
from sfumato.core import checkpoint
from sfumato.core.errors import InputError
from sfumato.data import load
from sfumato.defences.hardening import adversarial_training as at
from sfumato.defences.hardening import harden as hardening
from sfumato.defences.hardening.adversarial_training import METHODS, NOISY, Threat, maximise, trades_loss
from sfumato.engine import Moment, Trainer
from sfumato.engine.resume import STATE
from sfumato.generator import Generator

DONE = Moment(0, 1.0, seed=3)  # eps is what it is to be


@pytest.fixture(scope="module")
def clf(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A digits classifier that knows little. Not to be written to."""
    from sfumato.classifiers import train_classifier

    return train_classifier("digits", tmp_path_factory.mktemp("clf") / "clf", epochs=2, device="cpu")


# -- the inner maximisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5])
def test_the_worst_perturbation_of_a_linear_classifier_is_the_closed_form(steps: int) -> None:
    """Linf: eps times the sign of what raises the loss; L2: eps along it. From any random start, inside the box."""
    classifier, x, y = random_linear(), images(), torch.tensor([0, 1, 0, 1, 1, 0])
    layer = classifier.module[1]  # type: ignore[index]
    up = (layer.weight[1 - y] - layer.weight[y]).reshape(x.shape).detach()  # what raises the loss
    length = up.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def found(norm: str, eps: float = 0.2, share: float | None = None, x: Tensor = x) -> Tensor:
        rise = partial(F.cross_entropy, target=y, reduction="none")
        return maximise(Network(classifier), x, rise, Threat(norm, eps, steps), Moment(0, 1.0, seed=0), share)

    torch.testing.assert_close(found("Linf"), x + 0.2 * up.sign())
    wanted = x + 0.2 * up / length
    torch.testing.assert_close(found("L2", share=1e3), wanted, atol=1e-3, rtol=0)  # bf16 in the gradient
    gained = ((found("L2") - x) * up / length).flatten(1).sum(1)
    assert float(gained.min()) > (0.15 if steps == 2 else 0.18) and float(gained.max()) <= 0.2 + 1e-6
    whole = images(6, 0.0, 1.0)
    torch.testing.assert_close(found("Linf", 0.5, x=whole), (whole + 0.5 * up.sign()).clamp(0, 1))


def test_the_inner_maximisation_leaves_the_module_as_it_was() -> None:
    """Running statistics, mode and gradients: only the step itself may change them."""
    module = NETWORKS["convnet"](1, (8, 8), 3).train()
    classifier = Classifier(module, mean=0.5, std=0.5, labels="abc", size=(8, 8), channels=1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.rand(4, 1, 8, 8)
    network, threat, seeds = Network(classifier), Threat("Linf", 0.1, steps=2), (1, 1, 2)
    first, again, other = (maximise(network, x, lambda z: z[:, 0], threat, Moment(0, 1.0, seed)) for seed in seeds)
    assert torch.equal(first, again) and not first.requires_grad
    assert not torch.equal(first, other)
    assert module.training and all(each.requires_grad and each.grad is None for each in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_eps_rises_to_what_it_is_to_be() -> None:
    threat = Threat("Linf", 0.1)
    rising = [threat.at(Moment(0, fraction, 0)) for fraction in (0.0, 0.5 * at.WARMUP, at.WARMUP, 1.0)]
    assert rising == pytest.approx([0, 0.05, 0.1, 0.1])


# -- the losses ---------------------------------------------------------------------------------------------------------


def test_each_method_lowers_the_published_loss() -> None:
    """On a binary linear classifier, where the worst image is known and so every loss can be written out."""
    classifier, x, y = random_linear(), images(), torch.tensor([0, 1, 0, 1, 1, 0])
    weight = classifier.module[1].weight.detach()  # type: ignore[index]
    eps, beta = 0.1, 4.0
    up = (weight[1 - y] - weight[y]).reshape(x.shape)

    def probabilities(pixels: Tensor) -> np.ndarray:
        z = (pixels.flatten(1) @ weight.T).double().numpy()
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    labels = y.numpy()
    rows = np.arange(len(x))
    worst = probabilities(x + eps * up.sign())
    for method in ("pgd", "fast"):
        # One step of 1.25 eps from a random start reaches the rim wherever the start was not too far beyond 0.
        loss, logits = METHODS[method](Threat("Linf", eps, steps=4))(Network(classifier), x, y, DONE)
        expected = float(-np.log(worst[rows, labels]).mean())
        assert float(loss.detach()) == pytest.approx(expected, rel=5e-3 if method == "pgd" else 0.1), method
        assert logits.shape == (6, 2) and loss.requires_grad
    # The divergence from p grows both ways along the direction that moves p: the worst is the worse of the two ends.
    p = probabilities(x)
    ends = [probabilities(x + sign * eps * (weight[1] - weight[0]).reshape(1, 1, 4, 4).sign()) for sign in (-1, 1)]
    divergences = np.stack([(p * np.log(p / q)).sum(1) for q in ends])
    loss, _ = METHODS["trades"](Threat("Linf", eps, steps=4, beta=beta))(Network(classifier), x, y, DONE)
    clean = float(-np.log(p[rows, labels]).mean())
    lowest, highest = (clean + beta * float(d.mean()) for d in (divergences.min(0), divergences.max(0)))
    assert lowest - 1e-6 <= float(loss.detach()) <= highest + 1e-6 and float(loss.detach()) > clean + 1e-3


def test_trades_is_its_formula() -> None:
    clean, moved = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 3, 1, 2, 2])
    total = 0.0
    for z, z_moved, label in zip(clean.tolist(), moved.tolist(), y.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        q = [math.exp(v) / sum(map(math.exp, z_moved)) for v in z_moved]
        total += -math.log(p[label]) + 6.0 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(trades_loss(clean, moved, y, 6.0)) == pytest.approx(total / 5, rel=1e-12)


def made(clf: Classifier, method: str, eps: float = 0.1) -> tuple[hardening.HardeningObjective, Trainer]:
    """A training in memory, on digits."""
    request = hardening.HardeningRequest(classifier=clf, data="digits", out="", method=method, eps=eps, steps=1, seed=0)
    data = request.divided()
    labels, settings = match_labels(clf, data.train), request.settings(data.train)
    copied = hardening.trainable_copy(clf)
    objective = hardening.HardeningObjective(data, labels, copied, settings, request.threat)
    return objective, Trainer(objective, 0)


def test_weights_are_averaged_and_statistics_measured(clf: Classifier) -> None:
    """The average in closed form: weights of step i count (i + 1) (i + 2) ... (i + 9) relatively; statistics are theirs."""
    run, trainer = made(clf, "pgd", 1e-3)
    path = [run.network.get_parameter("head.weight").detach().clone()]
    for i in range(6):
        trainer.advance(0.3 + i / 10)
        path.append(run.network.get_parameter("head.weight").detach().clone())
    shares = [math.prod((1 + t) / (10 + t) for t in range(i + 1, 7)) * (9 / (10 + i) if i else 1) for i in range(7)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight for share, weight in zip(shares, path, strict=True))
    torch.testing.assert_close(run.average.averages["head.weight"], expected)
    raw = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    averaged = run.finished().module
    assert averaged is not None and not averaged.training
    torch.testing.assert_close(averaged.get_parameter("head.weight"), expected)
    assert all(torch.equal(raw[name], tensor) for name, tensor in run.network.state_dict().items())  # the run goes on
    # The first layer's statistics are those of what it gives with the averaged weights, for images as good as not perturbed.
    rows = torch.arange(1000)
    x = run.classifier.preprocess(run.data.pixels(rows))
    seen = F.conv2d(x, averaged.get_parameter("body.0.weight").detach(), padding=1)
    mean, kept = averaged.get_buffer("body.1.running_mean"), raw["body.1.running_mean"]
    assert float((mean - seen.mean((0, 2, 3))).abs().max()) < 0.05 * float(seen.std())
    assert not torch.equal(mean, kept)
    assert torch.equal(run.finished().module.get_buffer("body.1.running_mean"), mean)  # type: ignore[union-attr]  (the same again)


class Bump(nn.Module):
    """Class 1 where the mean lies in a band above 0.5, class 0 below and beyond: one long step jumps across."""

    def forward(self, x: Tensor) -> Tensor:
        score = 40 * (0.03 - (x.flatten(1).mean(1) - 0.545).abs())  # over 0 from 0.515 to 0.575
        return torch.stack([torch.zeros_like(score), score], 1)


def test_accuracies_tell_one_step_from_several() -> None:
    x, y = torch.full((40, 1, 16, 16), 0.5), torch.zeros(40, dtype=torch.long)
    single, several = hardening.accuracies(Network(Classifier(Bump(), labels="ab")), x, y, Threat("Linf", 0.1))
    assert single > 0.9 and several < 0.1
    both = hardening.accuracies(Network(random_linear()), images(), y[:6], Threat("Linf", 0.05))
    assert both[0] == both[1]  # nothing to tell where the loss is linear


def test_the_guard_goes_back_and_on_with_pgd(clf: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trainer = made(clf, "fast")
    assert len(run.guarded) == 128 and not set(run.guarded.tolist()) & set(run.rows.tolist())
    answers = [(0.6, 0.55), (0.5, 0.52), (0.6, 0.47), (0.9, 0.1)]  # the third slides, and is nothing to go back to
    monkeypatch.setattr(hardening, "GUARD_EVERY", 2)
    monkeypatch.setattr(hardening, "accuracies", lambda *_: answers.pop(0))
    kept: dict[str, Tensor] = {}
    for i in range(8):
        trainer.advance(0.5)
        if i == 3:
            kept = {**run.network.state_dict(), **run.average.tensors()}
            kept = {name: tensor.clone() for name, tensor in kept.items()}
            assert not run.collapsed_at and trainer.remark == ""
    assert run.collapsed_at == 8 and not answers
    assert "catastrophic overfitting after step 8" in trainer.remark and "on with PGD of 1 steps" in trainer.remark
    now = {**run.network.state_dict(), **run.average.tensors()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in now.items() if "num_batches" not in name)
    assert not run.optimizers[0].state
    trainer.advance(0.6)
    assert trainer.remark == "" and run.notes()["collapsed_at"] == 8
    again, resumed = made(clf, "fast")
    resumed.restore({name: tensor.clone() for name, tensor in trainer.tensors().items()}, trainer.numbers())
    for each in (trainer, resumed):  # the cure is remembered
        each.advance(0.7)
    assert same(run.classifier, again.classifier)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_stopped_hardening_ends_with_the_same_weights(
    tmp_path: Path, clf: Classifier, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "GUARD_EVERY", 3)
    before = {name: tensor.clone() for name, tensor in clf.module.state_dict().items()}  # type: ignore[union-attr]
    how: dict[str, Any] = {"method": method, "norm": "L2" if method == "pgd" else "Linf", "eps": 0.2, "steps": 1}
    if method == "denoised":
        how["generator"] = Generator.from_pretrained(saved_generator(tmp_path / "gen"), "cpu")
    how["epochs"] = 0.6
    whole = hardening.harden(clf, "digits", tmp_path / "whole", **how)
    for progress in hardened(clf, tmp_path / "parts", **how):
        if progress.step == 4:
            break  # what is left of the generator is closed: as after Ctrl-C
    assert (tmp_path / "parts" / STATE).exists() and not (tmp_path / "parts" / checkpoint.MODEL).exists()
    steps = list(hardened(clf, tmp_path / "parts", **how))
    assert steps[0].step == 5
    assert same(whole, load_classifier(tmp_path / "parts", "cpu")) and not same(whole, clf)
    assert all(torch.equal(before[name], t) for name, t in clf.module.state_dict().items())  # type: ignore[union-attr]
    notes = read_description(tmp_path / "parts")["training"]
    assert notes["hardening"]["method"] == method and notes["steps"] == steps[-1].step
    assert notes.get("noise") == (0.2 if method in NOISY else None)
    assert ("denoiser" in notes["hardening"]) == (method == "denoised") and "generated" not in notes
    with pytest.raises(InputError, match=r"eps was 0\.2, now 0\.3"):
        hardened(clf, tmp_path / "parts", **{**how, "eps": 0.3})


def test_method_denoised_trains_on_what_the_denoiser_makes_of_noise(tmp_path: Path, clf: Classifier) -> None:
    """Behind a denoiser that hides the image nothing can be learnt; behind one that finds it, everything is kept."""
    model = Generator.from_pretrained(saved_generator(tmp_path / "gen"), "cpu")
    known = load("digits", split="train").pixels(slice(None))
    sigmas: list[float] = []

    def blind(x: Tensor, sigma: float) -> Tensor:
        sigmas.append(sigma)
        return torch.full_like(x, 0.5)

    def nearest_image(x: Tensor, sigma: float) -> Tensor:
        return known[torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)]

    how: dict[str, Any] = {"method": "denoised", "norm": "L2", "eps": 0.4, "epochs": 3, "flip": False, "shift": 0}
    accuracy = []
    for place, denoise in enumerate((blind, nearest_image)):
        model.denoise = denoise  # type: ignore[method-assign, assignment]
        *_, last = hardened(clf, tmp_path / str(place), generator=model, **how)
        accuracy.append(last.metrics["accuracy"])
    assert accuracy[0] < 0.3 and accuracy[1] > 0.9
    assert set(sigmas) == {0.2}  # half of eps


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "trade"}, "unknown method 'trade'.*did you mean 'trades'"),
        ({"norm": "linf"}, "unknown norm 'linf'.*did you mean 'Linf'"),
        ({"norm": "L1"}, "unknown norm 'L1' for adversarial training"),
        ({"eps": 0.0}, "eps 0 leaves nothing to be hardened against"),
        ({"eps": -1.0}, "eps -1"),
        ({"eps": float("nan")}, "eps nan"),
        ({"minutes": 0.0}, "--minutes 0 leaves no time"),
        ({"epochs": -1.0}, "--epochs -1 leaves no time"),
        ({"steps": 0}, "steps 0"),
        ({"beta": 0.0}, "beta 0"),
        ({"share": 1.0}, "share 1"),
        ({"shift": 8}, "shift 8"),
        ({"method": "denoised"}, "give a --generator"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, clf: Classifier, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        hardened(clf, tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_data_generators_and_classifiers_that_do_not_fit(tmp_path: Path, clf: Classifier) -> None:
    def refused(sentence: str, data: Any = "digits", classifier: Classifier = clf, **how: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            hardened(classifier, tmp_path / "new", data, **how)
        assert not (tmp_path / "new").exists()

    digits = load("digits")
    assert digits.labels is not None
    refused("has no labels", replace(digits, images=digits.images[:60], labels=None, classes=()))
    renamed = replace(digits, classes=("zero", *DIGITS[1:]))
    refused("class 'zero' that the classifier does not know", renamed)
    few = digits.labels < 8
    part = replace(digits, images=np.asarray(digits.images)[few], labels=digits.labels[few], classes=DIGITS[:8])
    refused("knows a class '8'", part)
    colour = np.repeat(np.asarray(digits.images), 3, axis=3)
    refused("give images of 1 channels", replace(digits, images=colour))
    refused("cannot be hardened, only sfumato's networks", classifier=random_linear(10, 64))
    refused("cannot be hardened", classifier=Classifier(lambda x: x.flatten(1)))
    for folder, how, sentence in (
        ("wide", {"side": 16}, "takes 8x8 pixels, the generator makes 16x16"),
        ("colour", {"channels": 3}, "takes grey images, the generator makes colour ones"),
        ("other", {"classes": tuple("abcdefghij")}, "knows a class '0', the generator does not"),
        ("none", {"classes": ()}, "trained without labels"),
    ):
        model = Generator.from_pretrained(saved_generator(tmp_path / folder, **how), "cpu")  # type: ignore[arg-type]
        refused(sentence, generator=model)


def test_a_folder_of_something_else_is_kept(tmp_path: Path, clf: Classifier) -> None:
    save_classifier(tmp_path / "plain", clf)
    with pytest.raises(InputError, match="holds a model but no train_state"):
        hardened(clf, tmp_path / "plain")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        hardened(clf, tmp_path / "file")
