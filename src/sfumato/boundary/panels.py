"""The panels of the figure: each view with a title and one sentence in plain words that says what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sfumato.boundary import draw, views
from sfumato.boundary.colours import Colours, shortened
from sfumato.boundary.planes import Threat, adversarial_plane, through
from sfumato.boundary.toys import TOY_EPS, examine, toy, train_toy
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier


@dataclass(frozen=True)
class Panel:
    """A view, computed.

    Attributes:
        title, caption: what it is, and what it found.
        shown: arrays of the class numbers that it shows.
        draw: puts it on a matplotlib SubFigure.
        wide: how many columns it takes.
    """

    title: str
    caption: str
    shown: list[np.ndarray]
    draw: Callable[[Any, Colours], None]
    wide: int = 1


@dataclass(frozen=True)
class FigureContext:
    """What all panels of a figure share.

    Attributes:
        classifiers: one or two, of the same classes.
        x, y, ids: images (B, C, H, W), their true labels (B,) and numbers.
        three: rows of the three images of the plane; the first is the one in the middle of the other views.
        threat: norm and eps of the perturbations, and the seed.
        resolution, window, count: points a side of a plane and of a church window, and how many windows.
    """

    classifiers: Sequence[Classifier]
    x: Tensor
    y: Tensor
    ids: Sequence[int]
    three: Sequence[int]
    threat: Threat
    resolution: int
    window: int
    count: int


def toy_panel(name: str, norm: str, eps: float | None, seed: int) -> Panel:
    """A toy in two dimensions, before and after adversarial training on the same axes."""
    size = TOY_EPS[norm] if eps is None else eps
    data = toy(name, seed=seed)
    plain = examine(train_toy(data, seed=seed), data, norm=norm, eps=size)
    hard = examine(train_toy(data, norm=norm, eps=size, seed=seed), data, norm=norm, eps=size)
    shape = {"Linf": "square", "L2": "disc", "L1": "diamond"}[norm]
    caption = (
        f"Every place on the page is an input, each {shape} holds all changes of size eps = {size:g}. Trained as usual, the "
        f"boundary cuts {plain.reached.sum()} of {len(data.x)} {shape}s (red); trained on the worst point of each "
        f"{shape}, {hard.reached.sum()}."
    )

    def paint(figure: Any, _: Colours) -> None:
        left, right = figure.subplots(1, 2)
        draw.draw_toy(left, data, plain, norm=norm, eps=size, title="trained as usual")
        draw.draw_toy(right, data, hard, norm=norm, eps=size, title="trained adversarially")

    return Panel(f"In two dimensions: {name}", caption, [], paint, wide=2)


def plane_panels(context: FigureContext) -> list[Panel]:
    """The plane through three images, for each classifier."""
    images = context.x[list(context.three)]
    plane = through(images)
    found = [views.three_images(classifier, images, context.resolution, plane) for classifier in context.classifiers]
    mixture = "Every place is a mixture of the three framed images"
    caption = f"{mixture}; its colour is the class that the classifier sees there, paler where it is less sure."
    title = "The plane through three images"
    return [Panel(title, caption, [view.field.predicted], partial(draw.draw_three, view)) for view in found]


def adversarial_panels(context: FigureContext, *, borrow: bool = False) -> list[Panel]:
    """Each classifier around the image, along its own adversarial direction; ``borrow``: the last also along the first's."""
    classifiers, threat, row = context.classifiers, context.threat, context.three[0]
    x, planes = context.x[row], []
    for classifier in classifiers:
        predicted = int(classifier.predict(x[None])[0])  # around an image that is wrong, what leaves that class
        planes.append(adversarial_plane(classifier, x, predicted, threat, context.ids[row]))
    pairs = list(zip(classifiers, planes, strict=True)) + ([(classifiers[-1], planes[0])] if borrow else [])
    found = [views.around(classifier, x, plane, threat) for classifier, plane in pairs]
    reach = views.reach_of(found[: len(classifiers)])
    panels = []
    for i, ((classifier, plane), view) in enumerate(zip(pairs, found, strict=True)):
        shown = views.field_in_eps(classifier, plane, threat, reach, context.resolution)
        view = replace(view, borrowed=i >= len(classifiers), field=shown)
        title = "Along noise made for the first" if view.borrowed else "Adversarial against random noise"
        paint = partial(draw.draw_directions, view, threat)
        panels.append(Panel(title, _about_directions(view, classifier.labels), [shown.predicted], paint))
    return panels


