"""Attacks on linear classifiers, whose smallest perturbations have a closed form; and on a small network."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.classifiers import digits
from sfumato.attacks import ATTACKS, apgd, apgd_targeted, fab, fgsm, gradient_ascent, pgd, square, standard
from sfumato.attacks.fab import to_hyperplane
from sfumato.attacks.losses import cross_entropy, dlr, margin, reached, targeted_dlr
from sfumato.attacks.norms import dual, norm_of
from sfumato.attacks.square import pyramid_pair
from sfumato.attacks.verify import fooled, verified
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError

Attack = Callable[..., Tensor]

NORMS = ("Linf", "L2", "L1")
SHAPES = ((8,), (4, 6), (1, 6, 6))
STEEPEST: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "pgd momentum": partial(pgd, momentum=0.9),
    "apgd ce": apgd,
    "apgd dlr": partial(apgd, loss="dlr"),
    "apgd-t": apgd_targeted,
    "gradient ascent": partial(gradient_ascent, rate=0.3),
}
EACH_SHAPE = pytest.mark.parametrize(("shape", "batch"), [*zip(SHAPES, (1, 3, 8), strict=True)], ids=str)


class Linear:
    """A linear classifier of ``classes`` classes on samples near the middle of the box, with its smallest perturbations."""

    def __init__(self, shape: tuple[int, ...], classes: int, batch: int, dtype: torch.dtype = torch.float32) -> None:
        stream = torch.Generator().manual_seed(17 * math.prod(shape) + classes)
        layer = nn.Linear(math.prod(shape), classes)
        layer.weight.data = torch.randn(layer.weight.shape, generator=stream)
        # All logits are small at the middle, so that every boundary is near.
        layer.bias.data = 0.1 * torch.randn(classes, generator=stream) - layer.weight.data.sum(1) / 2
        self.classifier = Classifier(nn.Sequential(nn.Flatten(), layer).to(dtype))
        self.x = 0.49 + 0.02 * torch.rand(8, *shape, generator=stream)[:batch]
        self.logits = self.classifier.logits(self.x)
        self.weight = layer.weight.data.float()
        self.y = self.logits.argmax(1)

    def distances(self, norm: str) -> Tensor:
        """(B, K) to the boundary with each class, infinite for the true one: |gap| over the dual norm of the weights'."""
        gap = self.logits.gather(1, self.y[:, None]) - self.logits
        between = (self.weight[self.y][:, None] - self.weight[None]).flatten(0, 1)
        lengths = norm_of(between, dual(norm)).reshape(gap.shape)
        return torch.where(lengths > 0, gap / lengths.clamp_min(1e-9), torch.inf)


def unmoved(classifier: Classifier, x: Tensor, y: Tensor, **settings: object) -> Tensor:
    """What an attack must not be."""
    return x.clone()


def check_threshold(attack: Attack, case: Linear, norm: str, targeted: bool, **own: object) -> None:
    """Just above the smallest perturbation every sample is fooled, just below none; and all stay in ball and box."""
    smallest = case.distances(norm).amin(1)
    y = 1 - case.y if targeted else case.y
    for factor, wanted in ((1.02, True), (0.98, False)):
        eps = factor * smallest
        x_adv = attack(case.classifier, case.x, y, norm=norm, eps=eps, targeted=targeted, **own)
        found = verified(case.classifier, case.x, x_adv, y, norm=norm, eps=eps, targeted=targeted)
        assert x_adv.shape == case.x.shape and x_adv.dtype == case.x.dtype
        assert found.in_ball.all() and found.in_box.all()
        assert found.fooled.tolist() == [wanted] * len(case.x)


