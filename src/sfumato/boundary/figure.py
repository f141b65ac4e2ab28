"""``boundary``: from a classifier and images to one composed figure."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfumato.attacks.norms import check_norm
from sfumato.boundary import draw, panels
from sfumato.boundary.colours import Colours
from sfumato.boundary.panels import FigureContext, Panel
from sfumato.boundary.planes import SECTION_NORMS, Threat
from sfumato.boundary.toys import TOYS
from sfumato.boundary.views import chosen
from sfumato.core.errors import InputError, nearest
from sfumato.core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sfumato.classifiers import Classifier

KINDS = ("all", "toy", "plane", "adversarial", "church", "gradient")
EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}  # the sizes of RobustBench's and AutoAttack's tables for small images
FORMATS = (".png", ".pdf", ".svg")
_SMALL = 64 * 64 * 3  # numbers in an image, up to which the pictures are drawn finely
_FINE, _COARSE = 101, 41  # points along each side of a plane
_WINDOW_FINE, _WINDOW_COARSE = 31, 15
_WINDOWS_FINE, _WINDOWS_COARSE = 25, 9
_WIDTH, _HEIGHT = 5.2, 6.0  # inches: a panel with its title and caption
_FONT = 11.5  # points
_DPI = 160
_PADDING = 0.09  # inches around everything

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Boundaries:
    """Views of decision boundaries, computed: ``panels``, each with title and caption, by row, and the classes' names."""

    rows: list[list[Panel]]
    labels: tuple[str, ...]

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row]

    def figure(self) -> Figure:
        """All panels as one matplotlib Figure."""
        return compose(self.rows, self.labels)

    def save(self, path: str | Path) -> None:
        """Write the figure as .png, .pdf or .svg, whole or not at all.

        Raises:
            InputError: another suffix, or a place that cannot be written to.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            problem = f"cannot write {str(path)!r}: its suffix {path.suffix!r} is none of a figure's"
            raise InputError(f"{problem}; use one of {', '.join(FORMATS)}")
        encoded = io.BytesIO()
        self.figure().savefig(encoded, format=path.suffix.lower()[1:], facecolor="white")
        atomic_write(path, encoded.getvalue())


def boundary(
    classifier: Classifier | None = None,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    other: Classifier | None = None,
    kind: str = "all",
    norm: str = "Linf",
    eps: float | None = None,
    index: Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
    names: tuple[str, str] = ("this", "other"),
    seed: int = 0,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> Boundaries:
    """Decision boundaries, for one figure with a sentence to each panel.

    Args:
        classifier: any; "gradient" needs one that gives gradients, "toy" needs none.
        x: (B, C, H, W) pixels in [0, 1]. Three or more that the classifiers get right, unless ``index`` is given.
        y: (B,) their true labels.
        other: another classifier of the same classes (the same one hardened, say), shown on the same axes.
        kind: "toy": two dimensions, before and after adversarial training; "plane": through three images; "adversarial":
            a computed direction against a random one; "church": that for many images; "gradient": the loss along the
            lecture's step; "all" of them (with another classifier all but the toy).
        norm: Linf, L2 or L1.
        eps: the size of perturbations in that norm; None for 8/255, 0.5 or 12 (for the toy: one that suits it).
        index: numbers of three images, the first for the middle of all views. Default: the surest that falls, and two others.
        ids: (B,) the images' numbers in their data, for ``index`` and the random numbers; default 0 ... B - 1.
        names: of the two classifiers.
        seed: of the random directions and the toy.
        resolution: points along each side of a plane. Default: 101, or 41 for images of more than 64x64 pixels.
        progress: called with (kinds of panels done, kinds in all).

    Returns:
        What ``save`` writes as a figure; its panels' captions say in words what was found.

    Raises:
        InputError: an unknown kind or norm, no classifier or images where they are needed, numbers that are not there.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}: {nearest(kind, KINDS)}")
    check_norm(norm, SECTION_NORMS, "decision boundaries")
    if eps is not None and not 0 < eps < math.inf:
        raise InputError(f"eps is {eps:g}: give a size over 0, in units of pixels from 0 to 1")
    if resolution is not None and resolution < 2:
        raise InputError(f"resolution is {resolution}: give 2 or more points along each side")
    if kind == "toy":
        return Boundaries([[panels.toy_panel(name, norm, eps, seed) for name in TOYS]], ())
    if classifier is None or x is None or y is None:
        raise InputError(f"the kind {kind!r} needs a classifier and labelled images: give them, or use the kind 'toy'")
    both = [classifier] if other is None else [classifier, other]
    threat = Threat(norm, EPS[norm] if eps is None else eps, seed)
    context = _context(both, x, y, threat, index, ids, resolution)
    makers: dict[str, Callable[[], list[Panel]]] = {
        "toy": lambda: [panels.toy_panel(TOYS[0], norm, None, seed)],
        "plane": lambda: panels.plane_panels(context),
        "adversarial": lambda: panels.adversarial_panels(context, borrow=kind == "adversarial" and other is not None),
        "church": lambda: panels.church_panels(context),
        "gradient": lambda: panels.gradient_panels(context),
    }
    kinds = [kind] if kind != "all" else list(makers)[0 if other is None else 1 :]
    made: list[list[Panel]] = []
    for done, each in enumerate(kinds, start=1):
        row = makers[each]()
        if other is not None:
            row = [panels.with_name(panel, names[min(i, 1)]) for i, panel in enumerate(row)]
        made.append(row)
        if progress is not None:
            progress(done, len(kinds))
    if kind != "all":
        rows = made
    elif other is None:
        flat = [row[0] for row in made]
        rows = [flat[:2], flat[2:]]
    else:
        rows = [[row[i] for row in made] for i in range(2)]  # a classifier a row
    return Boundaries(rows, classifier.labels)


