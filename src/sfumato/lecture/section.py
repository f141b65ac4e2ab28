"""What a part of the lecture is made of, and what all parts are made from."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from sfumato.engine.log import LOG

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet
    from sfumato.generator import Generator


@dataclass(frozen=True)
class Sizes:
    """How much each part does; the defaults take about a minute of one core on 28x28 pixels.

    Args:
        each: samples of each class.
        prompted: images of each prompt.
        guided: images of each class for each strength of guidance.
        scored, draws: images of each kind whose likelihood is taken, and noise levels for each of them.
        integrated: samples of the plain integral.
        attacked, steps: images to attack, and steps of gradient ascent.
        resolution, copies: points along a side of the boundary picture, and noisy copies that are averaged.
        smoothed: images attacked before and after smoothing.
        certified, samples: images to certify, and noisy copies of each, at most.
        classified: images that the generator classifies.
    """

    each: int = 8
    prompted: int = 4
    guided: int = 8
    scored: int = 64
    draws: int = 16
    integrated: int = 256
    attacked: int = 200
    steps: int = 20
    resolution: int = 37
    copies: int = 8
    smoothed: int = 16
    certified: int = 40
    samples: int = 600
    classified: int = 48


@dataclass(frozen=True)
class Subject:
    """What the lecture is about.

    Args:
        generator, classifier: trained on the same labelled images.
        test: images that neither has seen.
        run, classifier_folder: where they are, for the commands.
        sizes: of all parts.
        verbs: the command line's; a part names no other. Empty: all may be named.
        seed: of everything random.
    """

    generator: Generator
    classifier: Classifier
    test: ImageSet
    run: Path
    classifier_folder: Path
    sizes: Sizes = field(default_factory=Sizes)
    verbs: frozenset[str] = frozenset()
    seed: int = 0

    @property
    def names(self) -> tuple[str, str, str]:
        """Classifier, run and data, as words of a command."""
        return shlex.quote(str(self.classifier_folder)), shlex.quote(str(self.run)), self.test.name

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """Pixels (n, C, H, W) and labels (n,) of ``count`` test images at random, or of all where there are fewer."""
        from sfumato.classifiers import match_labels

        rows = np.random.RandomState(self.seed).permutation(len(self.test))[:count]  # these numbers never change
        return self.test.pixels(rows), match_labels(self.classifier, self.test)[rows]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the training's log that have a loss; none where the log is gone."""
        file = self.run / LOG
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [line for line in lines if line["loss"] is not None]


class Absent(Exception):
    """Why a part is left out: a model or data that is not there. A sentence."""


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Args:
        image: SVG in the colours of the page, or pixels.
        alt: what is to be seen, for those who do not see it.
        caption: below it.
        pixelated: whether its pixels are to be seen as squares.
        wide: whether it has letters in it, so that a narrow screen scrolls it rather than shrink it.
        name: of the file that it is written to as well; "" for none.
    """

    image: Image.Image | Markup
    alt: str
    caption: str = ""
    pixelated: bool = False
    wide: bool = False
    name: str = ""

    @cached_property
    def uri(self) -> str:
        """The address of a PNG that is written out in it; "" for SVG."""
        if isinstance(self.image, Markup):
            return ""
        encoded = io.BytesIO()
        self.image.save(encoded, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        formulas: the lecture's, set in HTML; these and the title come from the ``Part``.
        text: paragraphs.
        pictures: in ``columns`` beside each other.
        table: rows of text, the first of them the head.
        commands: that do it at full size.
        numbers: of this run, ready for JSON; the text quotes them.
        absent: why all but title and formulas are left out; "" where nothing is.
    """

    title: str = ""
    formulas: tuple[Markup, ...] = ()
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    columns: int = 1
    table: tuple[tuple[str, ...], ...] = ()
    commands: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    absent: str = ""


@dataclass(frozen=True)
class Part:
    """A function that makes a section, with what stands above it on the page whatever it finds."""

    title: str
    formulas: tuple[Markup, ...]
    make: Callable[[Subject], Section]

    def __call__(self, subject: Subject) -> Section:
        try:
            return replace(self.make(subject), title=self.title, formulas=self.formulas)
        except Absent as why:
            return Section(self.title, self.formulas, absent=str(why))


def part(title: str, *formulas: Markup) -> Callable[[Callable[[Subject], Section]], Part]:
    """Makes a ``Part`` of a function."""
    return lambda make: Part(title, formulas, make)
