"""Bits per dimension of images under a generator, by each of three methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.conditions.requests import Labels, Prompts
from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.core.slices import slices
from sfumato.generator import Generator, check_shape
from sfumato.likelihood.bound import DRAWS, DenoiseAt, bound
from sfumato.likelihood.flow import ORDER, STEPS, flow
from sfumato.likelihood.integral import NOISE, SAMPLES, Draw, Integral, integral
from sfumato.likelihood.pixels import CELL, round_to_bytes
from sfumato.samplers import Noise, evaluations

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class Score:
    """The likelihood of N images under a generator.

    Args:
        method: a name in METHODS.
        bits: (N,) float64, bits per dimension (a number of the image, of 256 values): 8 for noise, less is likelier.
        error: (N,) standard error of each, from the draws; nan where they are too few to tell.
        parts: (N,) each, what ``bits`` is the sum of, by name; () for methods without parts.
        evaluations: of the network, an image; what serves all images at once is counted for each.
    """

    method: str
    bits: Tensor
    error: Tensor
    parts: dict[str, Tensor]
    evaluations: float

    @property
    def mean(self) -> float:
        """Bits per dimension, over the images."""
        return float(self.bits.mean())

    @property
    def mean_error(self) -> float:
        """Standard error of ``mean``: from the choice of images, and from the draws; nan for one image."""
        return float(self.bits.std()) / math.sqrt(len(self.bits)) if len(self.bits) > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """Without what is there for each image."""
        return {
            "method": self.method,
            "images": len(self.bits),
            "bits_per_dim": self.mean,
            "standard_error": self.mean_error,
            "error_of_an_image": float(self.error.mean()),
            "parts": {name: float(part.mean()) for name, part in self.parts.items()},
            "network_evaluations": self.evaluations,
        }


@dataclass(frozen=True)
class ScoreSettings:
    """How ``score`` estimates a likelihood.

    Args:
        method: ``bound``, the ladder's upper bound on the bits; ``ode``, the exact likelihood of the deterministic
            decoder; ``integral``, plain Monte Carlo over z, which does not converge.
        draws: the bound's draws of noise and level an image; the ODE's steps; the integral's samples. None: the
            method's own number.
        seed: image i has its own streams of noise, so that its score does not depend on its batch.
        batch_size: images at a time.
    """

    method: str = "bound"
    draws: int | None = None
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        METHODS.find(self.method)
        if self.draws is not None and self.draws < 1:
            raise InputError(f"draws={self.draws}: give 1 or more")


Estimator = Callable[["Generator", Tensor, Condition, Noise, ScoreSettings], Score]
"""x (B, C, H, W) 8-bit in [-1, 1] space, c the condition of each, noise the streams of these images."""
METHODS: Registry[Estimator] = Registry("method")


def score(
    generator: Generator,
    x: Tensor,
    label: Labels = None,
    *,
    prompt: Prompts = None,
    condition: Condition | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Score:
    """Bits per dimension of images under a generator.

    >>> score(generator, x, "sneaker", method="ode").mean                                   # doctest: +SKIP

    Args:
        generator: the model.
        x: (N, C, H, W) pixels in [0, 1]; each counts as the nearest 8-bit value.
        label, prompt, condition: the condition of the images, as in ``Generator.sample``; None is unconditional.
        progress: called with (images done, N).
        settings: the fields of ``ScoreSettings``.

    Raises:
        InputError: images that do not fit the model, an unknown method or label, impossible draws, a model that knows
            single noise levels only.
    """
    asked = ScoreSettings(**settings)
    x = eight_bit(generator, x)
    c = condition if condition is not None else condition_of(generator, len(x), label, prompt)
    at_once = len(x) if asked.method == "integral" else asked.batch_size  # its samples serve all images
    estimate, device, found = METHODS.find(asked.method), generator.device, []
    for rows in slices(len(x), at_once, progress):
        noise = Noise(asked.seed, range(rows.start, rows.stop), device)
        found.append(estimate(generator, x[rows].to(device), c[rows].to(device), noise, asked))
    bits, error = (torch.cat([getattr(each, name) for each in found]) for name in ("bits", "error"))
    parts = {name: torch.cat([each.parts[name] for each in found]) for name in found[0].parts}
    return Score(asked.method, bits, error, parts, found[0].evaluations)


@METHODS.add("bound")
def _by_bound(generator: Generator, x: Tensor, c: Condition, noise: Noise, asked: ScoreSettings) -> Score:
    draws = asked.draws or DRAWS
    with torch.no_grad():
        found = bound(bare(generator, c), generator.ladder, x, noise, draws)
    per_bit = NATS_PER_BIT * x[0].numel()
    stages = {f"stage {k}": found.stages[:, k] for k in range(generator.ladder.stages)}
    named = {"prior": found.prior, **stages, "reconstruction": found.reconstruction}
    parts = {name: (part / per_bit).cpu() for name, part in named.items()}
    return Score("bound", sum(parts.values(), torch.zeros(())), (found.variance.sqrt() / per_bit).cpu(), parts, draws)


@METHODS.add("ode")
def _by_flow(generator: Generator, x: Tensor, c: Condition, noise: Noise, asked: ScoreSettings) -> Score:
    steps = asked.draws or STEPS
    nats = flow(bare(generator, c), generator.ladder, x, noise, steps).cpu()
    bits = nats / (NATS_PER_BIT * x[0].numel())
    return Score("ode", bits, torch.full_like(bits, math.nan), {}, ORDER * steps)


@METHODS.add("integral")
def _by_integral(generator: Generator, x: Tensor, c: Condition, noise: Noise, asked: ScoreSettings) -> Score:
    samples = asked.draws or SAMPLES
    found = integral(decoder(generator, c, asked.seed), x, samples, 2 * NOISE)
    bits = integral_bits(found, x[0].numel())[-1]
    error = found.error.cpu() / (NATS_PER_BIT * x[0].numel())
    return Score("integral", bits, error, {}, float(samples * per_sample(generator)))


def decoder(generator: Generator, c: Condition, seed: int) -> Draw:
    """Samples of the model in [-1, 1] space, under the one condition that all rows of ``c`` are."""
    given = [part for part in (c.label, c.vector, c.tokens, c.image) if part is not None]
    if any(bool((part != part[:1]).any()) for part in given):
        raise InputError(
            "the integral draws its samples once for all images, so they must all have the same condition: "
            "score the images of one label at a time, or give no condition"
        )

    def draw(first: int, n: int) -> Tensor:
        condition = c.to("cpu")[torch.zeros(n, dtype=torch.int64)] if given else Condition()
        # The next seed: one that also drew noise for the images would do no harm, but would be hard to reason about.
        *_, last = generator.trace(n, condition=condition, guidance=1.0, seed=seed + 1, first=first)
        return last.x_hat.clamp(-1, 1)

    return draw


def per_sample(generator: Generator) -> int:
    """Evaluations of the network for one sample, with the default sampler and steps."""
    return sum(evaluations(generator.default_sampler, generator.steps_by_stage()))


def integral_bits(found: Integral, dimension: int) -> Tensor:
    """(T, B) bits per dimension: a cell of each pixel holds about its density times its width."""
    return found.nats.cpu() / (NATS_PER_BIT * dimension) - math.log2(CELL)


def bare(generator: Generator, c: Condition) -> DenoiseAt:
    """The denoiser in float32: bf16 cannot tell the noise of the last levels from its own rounding."""

    def denoise(z: Tensor, sigma: Tensor, stage: int) -> Tensor:
        return generator.denoiser(z, sigma, stage, c)

    return denoise


def condition_of(generator: Generator, n: int, label: Labels = None, prompt: Prompts = None) -> Condition:
    """The condition of n images; none where none is given, which the model must have been trained for."""
    if label is not None or prompt is not None:
        return generator.condition(n, label, prompt)
    generator.need_unconditional()
    return Condition()


def eight_bit(generator: Generator, x: Tensor) -> Tensor:
    """Pixels in [0, 1] as 8-bit values in [-1, 1] space; InputError where the model cannot score them."""
    generator.config.need_all_levels("a likelihood")
    check_shape(x, generator.ladder, least=1)
    if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError("pixels must be floats from 0 to 1: divide 8-bit images by 255")
    return round_to_bytes(2 * x.float() - 1)
