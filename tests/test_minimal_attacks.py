"""Attacks that look for the smallest perturbation, against linear classifiers whose smallest perturbation is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.attacks.carlini_wagner import carlini_wagner
from sfumato.attacks.ddn import ddn
from sfumato.attacks.deepfool import deepfool
from sfumato.attacks.fmn import accuracy_curve, fmn
from sfumato.attacks.hop_skip_jump import hop_skip_jump
from sfumato.attacks.lbfgs import lbfgs, minimise_in_box, negative_log_fooled
from sfumato.attacks.losses import margin
from sfumato.attacks.norms import norm_of
from sfumato.attacks.sigma_zero import sigma_zero
from sfumato.attacks.verify import fooled
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError

Attack = Callable[..., Tensor]
SHAPES = [(8,), (4, 6), (1, 6, 6)]


class Case(NamedTuple):
    """An attack, and how many times the smallest distance its results may be.

    ``ratio`` is for one boundary (two classes, or untargeted), where all but the attack's last digits is prescribed;
    ``corner``, of the median, for where a targeted attack on three classes meets two of them (and where labels alone lead
    to one of two boundaries, not always the nearer).
    """

    attack: Attack
    norm: str
    steps: int
    ratio: float
    corner: float

    def __call__(self, classifier: Classifier, x: Tensor, y: Tensor, **more: Any) -> Tensor:
        return self.attack(classifier, x, y, norm=self.norm, **{"steps": self.steps, **more})


CASES = {
    "deepfool-L2": Case(deepfool, "L2", 50, 1.02, 1.15),
    "deepfool-Linf": Case(deepfool, "Linf", 50, 1.02, 1.35),
    "ddn": Case(ddn, "L2", 150, 1.03, 1.05),
    "fmn-L2": Case(fmn, "L2", 150, 1.03, 1.05),
    "fmn-Linf": Case(fmn, "Linf", 150, 1.15, 1.05),
    "fmn-L1": Case(fmn, "L1", 150, 1.2, 1.05),
    "fmn-L0": Case(fmn, "L0", 150, 2, 1.01),
    "sigma-zero": Case(sigma_zero, "L0", 150, 1.5, 1.01),
    "carlini-wagner": Case(carlini_wagner, "L2", 100, 1.1, 1.05),
    "lbfgs": Case(lbfgs, "L2", 30, 1.25, 1.15),
    "hop-skip-jump-L2": Case(hop_skip_jump, "L2", 10, 1.25, 1.25),
    "hop-skip-jump-Linf": Case(hop_skip_jump, "Linf", 10, 1.25, 1.25),
}
FAST = {name: case._replace(steps=12) for name, case in CASES.items() if name != "hop-skip-jump-Linf"}
EACH_ATTACK = pytest.mark.parametrize("case", FAST.values(), ids=FAST)


def linear(shape: tuple[int, ...], classes: int, batch: int, seed: int) -> tuple[Classifier, Tensor, np.ndarray]:
    """A linear classifier whose classes meet in the middle of the box, points around it, and its weights (K, d)."""
    random = np.random.default_rng(seed)
    values = int(np.prod(shape))
    weight = random.normal(size=(classes, values))
    model = nn.Sequential(nn.Flatten(), nn.Linear(values, classes))
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(-weight.sum(1) / 2))
    x = torch.from_numpy(random.uniform(0.3, 0.7, (batch, *shape))).float()
    return Classifier(model, mean=0.0, std=1.0), x, weight


def half_space(w: np.ndarray, x: np.ndarray, norm: str) -> float:
    """The smallest norm of d with ``w . d >= -w . (x - 1/2)`` and ``x + d`` in the box, exactly."""
    gap = -float(w @ (x - 0.5))
    room = np.where(w > 0, 1 - x, x)
    size = np.abs(w)
    if norm in ("L1", "L0"):
        order = np.argsort(-size if norm == "L1" else -size * room)
        gained = np.cumsum((size * room)[order])
        count = int(np.searchsorted(gained, gap))  # entries that must go all the way
        if norm == "L0":
            return count + 1
        missing = gap - (gained[count - 1] if count else 0.0)
        return float(room[order][:count].sum() + missing / size[order][count])
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        step = np.minimum(middle if norm == "Linf" else middle * size, room)
        low, high = (middle, high) if size @ step < gap else (low, middle)
    step = np.minimum(high if norm == "Linf" else high * size, room)
    return float(step.max() if norm == "Linf" else np.linalg.norm(step))


def both_half_spaces(w: np.ndarray, x: np.ndarray, norm: str) -> float:
    """The same for several rows of ``w`` at once, by scipy's solvers: what a targeted attack has to reach."""
    from scipy.optimize import Bounds, LinearConstraint, milp, minimize

    gap, count = -w @ (x - 0.5), len(x)
    if norm == "L2":
        limits = {"type": "ineq", "fun": lambda d: w @ d - gap, "jac": lambda d: w}
        box, exact, start = list(zip(-x, 1 - x, strict=True)), {"ftol": 1e-12, "maxiter": 500}, np.zeros(count)
        found = minimize(lambda d: (d @ d, 2 * d), start, jac=True, bounds=box, constraints=limits, options=exact)
        assert found.success
        return float(np.sqrt(found.fun))
    # Unknowns: d, and what bounds its size: one number (Linf), one each (L1), or one yes-or-no each (L0).
    eye = np.eye(count)
    extra = np.ones((count, 1)) if norm == "Linf" else eye
    number = extra.shape[1]
    cost = np.r_[np.zeros(count), np.ones(number)]
    above = np.r_[np.c_[-w, np.zeros((len(w), number))], np.c_[eye, -extra], np.c_[-eye, -extra]]
    limit = LinearConstraint(above, ub=np.r_[-gap, np.zeros(2 * count)])
    bounds = Bounds(np.r_[-x, np.zeros(number)], np.r_[1 - x, np.ones(number)])
    found = milp(cost, constraints=limit, bounds=bounds, integrality=cost if norm == "L0" else None)
    assert found.success
    return float(found.fun)


