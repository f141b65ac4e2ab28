"""The picture of why nobody computes p(x) as an integral: three estimates of the same number against their cost."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.likelihood.integral import NOISE, SAMPLES, integral
from sfumato.likelihood.score import condition_of, decoder, eight_bit, integral_bits, per_sample, score

if TYPE_CHECKING:
    from sfumato.conditions.requests import Labels, Prompts
    from sfumato.generator import Generator

MOST_IMAGES = 8  # of the figure's means: the ODE takes its time
MOST_BITS = 40  # that the figure shows
NOISES = (NOISE, NOISE / 2)  # of p(x | z): with less of it fewer samples count
_DRAWS = (4, 8, 16, 32, 64)
_BATCH = 64


def integration_figure(
    generator: Generator,
    x: Tensor,
    label: Labels = None,
    *,
    prompt: Prompts = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[Image.Image, dict[str, Any]]:
    """The integral, the bound and the ODE, each against the evaluations of the network that it took.

    Args:
        generator: the model.
        x: (N, C, H, W) in [0, 1]; the first ``MOST_IMAGES`` of them are used.
        label, prompt: the condition of all of them.
        samples: of the integral.
        seed: of everything.

    Returns:
        The picture, and its numbers, ready for JSON: ``integral``, a list with evaluations, bits, effective_samples for
        each noise of p(x | z) and the ``least`` bits that this noise alone leaves possible, ``bound`` (evaluations, bits)
        and ``ode`` (evaluations, bits); bits per dimension, means over the images.

    Raises:
        InputError: as ``score``.
    """
    x = eight_bit(generator, x[:MOST_IMAGES])
    pixels = (x + 1) / 2
    c = condition_of(generator, len(x), label, prompt).to(generator.device)
    draw, cost = decoder(generator, c, seed), per_sample(generator)
    drawn = torch.cat([draw(first, min(_BATCH, samples - first)) for first in range(0, samples, _BATCH)])
    curves = []
    for noise in NOISES:
        found = integral(lambda first, n: drawn[first : first + n], x.to(drawn), samples, 2 * noise)
        curve = {
            "noise": noise,
            "least": math.log2(noise * 255 * math.sqrt(2 * math.pi)),
            "effective_samples": float(found.effective.median()),
            "evaluations": (found.counts * cost).tolist(),
            "bits": integral_bits(found, x[0].numel()).mean(1).tolist(),
        }
        curves.append(curve)
    least = 2 * generator.ladder.stages
    bounds = [score(generator, pixels, label, prompt=prompt, draws=max(n, least), seed=seed) for n in _DRAWS]
    ode = score(generator, pixels, label, prompt=prompt, method="ode", seed=seed)
    numbers = {
        "images": len(x),
        "samples": samples,
        "integral": curves,
        "bound": {"evaluations": [one.evaluations for one in bounds], "bits": [one.mean for one in bounds]},
        "ode": {"evaluations": ode.evaluations, "bits": ode.mean},
    }
    return _draw(numbers), numbers


def _draw(numbers: dict[str, Any]) -> Image.Image:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    bound, ode, samples = numbers["bound"], numbers["ode"], numbers["samples"]
    for curve, colour in zip(numbers["integral"], ("C3", "C1"), strict=True):
        name = f"integral with noise {curve['noise']:g}: {curve['bits'][-1]:.1f} bits/dim after {samples:,} samples, "
        name += f"of which {curve['effective_samples']:.1f} count"
        least = f"the least that noise {curve['noise']:g} leaves possible: {curve['least']:.1f} bits/dim"
        axes.plot(curve["evaluations"], curve["bits"], color=colour, label=name)
        axes.axhline(curve["least"], color=colour, linestyle=":", linewidth=1, label=least)
    name = f"bound of the ladder: {bound['bits'][-1]:.2f} bits/dim"
    axes.plot(bound["evaluations"], bound["bits"], "o-", color="C0", markersize=4, label=name)
    name = f"exact change of variables (ODE): {ode['bits']:.2f} bits/dim"
    axes.plot([ode["evaluations"]], [ode["bits"]], "s", color="C2", label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, min(MOST_BITS, 1.05 * max(curve["bits"][0] for curve in numbers["integral"])))
    axes.set_xlabel("evaluations of the network an image")
    axes.set_ylabel("-log p(x), bits/dim (less is likelier)")
    axes.set_title(
        f"p(x) as the mean of p(x|z) over drawn z, and as it can be had: {numbers['images']} images", fontsize=10
    )
    axes.legend(fontsize=8, loc="upper right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return Image.open(picture).convert("RGB")
