"""The generator as a classifier, attacked: exact gradients through a real network, and a whole audit from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.oracles import TINY, pictures
from sfumato import Generator, train
from sfumato.attacks import apgd, fooled
from sfumato.audit import audit, check_all
from sfumato.classifiers import match_labels
from sfumato.conditions import Condition
from sfumato.defences import DiffusionClassifier, diffusion_classifier


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return train(pictures(64), tmp_path_factory.mktemp("bars") / "run", steps=80, settings=TINY, device="cpu")


def test_its_gradient_is_exact_by_finite_differences(generator: Generator, tmp_path: Path) -> None:
    generator.save(tmp_path / "copy")
    network = Generator.from_pretrained(tmp_path / "copy", "cpu").denoiser.double()

    def denoise(z: torch.Tensor, sigma: torch.Tensor, stage: int, label: torch.Tensor) -> torch.Tensor:
        return network(z, sigma, stage, Condition(label=label))

    module = DiffusionClassifier(denoise, generator.ladder, 3, draws=4, rows=4, network=network)
    x = pictures(2, seed=1).pixels(slice(0, 2)).double()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(leaf)[:, 1].sum(), leaf)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        risen = (module(x + 1e-5 * direction) - module(x - 1e-5 * direction))[:, 1] / 2e-5
    torch.testing.assert_close((slope * direction).flatten(1).sum(1), risen, rtol=1e-6, atol=1e-8)
    # The classifier that attacks are given is this function, in float32.
    found = diffusion_classifier(generator, draws=4)(x.float()).double()
    torch.testing.assert_close(found, module(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_it_is_audited_like_any_classifier(generator: Generator) -> None:
    data = pictures(36, seed=1)
    classifier = diffusion_classifier(generator, draws=3)
    found = audit(classifier, data, eps=0.25, count=3, protocol="screening")
    lights = {check.name: check.light for check in check_all(found)}
    assert lights["random output"] == lights["zero gradients"] == "green"
    assert found.clean_accuracy.value > 0.6 and found.robust_accuracy.correct < found.clean_accuracy.correct
    x, y = data.pixels(slice(0, 6)), match_labels(classifier, data)[:6]
    attacked = apgd(classifier, x, y, eps=0.25, steps=10)
    assert torch.equal(fooled(classifier, attacked, y), fooled(diffusion_classifier(generator, draws=3), attacked, y))
