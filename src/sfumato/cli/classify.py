"""``sfumato classify``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import counting, show
from sfumato.cli.options import argument
from sfumato.cli.pictures import picture_files, read_picture
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.defences.diffusion_classifier import Decision

SHOWN = 3  # classes named for each image


def classify(
    model: options.ModelArgument,
    paths: Annotated[list[Path] | None, argument("IMAGES", "Image files to classify, or folders of them.")] = None,
    data: options.SomeDataOption = None,
    count: options.CountOption = 100,
    label: list[str] | None = None,
    draws: int | None = None,
    no_early_stop: bool = False,
    fit: options.FitOption = "crop",
    *,
    common: options.Common,
) -> None:
    """Diffusion classifier: the class under which the diffusion model denoises an image best.

    Args:
        count: With --data: number of test images, drawn at random.
        label: Class to choose from, can be repeated; for a text model a prompt. Default: all classes.
        draws: Monte Carlo draws (noise levels) for each class. Default: 32.
        no_early_stop: Evaluate all draws of all classes: slower, and rarely another answer.
    """
    if bool(paths) == bool(data):
        raise InputError("give image files, or --data with labelled images: one of the two")
    options.check_count(count)
    import torch

    from sfumato.data.fit import check_fit
    from sfumato.defences.diffusion_classifier import ALPHA, DRAWS, classify, diffusion_classifier
    from sfumato.generator import Generator

    check_fit(fit)
    files = picture_files(paths or [])
    generator = Generator.from_pretrained(model, common.device)
    chosen = None if data is None else options.load_random(generator.ladder, data, fit, count, common.seed)
    names = tuple(label or (chosen.classes if chosen is not None and generator.kinds.tokens else ()))
    draws = DRAWS if draws is None else draws
    classifier = diffusion_classifier(generator, names, draws=draws, seed=common.seed)
    if chosen is not None:
        from sfumato.classifiers import match_labels

        wanted = match_labels(classifier, chosen)  # before the work, which is long
        x = chosen.pixels(slice(0, len(chosen)))
    else:
        wanted = None
        x = torch.stack([read_picture(path, generator.ladder, fit) for path in files])
    began = time.perf_counter()
    with counting("classifying") as progress:
        decision = classify(classifier, x, alpha=0.0 if no_early_stop else ALPHA, progress=progress)
    seconds = (time.perf_counter() - began) / len(x)
    passes = float(decision.passes.double().mean())
    result: dict[str, Any] = {"model": model, "classes": list(classifier.labels)}
    result |= {"passes_an_image": passes, "seconds_an_image": seconds}
    if wanted is None:
        result["images"], lines = _each(classifier, decision, [str(path) for path in files])
    else:
        from sfumato.classifiers import Accuracy

        accuracy = Accuracy(int((decision.label == wanted).sum()), len(wanted))
        result |= {"data": data, **accuracy.to_json()}
        lines = [f"{model} on {data}: accuracy {accuracy}"]
    full = len(classifier.labels) * draws
    lines.append(
        f"{passes:.0f} network evaluations an image (all classes, all draws: {full}), {seconds:.2f} s an image"
    )
    show(lines, result, common.json)


def _each(classifier: Classifier, decision: Decision, paths: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Label and share of each image; classes that were dropped early have no share."""
    found, lines = [], []
    for path, label, shares, passes in zip(paths, decision.label, decision.shares, decision.passes, strict=True):
        order = [int(k) for k in shares.argsort(descending=True)[:SHOWN] if shares[k] >= 0.005]
        named = {classifier.labels[k]: float(shares[k]) for k in order}
        found.append({"image": path, "label": classifier.labels[int(label)], "shares": named, "passes": int(passes)})
        lines.append(f"{path}: " + ", ".join(f"{name} {share:.0%}" for name, share in named.items()))
    return found, lines
