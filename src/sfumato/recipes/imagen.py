"""Imagen: texts read by a frozen language model, strong guidance, dynamic thresholding (Saharia et al. 2022).

arXiv 2205.11487. The paper's base and super-resolution models are here the stages of one ladder, one network; the
recipe ``cascade`` has them as separate models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sfumato.core.errors import InputError
from sfumato.engine import Progress
from sfumato.recipes.registry import RECIPES
from sfumato.training import TrainingRequest, training_steps

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
def train(request: TrainingRequest) -> Iterator[Progress]:
    """Train a text-to-image generator; all as ``training.training_steps``, with ``DEFAULTS`` under the settings.

    What is stored is a Generator whose own guidance is the paper's: the default of ``sfumato sample``.

    Raises:
        InputError: as ``training_steps``; data without captions; ``drop=0``, for guidance needs a model that has also
            been trained without a text.
    """
    dataset = request.dataset()
    request = replace(request, data=dataset, settings={**DEFAULTS, **request.settings})
    if dataset.captions is None:
        raise InputError(
            f"recipe imagen is conditioned on text, but {dataset.name} has no captions: add a metadata.jsonl or .txt files "
            "(see 'sfumato data check'), or train without --recipe"
        )
    if request.config(dataset).drop == 0:
        raise InputError(
            "recipe imagen guides its samples, which drop=0 makes impossible: leave drop at 0.1, or give another share"
        )
    return training_steps(request)
