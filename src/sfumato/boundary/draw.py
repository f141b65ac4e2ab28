"""One plotting function a view, on a matplotlib Figure or SubFigure. Nothing is computed here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.boundary.colours import CALM, INK, TOY_COLOURS, WRONG, Colours, blend, church_window
from sfumato.boundary.fields import Field
from sfumato.boundary.planes import Threat
from sfumato.boundary.toys import Toy, ToyResult, ball_outline
from sfumato.boundary.views import Ascent, Directions, ThreeImages, Windows
from sfumato.core.pictures import on_white, to_bytes

THUMBNAIL = 46  # points
_LEAST_LABELLED = 0.035  # of the picture: smaller regions get no name of their own
_LINE = 0.9  # points, of the boundaries
_SMALL: dict[str, Any] = {"frameon": False, "fontsize": "small"}  # legends
_DASHED = (0, (3, 1.5))
_DIVIDED = 150  # cells a side, up to which coarser ones are divided before a line is drawn around them


def draw_toy(axes: Any, data: Toy, result: ToyResult, *, norm: str, eps: float, title: str) -> None:
    """The boundary, the points, and their eps-balls: red where a ball holds another class than the point's."""
    colours = Colours(data.classes, [result.field.predicted], TOY_COLOURS)
    _paint(axes, result.field, blend(result.field, colours, most=0.5))  # the points stand out
    outline = ball_outline(norm, eps)
    from matplotlib.collections import PolyCollection

    points, labels = data.x.numpy(), data.y.numpy()
    for reached, colour, width, order in ((False, INK, 0.5, 2), (True, WRONG, 1.5, 3)):
        balls = list(points[result.reached == reached][:, None] + outline)
        line: dict[str, Any] = {"edgecolors": colour, "linewidths": width, "zorder": order}
        axes.add_collection(PolyCollection(balls, facecolors="none", **line))
    for label, marker in enumerate("os"):
        known = {"marker": marker, "color": colours.of(label), "label": colours.name(label)}
        axes.scatter(*points[labels == label].T, s=26, edgecolors="white", linewidths=0.6, zorder=4, **known)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, markerscale=1.6, **_SMALL)


def draw_three(view: ThreeImages, figure: Any, colours: Colours) -> None:
    """The plane through three images, which stand at their places."""
    axes = figure.subplots()
    _paint(axes, view.field, blend(view.field, colours))
    _name_regions(axes, view.field, colours, view.places)
    for image, place in zip(view.images, view.places, strict=True):
        _thumbnail(axes, image, place)
    axes.set(xlabel="distance in the plane (L2, pixels from 0 to 1)", aspect="equal")
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set(xlim=view.field.extent[:2], ylim=view.field.extent[2:])


def draw_directions(view: Directions, threat: Threat, figure: Any, colours: Colours) -> None:
    """Adversarial direction across, random direction up, and the eps ball around the image in the middle."""
    axes = figure.subplots()
    _paint(axes, view.field, blend(view.field, colours))
    axes.plot(*view.rim.T, color="white", linewidth=3.2)
    axes.plot(*view.rim.T, color=INK, linewidth=1.6, linestyle=_DASHED)
    reach = view.field.across[-1]
    beside = np.array([(-0.62, -0.55), (0.62, -0.55), (-0.55, 0.66), (0, 0)]) * reach
    for image, place, at in zip(view.images, view.places, beside[:3], strict=True):
        if max(abs(place)) <= reach:
            axes.plot(*place, marker="o", markersize=5, color="white", markeredgecolor=INK, zorder=6)
            _thumbnail(axes, image, place, at=at)
    _name_regions(axes, view.field, colours, beside)
    whose, size = "the first's" if view.borrowed else "adversarial", f"{threat.norm} {size_text(threat.eps)}"
    axes.set(xlabel=f"{whose} direction, in eps ({size})", ylabel="random direction, in eps", aspect="equal")
    axes.set(xlim=view.field.extent[:2], ylim=view.field.extent[2:])


