"""``sfumato vary``."""

from __future__ import annotations

from typing import Annotated, Any

from sfumato.cli.console import counting, show
from sfumato.cli.options import Common, Conditions, Guided, ModelArgument, OutImages, argument, option
from sfumato.cli.request import MOST_COLUMNS, Sampled, check_images, images, request
from sfumato.core.errors import InputError


def vary(
    model: ModelArgument,
    paths: Annotated[list[str], argument("IMAGE", "Image to vary, or two to interpolate between.")],
    out: OutImages = "varied.png",
    count: Annotated[int, option("-n", "--count", help="Number of images.")] = 16,
    toward: Annotated[
        str | None, option("--toward", metavar="TEXT", help="Text difference: what the image is to become.")
    ] = None,
    away: Annotated[
        str | None, option("--away", metavar="TEXT", help="Text difference: what it shows now. Default: the mean text.")
    ] = None,
    strength: Annotated[
        float | None, option("--strength", help="Text difference: how far to go, 0 to 1. Default: 0.4.")
    ] = None,
    *,
    sampling: Guided,
    common: Common,
) -> None:
    """Variations of an image, interpolations, text differences, by its embedding (DALL-E 2; train with --recipe dalle2)."""
    for name, value in (("--away", away), ("--strength", strength)):
        if value is not None and toward is None:
            raise InputError(f"{name} says how an image is to change: give --toward, too")
    if len(paths) > (1 if toward is not None else 2):
        raise InputError(f"{len(paths)} images were given: give {'one' if toward is not None else 'one or two'}")
    check_images(out)
    asked = request(model, count, Conditions(), sampling, common)
    from sfumato.recipes import varied

    moved: dict[str, Any] = {"toward": toward, "away": away, "strength": strength}
    with counting(f"sampling {images(count)}") as progress:
        pixels, done = varied(asked.generator, paths, count, **moved, **asked.how, progress=progress)
    Sampled(pixels, columns=count if count <= MOST_COLUMNS else None).write(out)
    show([f"{count} {done}: {out}"], {"out": out, "images": paths, **moved, **asked.result}, common.json)
