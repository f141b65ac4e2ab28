"""``sfumato score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.console import (
    DataOption,
    DeviceOption,
    FitOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    check_folder,
    counting,
    load_images,
    show,
    waiting,
)
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.data import ImageSet
    from sfumato.generator import Generator
    from sfumato.likelihood import Score

EXTREMES = 8  # images shown of each end
PICTURE, FIGURE, NUMBERS, ARRAYS = "extremes.png", "integration.png", "scores.json", "scores.npz"


def score(
    model: ModelArgument,
    data: DataOption,
    count: Annotated[int, typer.Option("-n", "--count", help="How many test images, drawn at random.")] = 500,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="bound (of the ladder), ode (exact, slow), or integral (plain Monte Carlo, hopeless)."
        ),
    ] = "bound",
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            help="Noise levels an image; of ode, steps; of integral, samples. Default: 32, 40, 1000.",
            show_default=False,
        ),
    ] = None,
    told: Annotated[
        bool, typer.Option("--told", help="Tell the model the label or caption of each image; else nothing.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="SRC", help="Foreign images: how well the score tells them (AUROC)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for numbers and pictures.", show_default=False),
    ] = None,
    fit: FitOption = "crop",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """How likely images are under a model, in bits per dimension: low is likely, high is foreign or busy."""
    if count < 1:
        raise InputError(f"-n {count} scores nothing: give 1 or more")
    if output is not None:
        check_folder(output)
    from sfumato.generator import Generator
    from sfumato.likelihood import METHODS
    from sfumato.likelihood import score as score_images

    METHODS.find(method)
    generator = Generator.from_pretrained(model, device)
    sets = [
        some_images(generator, source, fit, count, seed) for source in ([data] if against is None else [data, against])
    ]
    how: dict[str, Any] = {"method": method, "draws": draws, "seed": seed}
    scores, pixels = [], []
    for images in sets:
        what = _told(images, images is sets[0]) if told else {}
        pixels.append(images.pixels(slice(0, len(images))))
        with counting(f"scoring {images.name}") as progress:
            scores.append(score_images(generator, pixels[-1], progress=progress, **how, **what))
    result = {"model": model, "data": data, "told": told, "seed": seed, **scores[0].to_json()}
    lines = _lines(sets[0], scores[0], told)
    if against is not None:
        result["against"], more = _foreign(against, scores, pixels)
        lines += more
    if output is not None:
        lines += _write(output, generator, scores, pixels, result, method == "integral", seed)
    show(lines, result, as_json)


def some_images(generator: Generator, source: str, fit: str, count: int, seed: int) -> ImageSet:
    """``count`` test images of a source at random, at the model's size; InputError where they cannot be the model's."""
    import numpy as np

    from sfumato.metrics.features import subset

    images = load_images(source, generator.ladder.size, fit, "test")
    if images.channels != generator.ladder.channels:
        raise InputError(
            f"{source} has {images.channels} channels, the model {generator.ladder.channels}: give data like the model's"
        )
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return subset(images, rows)


def _told(images: ImageSet, own: bool) -> dict[str, Any]:
    """The label or caption of each image."""
    if not own:
        raise InputError("--told goes with --data alone: of foreign images (--against) the model knows no labels")
    if images.captions is not None:
        return {"prompt": [texts[0] for texts in images.captions]}
    if images.labels is None:
        raise InputError(f"--told was given, but {images.name} has neither labels nor captions: leave it out")
    return {"label": [images.classes[label] for label in images.labels]}


def _lines(images: ImageSet, score: Score, told: bool) -> list[str]:
    low, high = float(score.bits.min()), float(score.bits.max())
    draws = float(score.error.mean())
    spread = f" (an image's own error {draws:.3f})" if draws == draws else ""
    lines = [
        f"{images.name} {images.split}: {score.mean:.3f} bits/dim, standard error {score.mean_error:.3f}, "
        f"{len(score.bits)} images from {low:.2f} to {high:.2f}{spread}",
        f"method {score.method}, {'told its label or caption' if told else 'told nothing'}, "
        f"{score.evaluations:,.0f} network evaluations an image",
    ]
    if score.parts:
        lines.append("  " + ", ".join(f"{name} {float(part.mean()):.4f}" for name, part in score.parts.items()))
    if score.method == "integral":
        lines.append(
            "by the integral no image is likelier than its noise allows (6.0 bits/dim), nor than its nearest sample"
        )
    return lines


def _foreign(against: str, scores: list[Score], pixels: list[Tensor]) -> tuple[dict[str, Any], list[str]]:
    """How well foreign images are told: by their bits, and by their bits beyond what PNG needs."""
    from sfumato.likelihood import auroc, png_bits

    inside, outside = (score.bits for score in scores)
    plain = auroc(inside, outside)
    corrected = auroc(inside - png_bits(pixels[0]), outside - png_bits(pixels[1]))
    lines = [
        f"{against}: {scores[1].mean:.3f} bits/dim, standard error {scores[1].mean_error:.3f}, {len(outside)} images",
        f"told by their bits: AUROC {plain}",
        f"told by their bits less those of a PNG file: AUROC {corrected}",
    ]
    if plain.high < 0.5:
        lines.append(
            "simple foreign images are likelier than the model's own, as for all such models: go by the second"
        )
    found = {"data": against, **scores[1].to_json(), "bits": plain.to_json(), "bits_less_png": corrected.to_json()}
    return found, lines


def _write(
    folder: Path,
    generator: Generator,
    scores: list[Score],
    pixels: list[Tensor],
    result: dict[str, Any],
    figure: bool,
    seed: int,
) -> list[str]:
    import numpy as np
    import torch

    from sfumato.core import pictures
    from sfumato.core.files import atomic, atomic_write, finite, make_folder
    from sfumato.likelihood import integration_figure

    make_folder(folder)
    order = scores[0].bits.argsort()
    shown = min(EXTREMES, len(order))
    ends = torch.cat([order[:shown], order[-shown:]])
    rows = pictures.named_rows(pictures.grid(pixels[0][ends], columns=shown), ["fewest bits", "most bits"])
    pictures.save(rows, folder / PICTURE)
    arrays = {"bits": scores[0].bits.numpy(), "error": scores[0].error.numpy()}
    arrays |= {f"part: {name}": part.numpy() for name, part in scores[0].parts.items()}
    if len(scores) > 1:
        arrays |= {"against_bits": scores[1].bits.numpy(), "against_error": scores[1].error.numpy()}
    with atomic(folder / ARRAYS) as beside:
        np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]
    lines = ["", f"fewest and most bits: {folder / PICTURE}; of every image: {folder / ARRAYS}"]
    if figure:
        with waiting("drawing the three estimates"):
            picture, result["integration"] = integration_figure(generator, pixels[0], seed=seed)
        pictures.save(picture, folder / FIGURE)
        lines.append(f"the integral beside bound and ODE: {folder / FIGURE}")
    atomic_write(folder / NUMBERS, json.dumps(finite(result), indent=2) + "\n")
    return lines
