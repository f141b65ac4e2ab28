"""``sfumato classify``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.console import DeviceOption, FitOption, JsonOption, ModelArgument, SeedOption, counting, show
from sfumato.cli.pictures import picture_files, read_picture
from sfumato.cli.score import some_images
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.defences.diffusion_classifier import Decision

SHOWN = 3  # classes named for each image


def classify(
    model: ModelArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGES]...", help="Picture files, or folders of them.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Labelled test images instead: one of {sources}, a folder, an .npz, or hf:owner/name."
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="How many of them, drawn at random.")] = 100,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="A class to choose from, as often as you like; for a model of texts, a prompt. Default: all there are.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", help="Noise levels for each class. Default: 32.", show_default=False)
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Drop no class early: slower, and rarely another answer.")
    ] = False,
    fit: FitOption = "crop",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Let a generator say what images show: the class under which it denoises them best."""
    if bool(images) == bool(data):
        raise InputError("give picture files, or --data with labelled images: one of the two")
    if count < 1:
        raise InputError(f"-n {count} classifies nothing: give 1 or more")
    import torch

    from sfumato.data.fit import check_fit
    from sfumato.defences.diffusion_classifier import ALPHA, DRAWS, classify, diffusion_classifier
    from sfumato.generator import Generator

    check_fit(fit)
    files = picture_files(images or [])
    generator = Generator.from_pretrained(model, device)
    chosen = None if data is None else some_images(generator, data, fit, count, seed)
    names = tuple(label or (chosen.classes if chosen is not None and generator.kinds.tokens else ()))
    classifier = diffusion_classifier(generator, names, draws=DRAWS if draws is None else draws, seed=seed)
    if chosen is not None:
        from sfumato.classifiers import match_labels

        wanted = match_labels(classifier, chosen)  # before the work, which is long
        x = chosen.pixels(slice(0, len(chosen)))
    else:
        wanted = None
        x = torch.stack([read_picture(path, generator.ladder, fit) for path in files])
    began = time.perf_counter()
    with counting("classifying") as progress:
        decision = classify(classifier, x, alpha=0.0 if whole else ALPHA, progress=progress)
    seconds = (time.perf_counter() - began) / len(x)
    passes = float(decision.passes.double().mean())
    result: dict[str, Any] = {
        "model": model, "classes": list(classifier.labels), "passes_an_image": passes, "seconds_an_image": seconds,
    }  # fmt: skip
    if wanted is None:
        result["images"], lines = _each(classifier, decision, [str(path) for path in files])
    else:
        from sfumato.classifiers import Accuracy

        accuracy = Accuracy(int((decision.label == wanted).sum()), len(wanted))
        result |= {"data": data, **accuracy.to_json()}
        lines = [f"{model} on {data}: accuracy {accuracy}"]
    full = len(classifier.labels) * (DRAWS if draws is None else draws)
    lines.append(
        f"{passes:.0f} network evaluations an image (all classes, all draws: {full}), {seconds:.2f} s an image"
    )
    show(lines, result, as_json)


def _each(classifier: Classifier, decision: Decision, paths: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Label and share of each image; classes that were dropped early have no share."""
    found, lines = [], []
    for path, label, shares, passes in zip(paths, decision.label, decision.shares, decision.passes, strict=True):
        order = [int(k) for k in shares.argsort(descending=True)[:SHOWN] if shares[k] >= 0.005]
        named = {classifier.labels[k]: float(shares[k]) for k in order}
        found.append({"image": path, "label": classifier.labels[int(label)], "shares": named, "passes": int(passes)})
        lines.append(f"{path}: " + ", ".join(f"{name} {share:.0%}" for name, share in named.items()))
    return found, lines
