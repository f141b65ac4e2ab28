"""``sfumato boundary``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.attack import read_eps
from sfumato.cli.console import (
    DeviceOption,
    FitOption,
    JsonOption,
    SeedOption,
    SizeOption,
    check_output,
    counting,
    load_images,
    read_size,
    show,
)
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet

SUFFIXES = (".png", ".pdf", ".svg")
CANDIDATES = 96  # images, spread over all, among which the views find theirs


def boundary(
    classifier: Annotated[
        str | None,
        typer.Argument(
            metavar="CLF",
            help="A trained folder, effnet-lite0, timm:NAME, hf:NAME or py:package.module:factory. Not for --kind toy.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="One of {sources}; or a folder (with a sub-folder a class), an .npz file, or hf:owner/name.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The figure: .png, .pdf or .svg.")] = Path(
        "boundary.png"
    ),
    other: Annotated[
        str | None,
        typer.Option(
            "--other", metavar="CLF", help="A second classifier on the same axes: hardened, say.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="all, toy, plane (three images), adversarial, church or gradient.")
    ] = "all",
    norm: Annotated[str, typer.Option("--norm", help="Linf, L2 or L1.")] = "Linf",
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            help="Size of the perturbation, of pixels in [0, 1]. Default: 8/255; L2 0.5, L1 12.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            "--index",
            metavar="I J K",
            help="Test images by number; the first is in the middle. Default: one that falls, and others.",
            show_default=False,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", help="Points along each side. Default: 101; large images 41.", show_default=False),
    ] = None,
    fit: FitOption = "crop",
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw a classifier's decision boundaries: through images, and along adversarial and random noise."""
    check_output(output, SUFFIXES)
    radius = None if eps is None else read_eps(eps)
    pixels = read_size(size)
    if kind != "toy" and (classifier is None or data is None):
        absent = "CLF" if classifier is None else "--data"
        raise InputError(f"{absent} is missing: give a classifier and --data, or --kind toy, which needs neither")
    from sfumato import boundary as boundaries

    how: dict[str, Any] = {"kind": kind, "norm": norm, "eps": radius, "seed": seed, "resolution": resolution}
    with counting("drawing") as progress:
        if kind == "toy" or classifier is None or data is None:
            views = boundaries.boundary(**how)
        else:
            found, second, images = _loaded(classifier, other, data, pixels, fit, device)
            x, y, ids = _chosen(found, images, index)
            views = boundaries.boundary(
                found, x, y, other=second, index=index, ids=ids, names=(_name(classifier), _name(other or "")),
                progress=progress, **how,
            )  # fmt: skip
    views.save(output)
    result = {"output": str(output), "classifier": classifier, "data": data, "other": other, **how}
    result["eps"] = radius if radius is not None else None if kind == "toy" else boundaries.EPS[norm]
    result["panels"] = [{"title": panel.title, "caption": panel.caption} for panel in views.panels]
    lines = [f"{panel['title']}: {panel['caption']}".replace("\n", ": ") for panel in result["panels"]]
    show([*lines, f"figure: {output}"], result, as_json)


def _loaded(
    classifier: str, other: str | None, data: str, size: int | tuple[int, int] | None, fit: str, device: str
) -> tuple[Classifier, Classifier | None, ImageSet]:
    from sfumato.classifiers import find_classifier

    found = find_classifier(classifier, device)
    second = None if other is None else find_classifier(other, device)
    return found, second, load_images(data, size or found.size, fit, "test")


def _chosen(classifier: Classifier, images: ImageSet, index: tuple[int, int, int] | None) -> Any:
    """Images spread over all (folders list one class after the other) and those asked for: pixels, labels, numbers."""
    from sfumato.classifiers import match_labels

    spread = {round(i * (len(images) - 1) / max(CANDIDATES - 1, 1)) for i in range(CANDIDATES)}
    for number in index or ():
        if not 0 <= number < len(images):
            raise InputError(
                f"--index {number}: there are {len(images):,} test images: give numbers from 0 to {len(images) - 1}"
            )
    ids = sorted(spread | set(index or ()))
    return images.pixels(ids), match_labels(classifier, images)[ids], ids


def _name(classifier: str) -> str:
    """What it is called in the figure: the last part of a path."""
    return classifier if ":" in classifier else Path(classifier).name or classifier
