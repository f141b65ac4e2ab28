"""``sfumato sample``."""

from __future__ import annotations

from sfumato.cli.console import counting, show
from sfumato.cli.options import Common, Conditions, CountOption, OutImages, PackagedModelArgument, Sampling
from sfumato.cli.request import check_images, images, request


def sample(
    model: PackagedModelArgument = None,
    out: OutImages = "samples.png",
    count: CountOption = 16,
    *,
    conditions: Conditions,
    sampling: Sampling,
    common: Common,
) -> None:
    """Sample images from a diffusion model, conditioned on class labels or text."""
    check_images(out)
    asked = request(model, count, conditions, sampling, common)
    with counting(f"sampling {images(asked.count)}") as progress:
        pixels = asked.generator.sample(**asked.condition, **asked.how, progress=progress)
    asked.write(out, pixels, asked.generator.classes)
    show([f"{images(asked.count)}: {out}"], {"out": out, **asked.result}, common.json)
