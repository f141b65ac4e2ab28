"""``sfumato boundary``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sfumato.cli import options
from sfumato.cli.console import counting, show
from sfumato.cli.options import option
from sfumato.core.errors import InputError

if TYPE_CHECKING:
    from sfumato.classifiers import Classifier
    from sfumato.data import ImageSet

SUFFIXES = (".png", ".pdf", ".svg")
CANDIDATES = 96  # images, spread over all, among which the views find theirs


def boundary(
    classifier: options.SomeClassifierArgument = None,
    data: options.SomeDataOption = None,
    out: Annotated[Path, option("-o", "--out")] = Path("boundary.png"),
    other: str | None = None,
    kind: str = "all",
    norm: str = "Linf",
    eps: str | None = None,
    index: tuple[int, int, int] | None = None,
    resolution: int | None = None,
    *,
    fitting: options.Fitting,
    common: options.Common,
) -> None:
    """Draw a classifier's decision boundary: along adversarial, random and gradient directions, and between images.

    Args:
        out: FILE: Output figure: .png, .pdf or .svg.
        other: CLF: Second classifier on the same axes: hardened, say. Default: none.
        kind: Cut through input space: plane (of three images), adversarial (and random direction), church
            (adversarial and orthogonal), gradient, all; or toy, which needs no CLF.
        norm: Norm of the perturbation: Linf, L2 or L1.
        eps: Perturbation size (epsilon), of pixels in [0, 1]. Default: 8/255; L2 0.5, L1 12.
        index: I J K: Test images by number; the first is in the middle. Default: one that is fooled, and others.
        resolution: Grid points along each side. Default: 101; large images 41.
    """
    options.check_file(out, SUFFIXES)
    radius = None if eps is None else options.read_eps(eps)
    pixels = fitting.pixels
    if kind != "toy" and (classifier is None or data is None):
        absent = "CLF" if classifier is None else "--data"
        raise InputError(f"{absent} is missing: give a classifier and --data, or --kind toy, which needs neither")
    from sfumato import boundary as boundaries

    how: dict[str, Any] = {"kind": kind, "norm": norm, "eps": radius, "seed": common.seed, "resolution": resolution}
    with counting("drawing") as progress:
        if kind == "toy" or classifier is None or data is None:
            views = boundaries.boundary(**how)
        else:
            found, second, images = _loaded(classifier, other, data, pixels, fitting.fit, common.device)
            x, y, ids = _chosen(found, images, index)
            names = options.name_of(classifier), options.name_of(other or "")
            which: dict[str, Any] = {"other": second, "index": index, "ids": ids, "names": names}
            views = boundaries.boundary(found, x, y, **which, progress=progress, **how)
    views.save(out)
    result = {"out": str(out), "classifier": classifier, "data": data, "other": other, **how}
    result["eps"] = radius if radius is not None else None if kind == "toy" else boundaries.EPS[norm]
    result["panels"] = [{"title": panel.title, "caption": panel.caption} for panel in views.panels]
    lines = [f"{panel['title']}: {panel['caption']}".replace("\n", ": ") for panel in result["panels"]]
    show([*lines, f"figure: {out}"], result, common.json)


def _loaded(
    classifier: str, other: str | None, data: str, size: int | tuple[int, int] | None, fit: str, device: str
) -> tuple[Classifier, Classifier | None, ImageSet]:
    from sfumato.classifiers import find_classifier

    found = find_classifier(classifier, device)
    second = None if other is None else find_classifier(other, device)
    return found, second, options.load_images(data, size or found.size, fit, "test")


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