def smallest(weight: np.ndarray, x: Tensor, y: Tensor, norm: str, targeted: bool) -> np.ndarray:
    """(B,) the smallest distances."""
    points = x.flatten(1).double().numpy()
    if targeted:
        each = [both_half_spaces(weight[t] - np.delete(weight, t, 0), p, norm) for p, t in zip(points, y, strict=True)]
    else:
        each = [
            min(half_space(weight[j] - weight[k], p, norm) for j in range(len(weight)) if j != k)
            for p, k in zip(points, y.tolist(), strict=True)
        ]
    return np.array(each)


def problem(
    shape: tuple[int, ...], classes: int, batch: int, targeted: bool, seed: int = 0
) -> tuple[Classifier, Tensor, Tensor, np.ndarray]:
    classifier, x, weight = linear(shape, classes, batch, seed)
    y = classifier.predict(x)
    return classifier, x, (y + 1) % classes if targeted else y, weight


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("shape", "batch"), list(zip(SHAPES, (1, 3, 8), strict=True)), ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_linear_classifiers_smallest_perturbation(
    case: Case, shape: tuple[int, ...], batch: int, classes: int, targeted: bool
):
    classifier, x, y, weight = problem(shape, classes, batch, targeted)
    least = smallest(weight, x, y, case.norm, targeted)
    before = x.clone()
    x_adv = case(classifier, x, y, targeted=targeted)
    assert torch.equal(x, before)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert bool(fooled(classifier, x_adv, y, targeted).all())
    distance = norm_of(x_adv - x, case.norm).double().numpy()
    assert (distance >= least * (1 - 1e-4)).all()  # nothing beats the optimum: the oracle and the norm agree
    ratios = distance / least
    if classes == 3 and (targeted or case.attack is hop_skip_jump):
        assert np.median(ratios) <= case.corner
        assert ratios.max() <= 3.5
    else:
        assert ratios.max() <= case.ratio


