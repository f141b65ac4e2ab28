"""``sfumato film``."""

from __future__ import annotations

from pathlib import Path

from sfumato.cli import options
from sfumato.cli.console import show, waiting
from sfumato.cli.pictures import PICTURES
from sfumato.cli.request import request


def film(
    model: options.PackagedModelArgument = None,
    out: options.OutPicture = Path("film.png"),
    count: options.CountOption = 1,
    *,
    conditions: options.Conditions,
    sampling: options.Sampling,
    common: options.Common,
) -> None:
    """Draw both directions of the diffusion chain: noise denoised into images, and these images noised down.

    Args:
        count: Number of images, two rows each.
    """
    options.check_file(out, PICTURES)
    asked = request(model, count, conditions, sampling, common)
    from sfumato.core import pictures
    from sfumato.film import film as draw

    with waiting("drawing the film"):
        pictures.save(draw(asked.generator, **asked.condition, **asked.how), out)
    show([f"{asked.count} film: {out}"], {"out": str(out), **asked.result}, common.json)