def church_panels(context: FigureContext) -> list[Panel]:
    """Church windows of images that all classifiers get right; each in its own directions."""
    classifiers, threat = context.classifiers, context.threat
    rows = views.right_rows(classifiers, context.x, context.y)[: context.count]
    if not rows:
        raise InputError("no image is classified right, so there is no church window to show: check the labels")
    y = context.y[rows]
    each = [(context.x[row], int(context.y[row]), threat, context.ids[row]) for row in rows]
    planes = [[adversarial_plane(classifier, *image) for image in each] for classifier in classifiers]
    reach = views.window_reach(classifiers[0], planes[0], threat)  # the first classifier's for all: on the same axes
    panels = []
    for classifier, own in zip(classifiers, planes, strict=True):
        view = views.windows(classifier, own, y, threat, reach, context.window)
        shown = [each.predicted[each.predicted != label] for each, label in zip(view.fields, view.labels, strict=True)]
        panels.append(Panel("Church windows", _about_windows(view), shown, partial(draw.draw_windows, view)))
    return panels


def gradient_panels(context: FigureContext) -> list[Panel]:
    """Loss and confidence along the gradient, for each classifier on the same axes."""
    row, seed = context.three[0], context.threat.seed
    x, y, index = context.x[row], int(context.y[row]), context.ids[row]
    found = [views.ascent(classifier, x, y, seed=seed, index=index) for classifier in context.classifiers]
    if len(found) > 1:
        shown = max(float(view.ascent.steps[-1]) for view in found)
        found = [views.ascent(each, x, y, seed=seed, index=index, shown=shown) for each in context.classifiers]
    highest = max(float(curve.loss.max()) for view in found for curve in (view.ascent, *view.random))
    title, labels = "The lecture's step x + a ∇loss", context.classifiers[0].labels
    return [Panel(title, _about_ascent(view, labels), [], partial(draw.draw_ascent, view, highest)) for view in found]


def with_name(panel: Panel, name: str) -> Panel:
    """The panel with the classifier's name above its title."""
    return replace(panel, title=f"{shortened(name, 32)}\n{panel.title}")


def _about_directions(view: views.Directions, labels: Sequence[str]) -> str:
    name, (computed, random) = _quoted(labels, view.predicted), view.changes
    whose = "Noise computed against the first classifier" if view.borrowed else "Noise computed to fool the classifier"
    far = f"{view.farthest:.3g} eps"
    if math.isinf(computed):
        both = " nor does random noise (up)" if math.isinf(random) else f", random noise (up) does at {random:.2g} eps"
        return f"{whose} (right) does not change {name} within {far},{both.removeprefix(',')}. Dashed: all changes of size eps."
    after = "another class" if view.becomes is None else _quoted(labels, view.becomes)
    never, needs = f"even {far} of random noise (up) do not", f"random noise (up) needs {random:.2g} eps"
    up = never if math.isinf(random) else needs
    return f"{whose} (right) turns {name} into {after} at {computed:.2g} eps; {up}. Dashed: all changes of size eps."


def _about_windows(view: views.Windows) -> str:
    computed, random = (_half(view.leaves(upward), view.reach) for upward in (False, True))
    return (
        f"{len(view.fields)} images, each at the centre of its window; white is the right class. For half of them noise "
        f"computed to fool (right) leaves the white {computed}, random noise (up) {random}. Dashed: all changes of size eps."
    )


def _half(distances: np.ndarray, reach: float) -> str:
    middle = float(np.sort(distances)[(len(distances) - 1) // 2])
    return f"not within {reach:.3g} eps" if math.isinf(middle) else f"by {middle:.2g} eps"


def _about_ascent(view: views.Ascent, labels: Sequence[str]) -> str:
    far, name = float(view.ascent.steps[-1]), _quoted(labels, view.predicted)
    lines = f"of {len(view.random)} random directions"
    never, quickest = f"none {lines} does within {far:.2g}", f"the quickest {lines} takes {view.strays:.2g}"
    random = never if math.isinf(view.strays) else quickest
    if view.becomes is None:
        return f"Along the gradient of the loss {name} does not change within a length of {far:.2g}; {random}."
    return f"A step of length {view.change:.2g} along the gradient of the loss turns {name} into {_quoted(labels, view.becomes)}; {random}."


def _quoted(labels: Sequence[str], label: int) -> str:
    return f"'{shortened(labels[label], 24)}'"
