"""``sfumato evaluate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sfumato.cli import options
from sfumato.cli.console import counting, show

if TYPE_CHECKING:
    from sfumato.data import ImageSet


def evaluate(
    model: options.ModelArgument,
    data: options.DataOption,
    count: options.CountOption = 2000,
    features: list[str] | None = None,
    judge: str | None = None,
    out: options.SomeOutFolder = None,
    fit: options.FitOption = "crop",
    *,
    stepping: options.Stepping,
    common: options.Common,
) -> None:
    """Evaluate a diffusion model: Frechet and kernel distances, precision, recall, coverage, labels or captions, memorisation.

    Args:
        count: Number of samples to draw and compare.
        features: Feature space of the distances, can be repeated: {features}. Default: classifier; without labels
            effnet-lite0, or image-text where that is not installed.
        judge: CLIP: CLIP of transformers (folder or owner/name) that compares images with captions. Default: one
            trained on the training images.
    """
    options.check_folder(out)
    from sfumato import metrics
    from sfumato.core import pictures
    from sfumato.core.files import atomic_write
    from sfumato.recipes import load

    generator = load(model, common.device)
    test, train = (options.load_images_of(generator.ladder, data, fit, split) for split in ("test", "train"))
    how = stepping.of()
    generator.sample(1, **how)  # options that do not fit are refused now, not after minutes
    drawn: list[ImageSet] = []
    with counting("evaluating") as progress:
        how |= {"n": count, "features": features or None, "judge": judge, "seed": common.seed}
        result = metrics.evaluate(generator, test, train, progress=progress, on_samples=drawn.append, **how)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "evaluation.json", json.dumps(result, indent=2) + "\n")
        pictures.save(metrics.picture(result, drawn[0], train), out / "nearest.png")
    written = ["", f"the samples nearest to training images, beside them: {out / 'nearest.png'}"] if out else []
    show(metrics.lines(result) + written, result, common.json)
