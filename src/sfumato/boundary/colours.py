"""Classes as colours that colour-blind people can tell apart, confidence as saturation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.boundary.fields import Field

# Okabe & Ito 2008, yellow darkened and three of Paul Tol's added, ordered so that neighbours differ in hue and lightness.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#332288", "#b8a800", "#882255", "#777777")
TOY_COLOURS = ("#2f6db3", "#d9822b")
OTHERS = "#777777"
PALEST = 0.22  # how much colour is left where the classifier is as unsure as can be
WRONG = "#c1121f"
INK = "#222222"
CALM = "#8a8a8a"


class Colours:
    """One colour a class, the same in all panels of a figure.

    With at most as many classes as colours each class has its own; else those that cover most of the pictures do, and
    all others share a grey.

    Args:
        labels: the classes' names.
        shown: every array of class numbers that the figure will show.
        colours: "#rrggbb", in the order in which they are given away.
    """

    def __init__(self, labels: Sequence[str], shown: Sequence[np.ndarray], colours: Sequence[str] = COLOURS) -> None:
        counts = np.zeros(len(labels), np.int64)
        for array in shown:
            # Each panel counts as much, whatever its resolution.
            counts += (1_000_000 * np.bincount(array.ravel(), minlength=len(labels)) / max(array.size, 1)).astype(
                np.int64
            )
        self.labels = tuple(labels)
        self.present = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
        order = range(len(labels)) if len(labels) <= len(colours) else self.present[: len(colours) - 1]
        self._colours = {int(c): colours[i] for i, c in enumerate(order)}
        self.table = np.array([_rgb(self.of(c)) for c in range(len(labels))])  # (K, 3)

    def of(self, label: int) -> str:
        """The colour of a class, "#rrggbb"."""
        return self._colours.get(label, OTHERS)

    def name(self, label: int) -> str:
        """A class's name, shortened."""
        return shortened(self.labels[label])

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(colour, name) of the classes that are shown, in their order; the grey ones together."""
        known = sorted(c for c in self.present if c in self._colours)
        rest = [("other classes", OTHERS)] if len(known) < len(self.present) else []
        return [(self.of(c), self.name(c)) for c in known] + [(colour, name) for name, colour in rest]


def blend(field: Field, colours: Colours, most: float = 1.0) -> np.ndarray:
    """A picture (m, n, 3) in [0, 1]: the class's colour, paler where the classifier is less sure, ``most`` at its surest."""
    least = 1 / max(len(colours.labels), 2)
    strength = most * (PALEST + (1 - PALEST) * np.clip((field.confidence - least) / (1 - least), 0, 1))
    return 1 - strength[..., None] * (1 - colours.table[field.predicted])


def church_window(field: Field, label: int, colours: Colours) -> np.ndarray:
    """A picture (m, n, 3) in [0, 1]: white where the class is ``label``, else the class's full colour."""
    return np.where((field.predicted == label)[..., None], 1.0, colours.table[field.predicted])


def shortened(name: str, most: int = 16) -> str:
    """One line of at most ``most`` characters, which matplotlib shows as they are (a $ begins a formula there)."""
    name = " ".join(name.split())
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]
