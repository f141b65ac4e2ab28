"""``sfumato classifier train`` and ``sfumato classifier evaluate``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli import options
from sfumato.cli.console import counting, show
from sfumato.cli.options import option
from sfumato.cli.training import follow_training

if TYPE_CHECKING:
    from sfumato.classifiers import Evaluation

MinutesOption = Annotated[
    float | None, option("--minutes", help="Training budget in minutes. Default: 3, and at most 60 epochs.")
]
EpochsOption = Annotated[
    float | None, option("--epochs", help="Training budget in passes over the training images. Default: --minutes.")
]

app = typer.Typer(
    help="Train an image classifier, or measure any.", add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def root() -> None:
    """Train an image classifier, or measure any."""


def train(
    data: options.DataOption,
    out: options.RunFolder,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    network: str | None = None,
    *,
    fitting: options.Fitting,
    shift: int | None = None,
    flip: Annotated[bool | None, option("--flip/--no-flip")] = None,
    common: options.Common,
) -> None:
    """Train a classifier on labelled images. Re-run the command to resume.

    Args:
        network: Architecture: convnet or resnet. Default: convnet for grey images, resnet for colour.
        shift: Augmentation: random shifts up to so many pixels. Default: by the size.
        flip: Augmentation: random mirroring. Default: for cifar10, clothes and fashion-mnist only.
    """
    pixels, fit, seed, device = fitting.pixels, fitting.fit, common.seed, common.device
    options.check_folder(out)
    from sfumato.classifiers import ClassifierRequest, classifier_steps, read_description

    how: dict[str, Any] = {"size": pixels, "fit": fit, "shift": shift, "flip": flip}
    how |= {"minutes": minutes, "epochs": epochs, "network": network, "seed": seed, "device": device}
    request = ClassifierRequest(data=data, out=out, **how)
    budget = request.budget  # before the images are decoded: that may take its time
    options.load_images(data, pixels, fit)  # into the cache, with a bar
    last = follow_training(classifier_steps(request), f"training {out} for {budget}")
    described = read_description(out)
    test, training = described["test"], described["training"]
    follow = f"sfumato classifier evaluate {shlex.quote(str(out))} --data {shlex.quote(data)}"
    lines = [
        f"trained {out} ({described['network']}): {training['epochs']:.1f} epochs, {training['seconds'] / 60:.1f} minutes",
        f"test accuracy {test['accuracy']:.2%}, 95% interval {test['low']:.2%} to {test['high']:.2%} "
        f"({test['count']:,} images: {test['data']})",
        f"next: {follow}",
    ]
    if last is None:
        lines[0] = f"{out} has had its {budget} already: give a larger budget to train it further"
    result = {"classifier": str(out), "done_before": last is None, **described, "next": follow}
    show(lines, result, common.json)


def evaluate(
    classifier: options.ClassifierArgument,
    data: options.DataOption,
    *,
    fitting: options.Fitting,
    device: options.DeviceOption = "auto",
    json: options.JsonOption = False,
) -> None:
    """Test accuracy of a classifier, overall and for each class."""
    from sfumato.classifiers import evaluate_classifier, find_classifier

    found = find_classifier(classifier, device)
    images = options.load_images(data, fitting.pixels or found.size, fitting.fit, "test")
    with counting("classifying") as progress:
        evaluation = evaluate_classifier(found, images, progress)
    result = {"classifier": classifier, "data": data, **evaluation.to_json()}
    show(_lines(classifier, data, evaluation), result, json)


def _lines(classifier: str, data: str, evaluation: Evaluation) -> list[str]:
    test = evaluation.overall
    low, high = test.interval
    width = max(len(name) for name in evaluation.classes)
    return [
        f"{classifier} on {data}: accuracy {test.value:.2%}, 95% interval {low:.2%} to {high:.2%} ({test.count:,} images)",
        *(f"  {name:<{width}}  {each}" for name, each in evaluation.classes.items()),
    ]


options.register(app, "train", train)
options.register(app, "evaluate", evaluate)
