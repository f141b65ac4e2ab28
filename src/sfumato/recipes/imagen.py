"""Imagen: texts read by a frozen language model, strong guidance, dynamic thresholding (Saharia et al. 2022).

arXiv 2205.11487. The paper's base and super-resolution models are here the stages of one ladder, one network; the
recipe ``cascade`` has them as separate models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from sfumato.config import preset as config_of
from sfumato.core.errors import InputError
from sfumato.data import ImageSet, load
from sfumato.recipes.registry import RECIPES
from sfumato.training import Progress, training_steps

DEFAULTS = {
    "drop": "0.1",  # section 2.2: texts are dropped 10% of the time
    "guidance": "5",  # section 2.3: larger weights than pixels in [-1, 1] would bear without the thresholding
    # Section 2.3 has 0.995, for photographs. Where the ground is plain white, more pixels than that overshoot at their rim alone,
    # and all of the image is greyed for their sake: see benchmarks/results/text_to_image.md.
    "threshold": "0.9",
    "flip": "false",  # a caption may say left or right
}
"""Settings where the recipe differs from what ``sfumato train`` does by itself, or must not follow a change of it."""


@RECIPES.add("imagen")
def train(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    device: str = "auto",
    seed: int = 0,
) -> Iterator[Progress]:
    """Train a generator that draws from texts; all as ``training.training_steps``, with ``DEFAULTS`` under ``settings``.

    What is stored is a Generator whose own guidance is the paper's: the default of ``sfumato sample``.

    Raises:
        InputError: as ``training_steps``; data without captions; ``drop=0``, for guidance needs a model that has also
            learned to draw without a text.
    """
    dataset = load(data, size=size, fit=fit)
    chosen = {**DEFAULTS, **(settings or {})}
    if dataset.captions is None:
        raise InputError(
            f"recipe imagen draws from texts, but {dataset.name} has no captions: add a metadata.jsonl or .txt files "
            "(see 'sfumato data check'), or train without --recipe"
        )
    if config_of(dataset.size, preset).with_settings(chosen).drop == 0:
        raise InputError(
            "recipe imagen guides its samples, which drop=0 makes impossible: leave drop at 0.1, or give another share"
        )
    return training_steps(
        dataset,
        out,
        minutes=minutes,
        images=images,
        steps=steps,
        preset=preset,
        settings=chosen,
        device=device,
        seed=seed,
    )
