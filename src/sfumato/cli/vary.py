"""``sfumato vary``."""

from __future__ import annotations

from typing import Annotated, Any

from sfumato.cli.console import counting, show
from sfumato.cli.options import Common, Conditions, CountOption, Guided, ModelArgument, OutImages, argument
from sfumato.cli.request import MOST_COLUMNS, Sampled, check_images, images, request
from sfumato.core.errors import InputError


def vary(
    model: ModelArgument,
    paths: Annotated[list[str], argument("IMAGE", "Image to vary, or two to interpolate between.")],
    out: OutImages = "varied.png",
    count: CountOption = 16,
    toward: str | None = None,
    away: str | None = None,
    strength: float | None = None,
    *,
    sampling: Guided,
    common: Common,
) -> None:
    """Variations of an image, interpolations, text differences, by its embedding (DALL-E 2; train with --recipe dalle2).

    Args:
        toward: TEXT: Text difference: what the image is to become.
        away: TEXT: Text difference: what it shows now. Default: the mean text.
        strength: Text difference: how far to go, 0 to 1. Default: 0.4.
    """
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
