"""``sfumato evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    GuidanceOption,
    JsonOption,
    ModelArgument,
    SamplerOption,
    SeedOption,
    StepsOption,
    check_folder,
    counting,
    load_images,
    show,
)
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.data import ImageSet


def evaluate(
    model: ModelArgument,
    data: DataOption,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images to draw and compare.")] = 2000,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            help="Feature spaces, as often as you like: {features}. Default: classifier; without labels effnet-lite0, or image-text where that is not installed.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="CLIP",
            help="Who compares images with captions: a CLIP of transformers, by folder or owner/name. "
            "Default: one trained on the training images.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the report and for samples beside the nearest training images.",
            show_default=False,
        ),
    ] = None,
    fit: FitOption = "crop",
    sampler: SamplerOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a model against images it was not trained on: distances, coverage, labels or captions, memorisation."""
    if output is not None:
        check_folder(output)
    from sfumato import metrics
    from sfumato.core import pictures
    from sfumato.core.files import atomic_write
    from sfumato.recipes import load

    generator = load(model, device)
    test = load_images(data, generator.ladder.size, fit, "test")
    train = load_images(data, generator.ladder.size, fit, "train")
    if test.channels != generator.ladder.channels:
        raise InputError(
            f"{data} has {test.channels} channels, the model {generator.ladder.channels}: give data like the model's"
        )
    how: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance}
    generator.sample(1, **how)  # options that do not fit are refused now, not after minutes
    drawn: list[ImageSet] = []
    with counting("evaluating") as progress:
        result = metrics.evaluate(
            generator, test, train, n=count, features=features or None, judge=judge, seed=seed, progress=progress,
            on_samples=drawn.append, **how,
        )  # fmt: skip
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(output / "evaluation.json", json.dumps(result, indent=2) + "\n")
        pictures.save(metrics.picture(result, drawn[0], train), output / "nearest.png")
    written = ["", f"the samples nearest to training images, beside them: {output / 'nearest.png'}"] if output else []
    show(metrics.lines(result) + written, result, as_json)
