"""``sfumato film``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sfumato.cli.console import show, waiting
from sfumato.cli.options import Common, Conditions, OutPicture, PackagedModelArgument, Sampling, check_file, option
from sfumato.cli.pictures import PICTURES
from sfumato.cli.request import request


def film(
    model: PackagedModelArgument = None,
    out: OutPicture = Path("film.png"),
    count: Annotated[int, option("-n", "--count", help="Number of images, two rows each.")] = 1,
    *,
    conditions: Conditions,
    sampling: Sampling,
    common: Common,
) -> None:
    """Draw both directions of the diffusion chain: noise denoised into images, and these images noised down."""
    check_file(out, PICTURES)
    asked = request(model, count, conditions, sampling, common)
    from sfumato.core import pictures
    from sfumato.film import film as draw

    with waiting("drawing the film"):
        pictures.save(draw(asked.generator, **asked.condition, **asked.how), out)
    show([f"{asked.count} film: {out}"], {"out": str(out), **asked.result}, common.json)
