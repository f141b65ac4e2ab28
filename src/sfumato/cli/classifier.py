"""``sfumato classifier train`` and ``sfumato classifier evaluate``."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    Interrupted,
    JsonOption,
    SeedOption,
    SizeOption,
    Verb,
    check_folder,
    counting,
    load_images,
    read_size,
    show,
)
from sfumato.cli.train import TrainingDisplay

if TYPE_CHECKING:
    from sfumato.classifiers import Evaluation

MinutesOption = Annotated[
    float | None,
    typer.Option("--minutes", help="Budget in minutes. Default: 3, and at most 60 epochs.", show_default=False),
]
EpochsOption = Annotated[
    float | None, typer.Option("--epochs", help="Budget in passes over the training images.", show_default=False)
]

app = typer.Typer(
    help="Train a classifier of images, or measure any.", add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def root() -> None:
    """Train a classifier of images, or measure any."""


@app.command("train", cls=Verb)
def train(
    data: DataOption,
    out: Annotated[
        str, typer.Option("--out", help="The classifier's folder; if it holds this training already, it goes on.")
    ],
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            help="convnet or resnet. Default: convnet for grey images, resnet for colour.",
            show_default=False,
        ),
    ] = None,
    size: SizeOption = None,
    fit: FitOption = "crop",
    shift: Annotated[
        int | None,
        typer.Option(
            "--shift", help="Move images by up to so many pixels. Default: by their size.", show_default=False
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip",
            help="Mirror half of the images. Default: only for sets known not to mind (cifar10, clothes, fashion-mnist).",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a classifier on labelled images. The same command again goes on where it stopped."""
    pixels = read_size(size)
    check_folder(Path(out), "--out")
    from sfumato.classifiers import read_description, training_steps
    from sfumato.classifiers.training import Budget

    budget = Budget.of(minutes, epochs)  # before the images are decoded: that may take its time
    load_images(data, pixels, fit)  # into the cache, with a bar
    run = training_steps(
        data, out, minutes=minutes, epochs=epochs, network=network, shift=shift, flip=flip, size=pixels, fit=fit, seed=seed,
        device=device,
    )  # fmt: skip
    last = None
    try:
        with closing(run), ClassifierDisplay(f"training {out} for {budget}") as display:  # type: ignore[type-var]
            for last in run:
                display.update(last)  # type: ignore[arg-type]  (it has all that the bar asks for)
    except KeyboardInterrupt:
        raise Interrupted("stopped: the same command goes on from there") from None
    described = read_description(out)
    test, training = described["test"], described["training"]
    follow = f"sfumato classifier evaluate {shlex.quote(out)} --data {shlex.quote(data)}"
    lines = [
        f"trained {out} ({described['network']}): {training['epochs']:.1f} epochs, {training['seconds'] / 60:.1f} minutes",
        f"test accuracy {test['accuracy']:.2%}, 95% interval {test['low']:.2%} to {test['high']:.2%} "
        f"({test['count']:,} images: {test['data']})",
        f"next: {follow}",
    ]
    if last is None:
        lines[0] = f"{out} has had its {budget} already: give a larger budget to train it further"
    result = {"classifier": out, "done_before": last is None, **described, "next": follow}
    show(lines, result, as_json)


@app.command("evaluate", cls=Verb)
def evaluate(
    classifier: Annotated[
        str,
        typer.Argument(
            metavar="CLF",
            help="A trained folder, effnet-lite0, timm:NAME, hf:NAME or py:package.module:factory.",
            show_default=False,
        ),
    ],
    data: DataOption,
    fit: FitOption = "crop",
    size: SizeOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how often a classifier is right on test images, overall and for each class."""
    pixels = read_size(size)
    from sfumato.classifiers import evaluate_classifier, find_classifier

    found = find_classifier(classifier, device)
    images = load_images(data, pixels or found.size, fit, "test")
    with counting("classifying") as progress:
        evaluation = evaluate_classifier(found, images, progress)
    result = {"classifier": classifier, "data": data, **evaluation.to_json()}
    show(_lines(classifier, data, evaluation), result, as_json)


def _lines(classifier: str, data: str, evaluation: Evaluation) -> list[str]:
    test = evaluation.overall
    low, high = test.interval
    width = max(len(name) for name in evaluation.classes)
    return [
        f"{classifier} on {data}: accuracy {test.value:.2%}, 95% interval {low:.2%} to {high:.2%} ({test.count:,} images)",
        *(f"  {name:<{width}}  {each}" for name, each in evaluation.classes.items()),
    ]


class ClassifierDisplay(TrainingDisplay):
    """The bar of ``sfumato train`` with what matters here."""

    def text(self, progress: Any) -> str:
        """``0:34 left, loss 0.231, training accuracy 91.2%, 4,321 images/s, epoch 3.2``."""
        return (
            f"{self.left(progress)} left, loss {progress.loss:.3f}, training accuracy {progress.accuracy:.1%}, "
            f"{progress.images_per_second:,.0f} images/s, epoch {progress.epoch:.1f}"
        )
