"""``sfumato edit``."""

from __future__ import annotations

from typing import Annotated

from sfumato.cli.console import counting, show
from sfumato.cli.options import Common, Conditions, CountOption, OutImages, Sampling, argument
from sfumato.cli.request import check_images, images, request
from sfumato.core.errors import InputError

IMAGE = "Image to edit; before it a trained diffusion model. Default: the packaged one."


def edit(
    paths: Annotated[list[str], argument("[MODEL] IMAGE", IMAGE)],
    out: OutImages = "edited.png",
    count: CountOption = 16,
    strength: float | None = None,
    mask: str | None = None,
    resample: int | None = None,
    *,
    conditions: Conditions,
    sampling: Sampling,
    common: Common,
) -> None:
    """Edit an image: image to image (SDEdit); inpainting, with --mask; super-resolution, of a small image as it is.

    Args:
        strength: SDEdit strength, 0 (the image itself) to 1 (pure noise). Default: 0.6; with a mask 1.
        mask: IMAGE: Inpainting mask: white is inpainted, black is kept.
        resample: Inpainting: further passes over the lower half of each stage (RePaint). Default: 2; 0: none.
    """
    if len(paths) > 2:
        raise InputError(f"{len(paths)} names were given: give IMAGE, or MODEL IMAGE")
    check_images(out)
    *model, image = paths
    asked = request(model[0] if model else None, count, conditions, sampling, common)
    from sfumato import editing
    from sfumato.generator import Generator

    if not isinstance(asked.generator, Generator):
        raise InputError("editing needs a model that is one ladder, and this is one of a recipe: give another model")
    plan = editing.plan(asked.generator.ladder, image, strength, mask)
    how = {**asked.condition, **asked.how, "resample": resample}
    with counting(f"editing {image}") as progress:
        pixels = editing.edit(asked.generator, plan, **how, progress=progress)
    asked.write(out, pixels, asked.generator.classes if conditions.label else ())
    kept = None if plan.kind == editing.SUPER_RESOLUTION else plan.strength
    result = {"image": image, "mask": mask, "edit": plan.kind, "strength": kept}
    show([f"{images(asked.count)}, {plan}: {out}"], {"out": out, **asked.result, **result}, common.json)