def compose(rows: Sequence[Sequence[Panel]], labels: Sequence[str]) -> Figure:
    """The panels as one figure, row by row, with the classes' colours below."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    colours = Colours(labels, [array for row in rows for panel in row for array in panel.shown])
    columns = max(sum(panel.wide for panel in row) for row in rows)
    with matplotlib.rc_context({"font.size": _FONT, "font.family": "sans-serif", "svg.fonttype": "path"}):
        low = draw.legend_height(colours, _WIDTH * columns)
        layout = ConstrainedLayoutEngine(w_pad=_PADDING, h_pad=_PADDING)
        figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * len(rows) + low), dpi=_DPI, layout=layout)
        heights = [*[_HEIGHT] * len(rows), low]
        *bands, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for row, band in zip(rows, bands, strict=True):
            ratios = [panel.wide for panel in row]
            spots = band.subfigures(1, len(row), width_ratios=ratios, squeeze=False)[0]
            for panel, spot in zip(row, spots, strict=True):
                _place(spot, panel, colours, _WIDTH * columns * panel.wide / sum(ratios))
        if colours.legend:
            draw.legend(foot, colours)
    return figure


def _place(spot: Any, panel: Panel, colours: Colours, width: float) -> None:
    """Title above, picture, caption below."""
    characters = int(width * 72 / (0.53 * _FONT)) - 2  # a letter is about half as wide as it is high
    spot.suptitle(panel.title, fontweight="bold", fontsize=_FONT + 2)
    panel.draw(spot, colours)
    spot.supxlabel(textwrap.fill(panel.caption, characters), fontsize=_FONT)


def _context(
    both: list[Classifier],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    index: Sequence[int] | None,
    ids: Sequence[int] | None,
    resolution: int | None,
) -> FigureContext:
    if x.ndim != 4 or not len(x) or y.shape != x.shape[:1]:
        problem = f"images of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)} do not fit"
        raise InputError(f"{problem}: give one label to each of (B, C, H, W)")
    x, y = x.detach().cpu(), y.detach().cpu()
    for classifier in both:
        classifier.predict(x[:1])  # some know how many classes they have only now
        if classifier.labels != both[0].labels:
            raise InputError("the two classifiers do not have the same classes: give two with the same labels")
    if not 0 <= int(y.min()) <= int(y.max()) < both[0].classes:
        problem = f"labels run from {int(y.min())} to {int(y.max())}, the classifier has {both[0].classes} classes"
        raise InputError(f"{problem}: give labels of its own")
    numbers = list(range(len(x)) if ids is None else ids)
    three = chosen(both, x, y, numbers, threat) if index is None else _named(index, numbers)
    fine = x[0].numel() <= _SMALL
    points = resolution or (_FINE if fine else _COARSE)
    window = min(points, _WINDOW_FINE if fine else _WINDOW_COARSE)
    count = _WINDOWS_FINE if fine else _WINDOWS_COARSE
    return FigureContext(both, x, y, numbers, three, threat, points, window, count)


def _named(index: Sequence[int], numbers: Sequence[int]) -> list[int]:
    if len(index) != 3 or len(set(index)) != 3:
        raise InputError(f"index is {' '.join(map(str, index))}: give the numbers of three different images")
    for number in index:
        if number not in numbers:
            there = f"give numbers from {min(numbers)} to {max(numbers)}"
            raise InputError(f"index {number} is not among the images: {there}")
    return [list(numbers).index(number) for number in index]
