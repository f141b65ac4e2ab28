"""Decision boundaries: planes and fields against closed forms, church windows, and the toy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.boundaries import SHAPE, constant, greys, linear
from sfumato.boundary import gradient_direction, random_direction
from sfumato.boundary.colours import Colours, church_window
from sfumato.boundary.fields import crossing, field, path
from sfumato.boundary.planes import Threat, adversarial_direction, adversarial_plane, spanned, through
from sfumato.boundary.toys import TOYS, ball_lattice, examine, toy, train_toy
from sfumato.boundary.views import MOST_REACH, ascent, chosen, three_images, window_reach, windows
from sfumato.classifiers import Classifier
from sfumato.core.errors import InputError


def distance(weights: Tensor, bias: Tensor, x: Tensor) -> float:
    """The L2 distance of an image to the boundary of a two-class linear classifier."""
    normal = (weights[1] - weights[0]).double()
    gap = float(normal @ x.flatten().double() + (bias[1] - bias[0]).double())
    return abs(gap) / float(normal.norm())


# -- planes -----------------------------------------------------------------------------------------------------------


def test_a_plane_holds_its_three_images():
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    plane = through(images)
    places = plane.coordinates(images)
    torch.testing.assert_close(plane.points(places), images.double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(plane.images(places), images)
    assert places[0] == pytest.approx((0, 0)) and places[1][1] == pytest.approx(0, abs=1e-12)
    apart = (images[1] - images[2]).double().norm()
    assert np.linalg.norm(places[1] - places[2]) == pytest.approx(float(apart))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), size=st.integers(2, 60), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_directions_are_orthonormal(seed: int, size: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    origin, first, second = torch.randn(3, size, generator=generator, dtype=torch.float64)
    plane = spanned(origin, scale * first, second / scale)
    ways = torch.stack([plane.first, plane.second])
    torch.testing.assert_close(ways @ ways.T, torch.eye(2, dtype=torch.float64), atol=1e-10, rtol=0)
    # The plane still holds what it was spanned by.
    for way in (first, second):
        place = plane.coordinates((origin + way)[None])
        torch.testing.assert_close(plane.points(place)[0], origin + way, atol=1e-8, rtol=1e-8)
    for norm in ("Linf", "L2"):
        way = random_direction(origin, norm, seed)
        assert float(way.norm()) == pytest.approx(1)
    assert not torch.equal(random_direction(origin, "L2", seed), random_direction(origin, "L2", seed, 1))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_rim_is_where_the_norm_is_eps(norm: str):
    plane = through(torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2)))
    rim = plane.section(norm, 0.3)
    away = (plane.points(rim) - plane.origin).flatten(1)
    sizes = {"Linf": away.abs().amax(1), "L2": away.norm(dim=1), "L1": away.abs().sum(1)}[norm]
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.3))
    assert rim[0] == pytest.approx(rim[-1])
    first, _ = plane.units(norm, 0.3)
    assert rim[0] == pytest.approx((first, 0))


def test_planes_that_are_none():
    a, b, _ = torch.rand(3, *SHAPE)
    for few, words in (([a, b, (a + b) / 2], "on one line"), ([a, a, b], "on one line"), ([a, b], "three images")):
        with pytest.raises(InputError, match=words):
            through(torch.stack(few))
    for first, second, words in ((b, -2 * b, "parallel"), (0 * b, b, "zero"), (b, b[0], "differ")):
        with pytest.raises(InputError, match=words):
            spanned(a, first, second)


# -- what a classifier says on them ------------------------------------------------------------------------------------


def test_a_linear_boundary_is_the_exact_line():
    classifier, weights, bias = linear()
    plane = through(greys(3))
    found = field(classifier, plane, (-0.3, 0.3), (-0.2, 0.25), (61, 46))
    assert found.predicted.shape == found.confidence.shape == (46, 61)
    normal = (weights[1] - weights[0]).double()
    slope = [float(normal @ way.flatten()) for way in (plane.first, plane.second)]
    offset = float(normal @ plane.origin.flatten()) + float(bias[1] - bias[0])
    across, up = np.meshgrid(found.across, found.up)
    gap = (slope[0] * across + slope[1] * up + offset) / math.hypot(*slope)  # signed distance to the line, in the plane
    cell = max(found.across[1] - found.across[0], found.up[1] - found.up[0])
    assert set(np.unique(found.predicted)) == {0, 1}
    assert ((found.predicted == 1) == (gap > 0))[np.abs(gap) > 1e-4].all()
    for axis in (0, 1):
        flips = np.diff(found.predicted, axis=axis) != 0
        nearer = np.minimum(np.abs(np.delete(gap, -1, axis)), np.abs(np.delete(gap, 0, axis)))
        assert flips.any() and nearer[flips].max() < cell
    sure = 1 / (1 + np.exp(-np.abs(gap) * math.hypot(*slope)))
    np.testing.assert_allclose(found.confidence, sure, atol=1e-5)


def test_a_field_does_not_depend_on_the_batch_size():
    classifier, _, _ = linear(3)
    small = Classifier(classifier.model, batch_size=7)
    plane = through(greys(3))
    one, other = (field(each, plane, (-1, 1), (-1, 1), 12) for each in (classifier, small))
    assert (one.predicted == other.predicted).all()
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-6)
    assert small.forwards == 144


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_adversarial_direction_crosses_where_it_must_and_a_random_one_does_not(norm: str):
    classifier, weights, bias = linear()
    x = greys(8)[int(torch.tensor([distance(weights, bias, each) for each in greys(8)]).argmax())]
    y = int(classifier.predict(x[None])[0])
    normal = (weights[1] - weights[0]).flatten().double()
    gap = distance(weights, bias, x) * float(normal.norm())
    plane = adversarial_plane(classifier, x, y, Threat(norm, 0.2))
    closest = gap / float(normal.abs().sum() if norm == "Linf" else normal.norm())  # in the norm: the dual's quotient
    unit, _ = plane.units(norm, 1.0)
    assert crossing(classifier, x, plane.first, 0.5) / unit == pytest.approx(closest, rel=1e-3)
    aligned = abs(float(normal @ plane.second.flatten())) / float(normal.norm())
    assert aligned < 0.5
    assert crossing(classifier, x, plane.second, 2 * closest * unit) == math.inf
    if norm == "L2":
        assert abs(float(plane.first.flatten() @ normal) / float(normal.norm())) == pytest.approx(1, abs=1e-4)
        assert aligned == pytest.approx(0, abs=1e-3)


def test_the_gradient_is_the_lectures():
    classifier, weights, _ = linear(3)
    x = greys(1)[0]
    way, length = gradient_direction(classifier, x, 1)
    probability = classifier.logits(x[None])[0].double().softmax(0)
    wanted = weights.double().T @ (probability - torch.eye(3, dtype=torch.float64)[1])  # of cross-entropy, by hand
    torch.testing.assert_close(length * way.flatten(), wanted, atol=1e-5, rtol=1e-4)
    steps = np.array([0.0, 1e-3])
    along = path(classifier, x, 1, way, steps)
    assert along.loss[0] == pytest.approx(-math.log(float(probability[1])), rel=1e-5)
    assert (along.loss[1] - along.loss[0]) / 1e-3 == pytest.approx(length, rel=1e-2)
    np.testing.assert_allclose(along.confidence, np.exp(-along.loss), rtol=1e-6)


def test_along_the_gradient_the_class_is_lost_and_at_random_it_is_kept():
    classifier, weights, bias = linear(scale=3.0)
    x = greys(8)[int(torch.tensor([distance(weights, bias, each) for each in greys(8)]).argmax())]
    y = int(classifier.predict(x[None])[0])
    view = ascent(classifier, x, y)
    assert view.change == pytest.approx(distance(weights, bias, x), rel=1e-3)
    assert (view.predicted, view.becomes) == (y, 1 - y)
    assert view.answers[0].tolist()[0] == y and view.answers[0].tolist()[1] == 1 - y
    assert (np.diff(view.ascent.loss) > 0).all() and len(view.random) == 5
    assert all(each.loss[-1] < view.ascent.loss[-1] for each in view.random) and view.strays > view.change


def test_a_classifier_without_a_slope():
    """No gradient at all: directions are random, nothing crosses, and windows stay white."""
    classifier, threat = Classifier(constant), Threat("Linf", 0.1)
    x = greys(4)
    way = adversarial_direction(classifier, x[0], 1, threat)
    assert float(way.norm()) == pytest.approx(1)
    assert crossing(classifier, x[0], way, 10.0) == math.inf
    planes = [adversarial_plane(classifier, each, 1, threat) for each in x]
    view = windows(classifier, planes, torch.ones(4).long(), threat, 2.0, 9)
    assert window_reach(classifier, planes, threat) == MOST_REACH  # in vain, but no farther
    colours = Colours(("a", "b", "c"), [each.predicted for each in view.fields])
    for each in view.fields:
        assert (church_window(each, 1, colours) == 1).all()
        assert not (church_window(each, 0, colours) == 1).all(-1).any()
    assert np.isinf(view.leaves()).all() and np.isinf(view.leaves(upward=True)).all()
    assert ascent(classifier, x[0], 1).change == math.inf


def test_church_windows_are_open_to_the_right():
    classifier, weights, bias = linear()
    images = greys(8)
    x = torch.stack([each for each in images if 0.02 < distance(weights, bias, each)])
    y = classifier.predict(x)
    planes = [adversarial_plane(classifier, *pair, Threat("L2", 0.3)) for pair in zip(x, y.tolist(), strict=True)]
    view = windows(classifier, planes, y, Threat("L2", 0.3), 2.0, 21)
    for each, label, image in zip(view.fields, y.tolist(), x, strict=True):
        assert each.across[[0, -1]] == pytest.approx((-2, 2)) and each.predicted[10, 10] == label
        share = distance(weights, bias, image) / 0.3
        assert ((each.predicted == label) == (each.across < share))[:, np.abs(each.across - share) > 1e-2].all()
    wanted = [distance(weights, bias, image) / 0.3 for image in x]
    assert ((view.leaves() >= wanted) & (view.leaves() < np.array(wanted) + 0.2001)).all()  # within a cell
    assert np.isinf(view.leaves(upward=True)).all()


def test_the_plane_of_three_images_shows_their_classes():
    classifier, _, _ = linear(4)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    view = three_images(classifier, x, 60)
    for (across, up), label in zip(view.places, classifier.predict(x).tolist(), strict=True):
        column, row = (int(np.abs(view.field.across - across).argmin()), int(np.abs(view.field.up - up).argmin()))
        assert label in view.field.predicted[row - 1 : row + 2, column - 1 : column + 2]


def test_the_images_chosen_are_right_of_three_classes_and_the_first_falls():
    classifier, weights, _ = linear(4)
    x = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(6))
    y = classifier.predict(x)
    wrong = torch.arange(40) % 2 == 0
    rows = chosen([classifier], x, torch.where(wrong, (y + 1) % 4, y), range(40), Threat("Linf", 0.05))
    assert all(row % 2 for row in rows) and len(set(y[rows].tolist())) == 3
    first = rows[0]
    gaps = (classifier.logits(x)[first, y[first]] - classifier.logits(x)[first]).tolist()
    reach = [0.05 * float((weights[y[first]] - weights[j]).abs().sum()) for j in range(4)]  # without the box
    assert any(0 < gap < far for gap, far in zip(gaps, reach, strict=True))
    with pytest.raises(InputError, match="classified right"):
        chosen([classifier], x, (y + 1) % 4, range(40), Threat("Linf", 0.05))


# -- the toy -----------------------------------------------------------------------------------------------------------


def test_adversarial_training_clears_the_squares():
    data = toy("moons", 30)
    assert 0 <= float(data.x.min()) and float(data.x.max()) <= 1 and set(data.y.tolist()) == {0, 1}
    plain = examine(train_toy(data, steps=120), data, norm="Linf", eps=0.05, resolution=21)
    hard = examine(train_toy(data, eps=0.05, steps=120), data, norm="Linf", eps=0.05, resolution=21)
    assert plain.right.all() and hard.right.mean() > 0.95
    assert hard.reached.sum() < plain.reached.sum()


def test_balls_are_examined_exactly_enough():
    """A boundary at a known distance: balls that reach over it are found, others are not."""
    data = toy("rings", 20)
    line = 0.5

    def upper(x: Tensor) -> Tensor:
        return torch.stack([line - x[:, 1], x[:, 1] - line], 1)

    result = examine(Classifier(upper), data._replace(y=(data.x[:, 1] > line).long()), norm="L2", eps=0.1)
    away = (data.x[:, 1] - line).abs().numpy()
    assert result.right.all()
    assert (result.reached == (away < 0.1))[np.abs(away - 0.1) > 1e-3].all()
    for norm, order in (("Linf", np.inf), ("L2", 2), ("L1", 1)):
        sizes = np.linalg.norm(ball_lattice(norm, 0.1), order, axis=1)
        assert sizes[0] == 0 and sizes.max() == pytest.approx(0.1)


def test_toys_have_names():
    assert all(len(toy(name, 20).classes) == 2 for name in TOYS)
    with pytest.raises(InputError, match="moons"):
        toy("moon")
