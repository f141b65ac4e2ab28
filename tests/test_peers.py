"""The same attack by other libraries finds the same: pyautoattack, torchattacks, foolbox. All are in the extra `dev`."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pyautoattack
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from helpers.classifiers import digits
from sfumato.attacks import ddn, deepfool, fgsm, standard
from sfumato.attacks.ascent import ascend
from sfumato.attacks.norms import norm_of
from sfumato.classifiers import Classifier

foolbox = importlib.import_module("foolbox")  # for a type checker, its attacks are private


Case = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def case() -> Case:
    """The network in evaluation mode, and images so far from black and white that the box does not cut a small step."""
    net, x, y = copy.deepcopy(digits())  # the peers leave gradients in it
    x = 0.2 + 0.6 * x
    known = net.eval()(x).argmax(1) == y
    assert int(known.sum()) >= 20
    return net, x[known][:20], y[known][:20]


def by_foolbox(attack: Any, case: Case, **settings: float) -> Tensor:
    net, x, y = case
    return attack.run(foolbox.PyTorchModel(net, bounds=(0, 1)), x, foolbox.criteria.Misclassification(y), **settings)


@pytest.mark.slow
def test_the_ensemble_agrees_with_autoattack():
    net, x, y = copy.deepcopy(digits())
    net.eval()
    x, y, eps = x[:24], y[:24], 0.12
    reference: Any = pyautoattack.AutoAttack(net, norm="Linf", eps=eps, device="cpu", version="standard")
    theirs = net(reference.run_standard_evaluation(x, y, batch_size=24)[0]).argmax(1) == y
    ours = standard(Classifier(net), x, y, eps=eps).robust
    assert 0 < int(ours.sum()) < 24
    assert ours.tolist() == theirs.tolist()


def test_fgsm_is_that_of_torchattacks_and_foolbox(case: Case):
    net, x, y = case
    for norm, eps in (("Linf", 0.05), ("L2", 0.15)):
        ours = fgsm(Classifier(net), x, y, norm=norm, eps=eps)
        peer: Any = foolbox.attacks.FGSM() if norm == "Linf" else foolbox.attacks.L2FastGradientAttack()
        theirs = by_foolbox(peer, case, epsilon=eps)
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
        if norm == "Linf":
            torch.testing.assert_close(ours, torchattacks.FGSM(net, eps=eps)(x, y), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.15)])
def test_projected_gradient_ascent_is_the_pgd_of_torchattacks(case: Case, norm: str, eps: float):
    """Step by step, all steps taken: so the ascent itself, which `pgd` leaves as soon as a sample is fooled."""
    net, x, y = case

    def slope(points: Tensor, index: int) -> Tensor:
        points = points.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(net(points), y, reduction="sum"), points)[0]

    kind: Any = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    theirs = kind(net, eps=eps, alpha=0.3 * eps, steps=7, random_start=False)(x, y)
    torch.testing.assert_close(ascend(x, slope, norm=norm, eps=eps, steps=7, step=0.3), theirs, atol=1e-5, rtol=0)


L2_DEEPFOOL, LINF_DEEPFOOL = foolbox.attacks.L2DeepFoolAttack(), foolbox.attacks.LinfDeepFoolAttack()


@pytest.mark.parametrize(
    ("attack", "peer", "norm", "most"),
    [
        (deepfool, L2_DEEPFOOL, "L2", 1.0001),
        (deepfool, LINF_DEEPFOOL, "Linf", 1.0001),
        (ddn, foolbox.attacks.DDNAttack(steps=100), "L2", 1.15),  # ours follows the margin, theirs the cross-entropy
    ],
    ids=["deepfool-L2", "deepfool-Linf", "ddn"],
)
def test_minimal_perturbations_are_no_longer_than_foolboxs(case: Case, attack: Any, peer: Any, norm: str, most: float):
    """Shorter by a little: ours end with a search for the boundary."""
    net, x, y = case
    ours = attack(Classifier(net), x, y, norm=norm, steps=peer.steps)
    theirs = by_foolbox(peer, case)
    assert (net(ours).argmax(1) != y).all() and (net(theirs).argmax(1) != y).all()
    share = norm_of(ours - x, norm) / norm_of(theirs - x, norm)
    assert float(share.max()) <= most and 0.9 <= float(share.mean()) <= 1
