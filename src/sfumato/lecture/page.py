"""The parts in the lecture's order, and the page that their sections become: one HTML file with everything it shows inside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sfumato.core import pictures
from sfumato.core.files import atomic_write, make_folder
from sfumato.core.version import __version__
from sfumato.lecture import density, generation, robustness
from sfumato.lecture.section import Section, Subject

PAGE = "lecture.html"
PARTS = (
    generation.down_and_up,
    generation.text_to_image,
    generation.conditioning,
    density.likelihood,
    robustness.attack,
    robustness.boundaries,
    robustness.certificate,
    density.generator_as_classifier,
)


def what_next(subject: Subject) -> Section:
    """Commands for one's own images."""
    folder, run, name = subject.names
    commands = (
        "sfumato train --data photos --out runs/photos --minutes 60  # your own images, in a folder for each class, or captioned",
        "sfumato classifier train --data photos --out classifiers/photos  # a classifier of the same images",
        f"sfumato evaluate {run} --data {name}  # sample quality: Fréchet distances, nearest training images",
        f"sfumato harden {folder} --data {name} --method trades --norm Linf --eps 8/255 --out hardened  # adversarial training",
        "sfumato --help  # all commands",
    )
    text = "The models on this page were trained for minutes; an hour makes most of it much better:"
    known = tuple(c for c in commands if not subject.verbs or c.split()[1] in subject.verbs | {"--help"})
    return Section(title="What to do next", text=(text,), commands=known)


def page(subject: Subject, sections: Sequence[Section], seconds: float) -> str:
    """The HTML.

    Args:
        subject: what the sections are about.
        sections: in their order.
        seconds: that everything took.
    """
    import torch
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("sfumato.lecture") / "templates" / "lecture.html").read_text("utf-8"))
    return template.render(
        sections=[*sections, what_next(subject)],
        data=subject.test.name,
        classes=subject.generator.classes,
        images=len(subject.test),
        seconds=seconds,
        device=str(subject.generator.device),
        seed=subject.seed,
        versions=f"sfumato {__version__}, torch {torch.__version__}",
        written=time.strftime("%Y-%m-%d %H:%M"),
    )


def write(subject: Subject, sections: Sequence[Section], folder: str | Path, seconds: float) -> dict[str, Path]:
    """Write the page, and the pictures that have a name, each whole or not at all; where each is, by name.

    Raises:
        InputError: a folder that cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    written: dict[str, Path] = {}
    for picture in (picture for section in sections for picture in section.pictures if picture.name):
        assert not isinstance(picture.image, str), "SVG is for the page alone"
        written[picture.name] = folder / f"{picture.name}.png"
        pictures.save(picture.image, written[picture.name])
    written["page"] = folder / PAGE
    content = page(subject, sections, seconds)
    atomic_write(written["page"], content.encode("utf-8", "replace"))  # names may hold half characters
    return written


def summary(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Title and numbers of each part, or why it was left out, ready for JSON."""
    return [{"title": s.title, **({"absent": s.absent} if s.absent else s.numbers)} for s in sections]
