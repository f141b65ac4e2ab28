"""``sfumato demo``: from nothing to the whole lecture on one page, in a few minutes."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.console import resumable, say, show, waiting
from sfumato.cli.options import DeviceOption, JsonOption, check_folder
from sfumato.cli.training import clock, follow_training

if TYPE_CHECKING:
    from sfumato.lecture import Section, Subject

DATA = "clothes"  # it comes with the package, so the page is the same everywhere
CLASSIFIER_SHARE = 1 / 6  # training time of the classifier, as a share of the minutes; in addition to them


Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the models, the page and the pictures.")]
Minutes = Annotated[
    float, typer.Option("--minutes", help="Training time of the diffusion model; the rest takes about as long again.")
]


def demo(
    context: typer.Context,
    out: Out = Path("demo"),
    minutes: Minutes = 2.0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a small diffusion model and a classifier on images of clothes, and show every part of the lecture on one HTML page."""
    check_folder(out)
    began = time.perf_counter()
    root = context.find_root()
    verbs = frozenset(root.command.list_commands(root))  # type: ignore[attr-defined]
    with resumable():
        subject = _train(out, minutes, device, verbs)
        sections = _sections(subject)
    from sfumato import lecture

    seconds = time.perf_counter() - began
    written = lecture.write(subject, sections, out, seconds)
    classes, run = subject.generator.classes, subject.run
    lines = [
        f"page:    {written['page']}  (the lecture formula by formula: open it in a browser)",
        f"samples: {written['samples']}  (a row for each of {', '.join(classes)})",
        f"film:    {written['film']}  (the reverse process from noise to an image, and the forward process back)",
        f"models:  {run}, {subject.classifier_folder}",
        f"next: sfumato sample {shlex.quote(str(run))} --label {shlex.quote(classes[-2])} -n 64 -o more.png",
    ]
    result = {
        **{name: str(path) for name, path in written.items()},
        "model": str(run),
        "classifier": str(subject.classifier_folder),
        "data": subject.test.name,
        "seconds": round(seconds),
        "sections": lecture.summary(sections),
    }
    show(lines, result, as_json)


def _train(out: Path, minutes: float, device: str, verbs: frozenset[str]) -> Subject:
    """Both models, trained or resumed."""
    from sfumato import classifiers, data, lecture
    from sfumato.generator import Generator
    from sfumato.training import TrainingRequest, training_steps

    images, test = data.load(DATA), data.load(DATA, split="test")
    run, folder = out / images.name, out / f"{images.name}-classifier"
    steps = training_steps(TrainingRequest(images, run, minutes=minutes, device=device))
    follow_training(steps, f"training on {images.name} for {minutes:g} minutes")
    short = minutes * CLASSIFIER_SHARE
    request = classifiers.ClassifierRequest(data=images, out=folder, minutes=short, device=device, test=test)
    follow_training(classifiers.classifier_steps(request), f"training a classifier for {clock(60 * short)} minutes")
    generator, classifier = Generator.from_pretrained(run, device), classifiers.load_classifier(folder, device)
    return lecture.Subject(generator, classifier, test, run, folder, sizes=lecture.Sizes(), verbs=verbs)


def _sections(subject: Subject) -> list[Section]:
    """All parts of the page, each announced with the time so far."""
    from sfumato.lecture import PARTS

    began, sections = time.perf_counter(), []
    for number, part in enumerate(PARTS, start=1):
        say(f"part {number} of {len(PARTS)}, {part.title} ({clock(time.perf_counter() - began)} so far)")
        with waiting(part.title):
            sections.append(part(subject))
        if sections[-1].absent:
            say(sections[-1].absent)
    return sections
