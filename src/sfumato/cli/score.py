"""``sfumato score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import options
from sfumato.cli.console import counting, show, waiting
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.data import ImageSet
    from sfumato.likelihood import Score

EXTREMES = 8  # images shown of each end
PICTURE, FIGURE, NUMBERS, ARRAYS = "extremes.png", "integration.png", "scores.json", "scores.npz"


def score(
    model: options.ModelArgument,
    data: options.DataOption,
    count: options.CountOption = 500,
    method: str = "bound",
    draws: int | None = None,
    conditional: bool = False,
    against: str | None = None,
    out: options.SomeOutFolder = None,
    fit: options.FitOption = "crop",
    *,
    common: options.Common,
) -> None:
    """Likelihood of images under a diffusion model, in bits per dimension, and out-of-distribution detection by it.

    Args:
        count: Number of test images, drawn at random.
        method: Likelihood estimate: bound (the variational bound of the ladder), ode (probability flow, exact, slow),
            or integral (plain Monte Carlo, hopeless).
        draws: Noise levels an image; of ode, steps; of integral, samples. Default: 32, 40, 1000.
        conditional: Conditional likelihood: given the label or caption of each image.
        against: SRC: Out-of-distribution images: how well the score detects them (AUROC). Default: none.
    """
    options.check_count(count)
    options.check_folder(out)
    from sfumato.core.files import make_folder
    from sfumato.core.pictures import save
    from sfumato.generator import Generator
    from sfumato.likelihood import METHODS, integration_figure
    from sfumato.likelihood import score as score_images

    METHODS.find(method)
    generator = Generator.from_pretrained(model, common.device)
    sources = [data] if against is None else [data, against]
    sets = [options.load_random(generator.ladder, source, fit, count, common.seed) for source in sources]
    how: dict[str, Any] = {"method": method, "draws": draws, "seed": common.seed}
    scores, pixels = [], []
    for images in sets:
        given = _conditions(images, images is sets[0]) if conditional else {}
        pixels.append(images.pixels(slice(0, len(images))))
        with counting(f"scoring {images.name}") as progress:
            scores.append(score_images(generator, pixels[-1], progress=progress, **how, **given))
    result = {"model": model, "data": data, "conditional": conditional, "seed": common.seed, **scores[0].to_json()}
    lines = _lines(sets[0], scores[0], conditional)
    if against is not None:
        result["against"], more = _detection(against, scores, pixels)
        lines += more
    if out is not None:
        if method == "integral":
            with waiting("drawing the three estimates"):
                figure, result["integration"] = integration_figure(generator, pixels[0], seed=common.seed)
            make_folder(out)
            save(figure, out / FIGURE)
        lines += _write(out, scores, pixels[0], result)
    show(lines, result, common.json)


def _conditions(images: ImageSet, own: bool) -> dict[str, Any]:
    """The label or caption of each image."""
    if not own:
        raise InputError("--conditional goes with --data alone: images of --against have no labels of the model's")
    if images.captions is not None:
        return {"prompt": [texts[0] for texts in images.captions]}
    if images.labels is None:
        raise InputError(f"--conditional was given, but {images.name} has neither labels nor captions: leave it out")
    return {"label": [images.classes[label] for label in images.labels]}


def _lines(images: ImageSet, score: Score, conditional: bool) -> list[str]:
    low, high = float(score.bits.min()), float(score.bits.max())
    draws = float(score.error.mean())
    spread = f" (an image's own error {draws:.3f})" if draws == draws else ""
    lines = [
        f"{images.name} {images.split}: {score.mean:.3f} bits/dim, standard error {score.mean_error:.3f}, "
        f"{len(score.bits)} images from {low:.2f} to {high:.2f}{spread}",
        f"method {score.method}, {'given the label or caption' if conditional else 'unconditional'}, "
        f"{score.evaluations:,.0f} network evaluations an image",
    ]
    if score.parts:
        lines.append("  " + ", ".join(f"{name} {float(part.mean()):.4f}" for name, part in score.parts.items()))
    if score.method == "integral":
        lines.append(
            "by the integral no image is likelier than its noise allows (6.0 bits/dim), nor than its nearest sample"
        )
    return lines


def _detection(against: str, scores: list[Score], pixels: list[Tensor]) -> tuple[dict[str, Any], list[str]]:
    """Out-of-distribution detection: by the bits, and by the bits beyond what PNG needs."""
    from sfumato.likelihood import auroc, png_bits

    inside, outside = (score.bits for score in scores)
    plain = auroc(inside, outside)
    corrected = auroc(inside - png_bits(pixels[0]), outside - png_bits(pixels[1]))
    lines = [
        f"{against}: {scores[1].mean:.3f} bits/dim, standard error {scores[1].mean_error:.3f}, {len(outside)} images",
        f"detected by their bits: AUROC {plain}",
        f"detected by their bits less those of a PNG file: AUROC {corrected}",
    ]
    if plain.high < 0.5:
        lines.append(
            "simple out-of-distribution images are likelier than the model's own, as for all such models: go by the second"
        )
    found = {"data": against, **scores[1].to_json(), "bits": plain.to_json(), "bits_less_png": corrected.to_json()}
    return found, lines


def _write(folder: Path, scores: list[Score], pixels: Tensor, result: dict[str, Any]) -> list[str]:
    """The numbers of all images, and a picture of those with the fewest and the most bits."""
    import numpy as np
    import torch

    from sfumato.core import pictures
    from sfumato.core.files import atomic, atomic_write, finite, make_folder

    make_folder(folder)
    order = scores[0].bits.argsort()
    shown = min(EXTREMES, len(order))
    ends = torch.cat([order[:shown], order[-shown:]])
    rows = pictures.named_rows(pictures.grid(pixels[ends], columns=shown), ["fewest bits", "most bits"])
    pictures.save(rows, folder / PICTURE)
    arrays = {"bits": scores[0].bits.numpy(), "error": scores[0].error.numpy()}
    arrays |= {f"part: {name}": part.numpy() for name, part in scores[0].parts.items()}
    if len(scores) > 1:
        arrays |= {"against_bits": scores[1].bits.numpy(), "against_error": scores[1].error.numpy()}
    with atomic(folder / ARRAYS) as beside:
        np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / NUMBERS, json.dumps(finite(result), indent=2) + "\n")
    lines = ["", f"fewest and most bits: {folder / PICTURE}; of every image: {folder / ARRAYS}"]
    return [*lines, f"the integral beside bound and ODE: {folder / FIGURE}"] if "integration" in result else lines