def test_the_oracles_agree():
    """One half space by its closed form and by scipy's solvers; and where the box is far, by the dual norm."""
    random = np.random.default_rng(3)
    w, x = random.normal(size=12), random.uniform(0.3, 0.7, size=12)
    w *= -np.sign(w @ (x - 0.5))
    for norm in ("L0", "L1", "L2", "Linf"):
        assert both_half_spaces(w[None], x, norm) == pytest.approx(half_space(w, x, norm), rel=1e-4)
    near = 0.5 + 0.01 * (x - 0.5)
    gap = -w @ (near - 0.5)
    for norm, dual in (("L1", np.inf), ("L2", 2), ("Linf", 1)):
        assert half_space(w, near, norm) == pytest.approx(gap / np.linalg.norm(w, dual), rel=1e-6)


# -- any classifier -------------------------------------------------------------------------------------------------------


def small_net(classes: int = 3, dtype: torch.dtype = torch.float32) -> Classifier:
    """A convolutional net with random weights: not linear, and with several classes that do occur."""
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Tanh(), nn.Linear(16, classes)
    )
    net.to(dtype)
    middle = net(torch.full((1, 1, 6, 6), 0.5, dtype=dtype)).detach()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias -= middle[0]
    return Classifier(net, mean=0.0, std=1.0)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@EACH_ATTACK
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_neither_batch_size_nor_order_matters(case: Case, targeted: bool):
    classifier = small_net(3, torch.float64)  # rounding of another batch size must not tip a label
    x = drawn(7, 1, 6, 6)
    y = classifier.predict(x)
    y[2] = (y[2] + 1) % 3  # one that is misclassified already
    y = (y + 1) % 3 if targeted else y
    whole = case(classifier, x, y, targeted=targeted, seed=4)
    order = torch.tensor([5, 2, 0, 6, 3, 1, 4])
    other = torch.empty_like(x)
    for rows in order.split(3):
        other[rows] = case(classifier, x[rows], y[rows], targeted=targeted, seed=4, ids=rows)
    one, two = norm_of(whole - x, case.norm), norm_of(other - x, case.norm)
    assert torch.equal(one, two) or case.norm != "L0"
    torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(whole, other, rtol=0, atol=5e-3)


@EACH_ATTACK
def test_what_fools_already_is_returned_as_it_is(case: Case):
    classifier = small_net()
    x = drawn(4, 1, 6, 6)
    y = (classifier.predict(x) + 1) % 3
    assert torch.equal(case(classifier, x, y), x)


@EACH_ATTACK
def test_a_hopeless_sample_comes_back_unchanged(case: Case):
    """A classifier that says class 0 everywhere (yet has a gradient) cannot be fooled."""

    def always_first(x: Tensor) -> Tensor:
        slope = x.flatten(1).mean(1)
        return torch.stack([slope + 5, -slope, 0 * slope], 1)

    x = drawn(3, 1, 6, 6)
    y = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(case(Classifier(always_first), x, y), x)


@EACH_ATTACK
def test_flat_gradients_and_an_empty_batch(case: Case):
    def flat(x: Tensor) -> Tensor:
        return torch.stack([0 * x.flatten(1).sum(1) + 1, 0 * x.flatten(1).sum(1)], 1)

    classifier = Classifier(flat, labels=("a", "b"))
    x = drawn(2, 5)
    y = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(case(classifier, x, y), x)
    assert case(classifier, x[:0], y[:0]).shape == (0, 5)


@EACH_ATTACK
def test_black_and_white_pixels_and_float64_models(case: Case):
    """Corners of the box are where tanh space ends and steps are clipped."""
    classifier = small_net(2, torch.float64)
    x = (drawn(6, 1, 6, 6, seed=2) > 0.5).float()
    y = classifier.predict(x)
    x_adv = case(classifier, x, y, steps=15 if case.attack is lbfgs else 60)
    assert x_adv.dtype == torch.float32 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert float(fooled(classifier, x_adv, y).double().mean()) >= 0.8