# -- closed form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@EACH_SHAPE
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", STEEPEST)
def test_steepest_ascent_needs_exactly_the_smallest_perturbation(
    name: str, norm: str, shape: tuple[int, ...], batch: int, targeted: bool
):
    check_threshold(STEEPEST[name], Linear(shape, 2, batch), norm, targeted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_targets_find_the_nearest_of_many_classes(norm: str, shape: tuple[int, ...]):
    check_threshold(apgd_targeted, Linear(shape, 5, 8), norm, False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_square_finds_the_corner_of_a_small_cube(shape: tuple[int, ...]):
    check_threshold(square, Linear(shape, 3, 3), "Linf", False, queries=600)


def test_a_no_op_fails():
    with pytest.raises(AssertionError):
        check_threshold(unmoved, Linear((8,), 2, 3), "L2", False)


@pytest.mark.parametrize("classes", [2, 3, 5])
@EACH_SHAPE
@pytest.mark.parametrize("norm", NORMS)
def test_fab_comes_close_to_the_smallest_perturbation(norm: str, shape: tuple[int, ...], batch: int, classes: int):
    case = Linear(shape, classes, batch)
    x_adv = fab(case.classifier, case.x, case.y, norm=norm, steps=30)
    found = verified(case.classifier, case.x, x_adv, case.y, norm=norm)
    ratio = found.distance / case.distances(norm).amin(1)
    assert found.success.all()
    assert ((ratio > 0.999) & (ratio < 1.05)).all(), ratio


def test_fab_reaches_the_label_wanted():
    case = Linear((4, 6), 5, 8)
    wanted = (case.y + 1) % 5
    x_adv = fab(case.classifier, case.x, wanted, norm="L2", targeted=True, steps=50)
    assert case.classifier.predict(x_adv).tolist() == wanted.tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_hyperplanes_are_reached_by_the_shortest_way_inside_the_box(norm: str):
    from scipy.optimize import linprog, minimize

    stream = torch.Generator().manual_seed(1)
    x, normal = torch.rand(6, 7, generator=stream), torch.randn(6, 7, generator=stream)
    value = 0.6 * torch.where(normal > 0, normal * (1 - x), -normal * x).sum(1)  # within the box's reach
    found = to_hyperplane(x, normal, value, norm)
    torch.testing.assert_close((normal * found).sum(1), value, rtol=1e-5, atol=1e-6)
    assert ((x + found > -1e-6) & (x + found < 1 + 1e-6)).all()
    for i in range(6):
        clean, w, c = x[i].double().numpy(), normal[i].double().numpy(), float(value[i])
        bounds = [*zip([0.0] * 7, 1 - clean, strict=True), *zip([0.0] * 7, clean, strict=True)]  # up, down
        both = [*w, *-w]
        on_it = {"type": "eq", "fun": lambda v, w=w, c=c: w @ (v[:7] - v[7:]) - c}
        if norm == "L2":
            size = minimize(lambda v: ((v[:7] - v[7:]) ** 2).sum(), [0.1] * 14, bounds=bounds, constraints=on_it)
            best = size.fun**0.5
        elif norm == "L1":
            best = linprog([1.0] * 14, A_eq=[both], b_eq=[c], bounds=bounds).fun
        else:  # one more unknown, the largest entry
            rows = [[float(i == j) for i in range(14)] + [-1.0] for j in range(14)]
            below, on_plane = {"A_ub": rows, "b_ub": [0.0] * 14}, {"A_eq": [[*both, 0.0]], "b_eq": [c]}
            best = linprog([0.0] * 14 + [1.0], **below, **on_plane, bounds=[*bounds, (0, 1)]).fun
        assert float(norm_of(found[i : i + 1], norm)) == pytest.approx(best, rel=2e-3)


# -- losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_losses_against_their_definitions(classes: int):
    stream = torch.Generator().manual_seed(classes)
    logits = torch.randn(20, classes, generator=stream, dtype=torch.float64)
    y, target = torch.randint(classes, (2, 20), generator=stream)
    target = torch.where(target == y, (y + 1) % classes, target)
    for i in range(20):
        z = logits[i].tolist()
        ordered = sorted(z, reverse=True)
        rival = max(v for j, v in enumerate(z) if j != y[i])
        gap, aimed = rival - z[int(y[i])], z[int(target[i])] - z[int(y[i])]
        one = (logits[i : i + 1], y[i : i + 1])
        assert float(margin(*one)) == pytest.approx(gap)
        assert float(cross_entropy(*one)) == pytest.approx(float(F.cross_entropy(*one)))
        scale = ordered[0] - ordered[2] if classes > 2 else 1.0
        assert float(dlr(*one)) == pytest.approx(gap / scale)
        scale = ordered[0] - (ordered[2] + ordered[3]) / 2 if classes > 3 else 1.0
        assert float(targeted_dlr(*one, target[i : i + 1])) == pytest.approx(aimed / scale)
    for loss in (cross_entropy, margin, dlr, lambda z, labels: targeted_dlr(z, labels, target)):
        leaf = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, y), leaf, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("size", [1e-20, 1e4, 1e30])
def test_losses_of_huge_and_tiny_logits(size: float):
    logits = size * torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    y = torch.tensor([0, 1])
    for loss in (cross_entropy, margin, dlr, lambda z, labels: targeted_dlr(z, labels, labels + 1)):
        leaf = logits.clone().requires_grad_()
        values = loss(leaf, y)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
        assert values.isfinite().all() and slope.isfinite().all()


def test_cross_entropy_of_a_sure_classifier_does_not_round_to_zero():
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    assert float(cross_entropy(logits, torch.tensor([0]))) == pytest.approx(2 * math.exp(-60), rel=1e-4)


def test_logits_that_are_no_numbers_are_no_success():
    logits = torch.tensor([[float("nan"), 1.0], [1.0, 2.0], [float("-inf"), 1.0]])
    assert reached(logits, torch.tensor([1, 0, 0])).tolist() == [False, True, True]


# -- a small network ------------------------------------------------------------------------------------------------------


ON_DIGITS: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": partial(pgd, restarts=2, steps=10),
    "apgd": partial(apgd, steps=20),
    "apgd-t": partial(apgd_targeted, steps=10, targets=3),
    "fab": partial(fab, steps=5, targets=3, restarts=2),
    "square": partial(square, queries=100),
}
SIZES = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ON_DIGITS)
def test_results_depend_on_neither_batches_nor_order(name: str, norm: str):
    net, x, y = digits()
    # In float64 batches of another size change too little to turn a sign.
    classifier = Classifier(copy.deepcopy(net).double())
    x, y = x[:12].double(), y[:12]
    attack = partial(ON_DIGITS[name], classifier, norm=norm, eps=SIZES[norm], seed=3)
    together = attack(x, y, batch_size=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    apart = attack(x[order], y[order], ids=order, batch_size=5)
    torch.testing.assert_close(apart, together[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ON_DIGITS)
def test_the_model_is_left_alone(name: str):
    net, x, y = digits()
    net.train()  # dropout would be on, and the ReLUs work in place
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    clean = x.clone()
    try:
        first, again = (ON_DIGITS[name](Classifier(net), x[:6], y[:6], norm="Linf", eps=0.1) for _ in range(2))
        assert torch.equal(first, again)
        assert all(module.training for module in net.modules())
        assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert torch.equal(clean, x) and not first.requires_grad
    finally:
        net.eval().requires_grad_(True)


def test_sizes_per_sample_and_a_float64_model():
    case = Linear((4, 6), 2, 8, dtype=torch.float64)
    eps = case.distances("L2").amin(1) * torch.tensor([0.9, 1.1] * 4)
    for attack in (fgsm, pgd, apgd, apgd_targeted):
        x_adv = attack(case.classifier, case.x, case.y, norm="L2", eps=eps)
        assert x_adv.dtype == torch.float32
        assert fooled(case.classifier, x_adv, case.y).tolist() == [False, True] * 4


def test_fooled_samples_cost_nothing_more():
    net, x, y = digits()
    classifier = Classifier(net.eval())
    pgd(classifier, x, y, eps=0.5, steps=40)
    assert classifier.backwards < 5 * len(x)  # all are fooled in a step or two
    classifier.reset_counts()
    apgd(classifier, x, y, eps=0.5)
    assert classifier.backwards < 8 * len(x)


def test_a_path_that_goes_in_circles_ends():
    case = Linear((8,), 2, 8)  # at the cube's corner sign steps stand still
    pgd(case.classifier, case.x, case.y, eps=1e-3, steps=200, step=0.5)
    assert case.classifier.backwards < 20 * 8


def test_square_beats_noise():
    net, x, y = digits()
    classifier = Classifier(net.eval())
    stream = torch.Generator().manual_seed(0)
    by_noise = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(200):
        sign = torch.randn(x.shape, generator=stream).sign()
        by_noise |= classifier.predict((x + 0.15 * sign).clamp(0, 1)) != y
    for norm, eps in (("Linf", 0.15), ("L2", 0.15 * 8), ("L1", 0.15 * 64)):
        found = fooled(classifier, square(classifier, x, y, norm=norm, eps=eps, queries=200), y)
        assert int(found.sum()) > int(by_noise.sum()) + 5, norm


@pytest.mark.parametrize("norm", NORMS)
def test_square_looks_ahead_and_remembers_without_changing_its_path(norm: str, monkeypatch: pytest.MonkeyPatch):
    net, x, y = digits()
    classifier = Classifier(copy.deepcopy(net).eval().double())
    x, y = x[:5].double(), y[:5]
    attack = partial(square, classifier, x, y, norm=norm, eps=SIZES[norm] / 2, queries=400)
    ahead = attack()
    module = importlib.import_module("sfumato.attacks.square_search")
    monkeypatch.setattr(module, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(module, "MOST_REMEMBERED", 0)
    torch.testing.assert_close(attack(), ahead, atol=1e-9, rtol=0)


def test_stronger_attacks_find_more():
    net, x, y = digits()
    classifier, x, y = Classifier(net.eval()), x[:30], y[:30]
    short = {"fgsm": {}, "pgd": {}, "apgd": {"steps": 40}, "apgd-t": {"steps": 40}, "fab": {"steps": 20, "targets": 4}}
    for norm, eps in SIZES.items():
        found = {name: ATTACKS[name](classifier, x, y, norm=norm, eps=eps, **own) for name, own in short.items()}
        hits = {name: int(fooled(classifier, x_adv, y).sum()) for name, x_adv in found.items()}
        assert all(hits[name] <= hits["apgd-t"] + 1 for name in ("fgsm", "pgd", "apgd")), (norm, hits)
        assert hits["fab"] >= hits["fgsm"], (norm, hits)


# -- the ensemble ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_ensemble_on_few_classes(classes: int):
    case = Linear((4, 6), classes, 8)
    eps = case.distances("Linf").amin(1) * 1.02
    seen: list[tuple[str, int, int]] = []
    case.y[0] = (case.y[0] + 1) % classes  # one that is wrong from the start
    verdict = standard(case.classifier, case.x, case.y, eps=eps, progress=lambda *step: seen.append(step))
    assert not verdict.robust.any()
    assert verdict.fooled_by[0] == "clean" and set(verdict.fooled_by[1:]) <= {"apgd-ce", "apgd-t", "fab-t", "square"}
    assert verified(case.classifier, case.x, verdict.x_adv, case.y, eps=eps).success.all()
    assert seen[0][:2] == ("apgd-ce", 7) and seen[-1][2] == 0


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "apgd-t", "fab", "square", "standard", "gradient-ascent"])
def test_bad_input_is_named(name: str):
    case = Linear((1, 6, 6), 3, 3)
    attack = ATTACKS.find(name)
    with pytest.raises(InputError, match="L0"):
        attack(case.classifier, case.x, case.y, norm="L0", eps=3.0)
    with pytest.raises(InputError, match="one label a sample"):
        attack(case.classifier, case.x, case.y[:2], eps=0.1)
    with pytest.raises(InputError, match="eps"):
        attack(case.classifier, case.x, case.y, eps=-0.1)
    with pytest.raises(InputError, match="from 0 to 1"):
        attack(case.classifier, 255 * case.x, case.y, eps=0.1)
    empty = attack(case.classifier, case.x[:0], case.y[:0], eps=0.1)
    assert empty.shape == (0, 1, 6, 6)


@pytest.mark.parametrize(("norm", "power"), [("L2", 2), ("L1", 4)])
def test_squares_pyramids_by_their_formula(norm: str, power: int):
    """Each pixel counts the rectangles about the centre that hold it, the k-th smallest with 1 / (k + 1)^p."""
    found = pyramid_pair(6, 5, norm)
    wanted = torch.zeros(6, 5)
    for row in range(3):
        for column in range(5):
            first = max(abs(row - 1), abs(column - 2))  # the centre of 3 x 5 is (1, 2); the third rectangle holds all
            wanted[row, column] = sum((ring + 1.0) ** -power for ring in range(first, 3))
    wanted[3:] = -wanted[:3]
    size = wanted.abs().sum() if norm == "L1" else wanted.square().sum().sqrt()
    assert torch.allclose(found, wanted / size)
