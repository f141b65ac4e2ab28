"""The picture of why nobody computes p(x) as an integral: three estimates of the same number against their cost."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.likelihood.integral import NOISE, SAMPLES, integral
from sfumato.likelihood.score import _checked, decoder, integral_bits, per_sample, score, told

if TYPE_CHECKING:
    from sfumato.generator import Generator, Labels, Prompts

MOST_IMAGES = 8  # of the figure's means: the ODE takes its time
_DRAWS = (4, 8, 16, 32, 64)


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
        label, prompt: what all of them are told.
        samples: of the integral.
        seed: of everything.

    Returns:
        The picture, and its numbers, ready for JSON: ``integral`` (evaluations, bits), ``bound`` (evaluations, bits),
        ``ode`` (evaluations, bits, error), all means over the images in bits per dimension; ``effective_samples``.

    Raises:
        InputError: as ``score``.
    """
    x = _checked(generator, x[:MOST_IMAGES])
    pixels = (x + 1) / 2
    c = told(generator, len(x), label, prompt).to(generator.device)
    cost = per_sample(generator)
    found = integral(decoder(generator, c, samples, seed), x.to(generator.device), samples, 2 * NOISE)
    running = integral_bits(found, x[0].numel())  # (T, B)
    least = 2 * generator.ladder.stages
    bounds = [score(generator, pixels, label, prompt=prompt, draws=max(draws, least), seed=seed) for draws in _DRAWS]
    ode = score(generator, pixels, label, prompt=prompt, method="ode", seed=seed)
    numbers = {
        "images": len(x),
        "sample_noise": NOISE,
        "integral": {"evaluations": (found.counts * cost).tolist(), "bits": running.mean(1).tolist()},
        "bound": {"evaluations": [one.evaluations for one in bounds], "bits": [one.mean for one in bounds]},
        "ode": {"evaluations": ode.evaluations, "bits": ode.mean, "error": ode.mean_error},
        "effective_samples": float(found.effective.median()),
    }
    return _draw(numbers, running, cost, found.counts), numbers


def _draw(numbers: dict[str, Any], running: Tensor, cost: int, counts: Tensor) -> Image.Image:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    at = counts * cost
    ends = torch.stack([running.amin(1), running.amax(1)])
    axes.fill_between(at, ends[0], ends[1], color="C3", alpha=0.15, linewidth=0)
    said = f"integral: {cost} evaluations a sample, {numbers['effective_samples']:.1f} of {int(counts[-1]):,} samples count"
    axes.plot(at, numbers["integral"]["bits"], color="C3", label=said)
    axes.plot(numbers["bound"]["evaluations"], numbers["bound"]["bits"], "o-", color="C0", markersize=4,
              label=f"bound of the ladder: {numbers['bound']['bits'][-1]:.2f} bits/dim")  # fmt: skip
    ode = numbers["ode"]
    axes.plot([ode["evaluations"]], [ode["bits"]], "s", color="C2",
              label=f"exact change of variables (ODE): {ode['bits']:.2f} bits/dim")  # fmt: skip
    axes.axhline(8, color="0.6", linestyle=":", linewidth=1)
    axes.text(float(at[-1]), 8, "8: any image as likely as any other", ha="right", va="bottom", color="0.4", fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("evaluations of the network an image")
    axes.set_ylabel("-log p(x), bits/dim (less is likelier)")
    axes.set_title(f"The integral of p(x|z) p(z) by drawing z, p(x|z) of {numbers['sample_noise']:g} noise: "
                   f"mean of {numbers['images']} images", fontsize=10)  # fmt: skip
    axes.legend(fontsize=8, loc="center right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return Image.open(picture).convert("RGB")