def draw_windows(view: Windows, figure: Any, colours: Colours) -> None:
    """A square of church windows; in each the adversarial direction points right and the random one up."""
    axes = figure.subplots()
    columns = math.ceil(math.sqrt(len(view.fields)))
    rows = math.ceil(len(view.fields) / columns)
    half = 0.5 / 1.12  # of a cell; the rest is the lead between the panes
    for i, (each, rim, label) in enumerate(zip(view.fields, view.rims, view.labels.tolist(), strict=True)):
        middle = np.array([i % columns, -(i // columns)], float)
        extent = [at + side for at in middle for side in (-half, half)]
        pane = church_window(each, label, colours)
        axes.imshow(pane, extent=extent, origin="lower", interpolation="nearest", zorder=1)
        shown = middle + rim * half / view.reach
        axes.plot(*shown.T, color=INK, linewidth=0.8, linestyle=(0, (2, 1.2)), zorder=3)
        axes.plot(*middle, marker=".", markersize=2.5, color=INK, zorder=3)
    limits = {"xlim": (-0.56, columns - 0.44), "ylim": (-rows + 0.44, 0.56), "xticks": [], "yticks": []}
    axes.set(**limits, aspect="equal", facecolor="#4a4a4a", ylabel="random direction →")
    axes.set(xlabel=f"adversarial direction → ({view.reach:g} eps each way)")


def draw_ascent(view: Ascent, highest: float, figure: Any, colours: Colours) -> None:
    """Images along the gradient; below the loss (up to ``highest``) and the probability of the right class, there and at random."""
    strip, upper, lower = figure.subplots(3, 1, height_ratios=(1.25, 1, 1))
    _strip(strip, view, colours)
    for axes, curve, top in ((upper, "loss", 0.72), (lower, "confidence", 1)):
        for i, each in enumerate(view.random):
            label = None if i else f"{len(view.random)} random directions"
            axes.plot(each.steps, getattr(each, curve), color=CALM, linewidth=1.2, label=label)
        values = getattr(view.ascent, curve)
        axes.plot(view.ascent.steps, values, color=WRONG, linewidth=2.4, label="along the gradient")
        if view.becomes is not None:
            axes.axvline(view.change, ymax=top, color=INK, linewidth=1, linestyle=_DASHED)
        axes.set(xlim=(0, view.ascent.steps[-1]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    upper.set(ylabel="loss", ylim=(-0.04 * highest, 1.45 * highest))  # room for the legend
    upper.tick_params(labelbottom=False)
    upper.legend(loc="upper left", ncols=2, **_SMALL)
    lower.set(ylim=(-0.04, 1.04), ylabel=f"probability of\n'{colours.name(view.label)}'")
    lower.set(xlabel="length of the step a ∇loss (L2, pixels from 0 to 1)")


def _strip(axes: Any, view: Ascent, colours: Colours) -> None:
    """The images along the gradient, side by side, with what the classifier predicts for each."""
    for i, (image, at, predicted, sure) in enumerate(zip(view.images, view.at, *view.answers, strict=True)):
        axes.imshow(_picture(image), extent=(1.5 * i, 1.5 * i + 1, 0, 1), cmap="gray", vmin=0, vmax=1)
        verdict = f"step {at:.2g}\n'{colours.name(int(predicted))}', {sure:.0%}"
        colour = INK if predicted == view.label else WRONG
        axes.text(1.5 * i + 0.5, -0.06, verdict, ha="center", va="top", fontsize="small", color=colour)
    axes.set(xlim=(-0.25, 1.5 * len(view.images) - 0.25), ylim=(-0.5, 1.02), aspect="equal")
    axes.axis("off")


def legend(figure: Any, colours: Colours) -> None:
    """The classes that are shown, by colour, and what paleness means."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=name) for colour, name in colours.legend]
    handles.append(Patch(facecolor="none", label="(paler: less sure)"))
    look = {"frameon": False, "fontsize": "medium", "handlelength": 1.2, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="center", ncols=_entries(figure.bbox.width / figure.dpi), **look)


def legend_height(colours: Colours, width: float) -> float:
    """Inches that the legend takes in a figure of ``width`` inches; next to nothing without classes."""
    return 0.15 + 0.27 * math.ceil((len(colours.legend) + 1) / _entries(width)) if colours.legend else 0.01


def _entries(width: float) -> int:
    """How many entries of the legend fit side by side into so many inches."""
    return max(1, int(width / 1.5))


def size_text(eps: float) -> str:
    """``8/255`` where it is such a fraction, else the number."""
    of_255 = eps * 255
    return f"{round(of_255)}/255" if abs(of_255 - round(of_255)) < 1e-6 and 0 < of_255 < 255 else f"{eps:g}"


def _paint(axes: Any, field: Field, picture: np.ndarray) -> None:
    """The picture with a line around each class's regions."""
    from scipy.ndimage import gaussian_filter

    axes.imshow(picture, extent=field.extent, origin="lower", interpolation="nearest", aspect="auto", zorder=0)
    # Coarse cells are divided, so that the line follows their edges; fine ones are smoothed by less than a cell, so that
    # it is no staircase.
    times = max(1, _DIVIDED // max(field.predicted.shape))
    predicted = field.predicted.repeat(times, 0).repeat(times, 1)
    left, right, bottom, top = field.extent
    axis = zip((left, bottom), (right, top), predicted.shape[::-1], strict=True)
    across, up = (low + (high - low) * (np.arange(n) + 0.5) / n for low, high, n in axis)
    for label in np.unique(predicted)[1:]:  # a line around all classes but one is a line around each
        inside = gaussian_filter((predicted == label).astype(float), 0.7, mode="nearest")
        if inside.max() > 0.5 > inside.min():
            axes.contour(across, up, inside, levels=[0.5], colors=[INK], linewidths=_LINE, zorder=1)


def _name_regions(axes: Any, field: Field, colours: Colours, avoid: np.ndarray) -> None:
    """Each large region's name where it has most room, away from the places (n, 2) in ``avoid``."""
    from scipy.ndimage import distance_transform_edt, label

    across, up = np.meshgrid(field.across, field.up)
    width = field.across[-1] - field.across[0]
    taken = np.zeros(field.predicted.shape, bool)
    for place in avoid:
        taken |= (np.abs(across - place[0]) < 0.15 * width) & (np.abs(up - place[1]) < 0.11 * width)
    for number in np.unique(field.predicted):
        parts, count = label(field.predicted == number)  # type: ignore[misc]
        sizes = np.bincount(parts.ravel())[1:] if count else []
        for part in np.flatnonzero(np.asarray(sizes) >= _LEAST_LABELLED * field.predicted.size) + 1:
            free = np.pad((parts == part) & ~taken, 1)
            # In columns; a row counts as three, for a name is wide and low.
            room: Any = distance_transform_edt(free, sampling=(3, 1))
            room = room[1:-1, 1:-1]
            row, column = np.unravel_index(room.argmax(), room.shape)
            name = colours.name(int(number))
            if room.max() >= (0.012 * len(name) + 0.01) * field.predicted.shape[1]:
                from matplotlib.patheffects import withStroke

                look = {"ha": "center", "va": "center", "fontsize": "medium", "fontweight": "bold", "color": "white"}
                text = axes.text(field.across[column], field.up[row], name, zorder=7, clip_on=True, **look)
                text.set_path_effects([withStroke(linewidth=2.4, foreground=INK)])


def _thumbnail(axes: Any, image: Tensor, place: np.ndarray, *, at: np.ndarray | None = None) -> None:
    """A framed picture at ``place``, or at ``at`` with a line to ``place``."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    picture = _picture(image)
    shown = OffsetImage(picture, zoom=THUMBNAIL / max(picture.shape[:2]), cmap="gray", interpolation="nearest")
    shown.image.set_clim(0, 1)
    beside: dict[str, Any] = {}
    if at is not None:
        beside = {"xybox": tuple(at), "arrowprops": {"arrowstyle": "-", "color": INK, "linewidth": 1.2}}
    frame = {"edgecolor": INK, "linewidth": 1.4}
    axes.add_artist(AnnotationBbox(shown, tuple(place), pad=0.1, bboxprops=frame, zorder=5, **beside))


def _picture(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W) or (H, W, 3) floats."""
    array = on_white(to_bytes(image[None].float()))[0] / 255
    return array[..., 0] if array.shape[-1] == 1 else array