@EACH_ATTACK
def test_the_model_stays_as_it_was(case: Case):
    classifier = small_net()
    module = classifier.module
    assert module is not None
    module.train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    x = drawn(2, 1, 6, 6)
    case(classifier, x, classifier.predict(x))
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("attack", [deepfool, ddn, carlini_wagner, lbfgs, hop_skip_jump, sigma_zero, fmn])
def test_an_unknown_norm_is_refused(attack: Attack):
    classifier = small_net()
    x = torch.rand((2, 1, 6, 6))
    with pytest.raises(InputError, match="unknown norm 'L3'"):
        attack(classifier, x, classifier.predict(x), norm="L3")


# -- single parts ---------------------------------------------------------------------------------------------------------


def test_box_constrained_lbfgs_against_scipy():
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    roots = random.normal(size=(5, 9, 9))
    hessian = torch.from_numpy(roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(9))
    centre = torch.from_numpy(random.normal(0.5, 1.0, size=(5, 9)))  # mostly outside the box

    def objective(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        away = points - centre[rows]
        slope = torch.einsum("bij,bj->bi", hessian[rows], away)
        return (away * slope).sum(1) / 2 + (points**4).sum(1), slope + 4 * points**3

    found = minimise_in_box(objective, torch.full((5, 9), 0.5, dtype=torch.float64), steps=200)
    for i in range(5):
        row = torch.tensor([i])

        def one(v: np.ndarray, row: Tensor = row) -> tuple[float, np.ndarray]:
            value, slope = objective(torch.from_numpy(v)[None], row)
            return float(value), slope[0].numpy()

        exact = {"ftol": 1e-14, "gtol": 1e-10}
        best = minimize(one, np.full(9, 0.5), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 9, options=exact)
        np.testing.assert_allclose(found[i].numpy(), best.x, atol=1e-4)


def test_negative_log_fooled_is_the_probability_of_all_others():
    logits = torch.tensor([[2.0, -1.0, 0.5], [40.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0])
    expected = -torch.log(1 - logits.softmax(1)[:, 0])
    assert negative_log_fooled(logits, y, False)[0] == pytest.approx(float(expected[0]))
    assert negative_log_fooled(logits, y, False)[1] == pytest.approx(40 - np.log(2))  # 1 - P is 0 in rounding
    torch.testing.assert_close(negative_log_fooled(logits, y, True), -logits.log_softmax(1)[:, 0])


def test_carlini_wagners_confidence_is_kept():
    classifier, x, y, _ = problem((4, 6), 2, 3, False)
    lead = margin(classifier.logits(carlini_wagner(classifier, x, y, steps=100, confidence=0.7)), y)
    assert float(lead.min()) > 0.7 - 1e-4
    assert float(lead.max()) < 0.8


def test_hop_skip_jump_sees_labels_only():
    """Logits that say nothing but the label lead to the same image."""
    classifier = small_net()
    hard = Classifier(lambda x: nn.functional.one_hot(classifier(x).argmax(1), 3).float())
    x = drawn(3, 1, 6, 6)
    y = classifier.predict(x)
    soft = hop_skip_jump(classifier, x, y, steps=3)
    assert torch.equal(soft, hop_skip_jump(hard, x, y, steps=3))
    assert not torch.equal(soft, x) and classifier.backwards == 0


def test_hop_skip_jump_begins_at_the_starts_given():
    """A class that no noise image has can only be reached from an image of it."""

    def even(x: Tensor) -> Tensor:
        away = (x - 0.9).abs().flatten(1).mean(1)
        return torch.stack([away - 0.05, 0.05 - away], 1)  # class 1: the same light grey everywhere

    classifier = Classifier(even)
    x = torch.full((2, 1, 6, 6), 0.4)
    y = torch.ones(2, dtype=torch.int64)
    assert torch.equal(hop_skip_jump(classifier, x, y, targeted=True, steps=3), x)
    found = hop_skip_jump(classifier, x, y, targeted=True, steps=3, starts=torch.full_like(x, 0.9))
    assert bool(fooled(classifier, found, y, True).all())
    torch.testing.assert_close(norm_of(found - x, "L2"), torch.full((2,), 0.45 * 6), rtol=0.05, atol=0)
    with pytest.raises(InputError, match="starts have shape"):
        hop_skip_jump(classifier, x, y, starts=x[:1])


def test_accuracy_curve_of_a_linear_classifier():
    classifier, x, y, weight = problem((4, 6), 3, 8, False)
    y[0] = (y[0] + 1) % 3  # misclassified: never counted as robust
    least = smallest(weight, x[1:], y[1:], "Linf", False)
    x_adv = deepfool(classifier, x, y, norm="Linf")
    grid = np.r_[0.0, np.sort(least) * 1.01, 1.0]
    expected = [(least > eps).sum() / 8 for eps in grid]
    curve = accuracy_curve(classifier, x, y, x_adv, "Linf", torch.from_numpy(grid))
    np.testing.assert_allclose(curve.numpy(), expected)
    assert curve[0] == 7 / 8 and curve[-1] == 0
    untouched = accuracy_curve(classifier, x, y, x, "Linf", [0.0, 1.0])
    np.testing.assert_allclose(untouched.numpy(), [7 / 8, 7 / 8])  # an attack that finds nothing leaves all robust
    with pytest.raises(InputError, match="negative"):
        accuracy_curve(classifier, x, y, x_adv, "Linf", [-0.1])
    with pytest.raises(InputError, match="no samples"):
        accuracy_curve(classifier, x[:0], y[:0], x_adv[:0], "Linf", [0.1])


def test_fmn_reaches_a_far_boundary_in_few_steps():
    """From grey, 80 of 400 values must go all the way."""
    weight = np.random.default_rng(0).normal(size=400)
    gap = np.sort(np.abs(weight))[::-1][:80].sum() / 2 - 0.01
    model = nn.Linear(400, 2)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.stack([np.zeros(400), weight])))
        model.bias.copy_(torch.tensor([0.0, -gap - weight.sum() / 2]))
    classifier = Classifier(model, mean=0.0, std=1.0)
    x, y = torch.full((2, 400), 0.5), torch.zeros(2, dtype=torch.int64)
    x_adv = fmn(classifier, x, y, norm="L0", steps=50)
    assert fooled(classifier, x_adv, y).all()
    size = norm_of(x_adv - x, "L0")
    assert (size >= 80).all() and (size <= 90).all()


def test_deepfool_takes_the_gradients_of_all_classes_from_one_forward_pass():
    classifier, x, weight = linear((8,), 5, 3, seed=1)
    y = classifier.predict(x)
    classifier.reset_counts()
    logits, slopes = classifier.gradients(x, lambda z: z[:, [2, 0]] ** 2)
    assert (classifier.forwards, classifier.backwards) == (3, 6)
    wanted = 2 * logits.detach()[:, [2, 0], None] * torch.from_numpy(weight[[2, 0]]).float()
    assert slopes.shape == (3, 2, 8) and torch.allclose(slopes, wanted, rtol=1e-4, atol=1e-4)
    classifier.reset_counts()
    assert fooled(classifier, deepfool(classifier, x, y), y).all()
    assert classifier.backwards == 3 * 4 and classifier.forwards < 3 * 25  # one step; the rest asks for labels
    for bad in (lambda z: z[:, 0], lambda z: z[:1], lambda z: z[:, :0]):
        with pytest.raises(InputError, match="losses"):
            classifier.gradients(x, bad)
    empty = classifier.gradients(x[:0], lambda z: z[:, :2])[1]
    assert empty.shape == (0, 2, 8)
