"""The bound that the ladder's loss is: ``-log p(x | c)`` is at most a sum of denoising errors over all noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.ladder import Ladder, coarse
from sfumato.likelihood.pixels import CELL, on_grid, reconstruction
from sfumato.samplers import Noise

DenoiseAt = Callable[[Tensor, Tensor, int], Tensor]  # (z (B, C, h, w), sigma (B,), stage) -> x^ (B, C, h, w)

DRAWS = 32
FLOOR = CELL / 4  # where an 8-bit image is decoded: lower, a network errs by more than the last term falls
SCALE = 0.05  # levels are drawn uniformly in log(s / (s + SCALE)), about as often as they add to the sum


class Bound(NamedTuple):
    """The terms of the bound, in nats."""

    prior: Tensor  # (B,): the information that z_0 has of the image
    stages: Tensor  # (B, S): the denoising errors of each stage; the jumps between them cost nothing
    reconstruction: Tensor  # (B,): what is left open at the last noise level
    variance: Tensor  # (B,): of ``total``, from drawing noise and levels

    @property
    def total(self) -> Tensor:
        return self.prior + self.stages.sum(1) + self.reconstruction


def bound(
    denoise: DenoiseAt,
    ladder: Ladder,
    x: Tensor,
    noise: Noise,
    draws: int = DRAWS,
    floor: float = FLOOR,
    eight_bit: bool = True,
) -> Bound:
    """The likelihood bound of DESIGN section 2, its integral by importance-sampled, stratified noise levels.

    ``-log p(x) <= |x_0|^2 / 2 J_0^2 + sum_k integral ds [w_P |P d|^2 + w_Q |Q d|^2] + E[-log p(x | z(floor))]`` with
    ``d = x^ - x_k`` and the weights of ``Ladder.likelihood_weights`` (Kingma et al. 2021, arXiv 2107.00630, equation
    14, for one stage). For an exact denoiser it is ``-log p(x)`` itself, for each x.

    Args:
        denoise: the expected clean image, for a level an image.
        ladder: the chain.
        x: (B, C, H, W) in [-1, 1] space; where ``eight_bit``, of 8-bit values.
        noise: the streams of these images; equal ones give common noise and levels, for paired comparisons.
        draws: evaluations of the denoiser an image, at least two a stage.
        floor: the noise level at which the image is decoded.
        eight_bit: whether the result is the probability of an 8-bit image, or a density at x.

    Raises:
        InputError: a ladder whose finest stage does not reach down to the floor.
    """
    finest = ladder.stages - 1
    if ladder.jumps[finest] <= floor:
        problem = f"the finest stage begins at noise level {ladder.jumps[finest]:.2g}"
        raise InputError(f"{problem}: a likelihood needs one over {floor:.2g}; train with other jumps")
    spans = [(_place(max(end, floor)), _place(jump)) for end, jump in zip(ladder.ends, ladder.jumps, strict=True)]
    sums, variances = [], torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for stage, ((low, high), count) in enumerate(zip(spans, _shares(spans, draws), strict=True)):
        clean = ladder.shrink(x, stage)
        rates = []
        for stratum in range(count):
            place = torch.special.ndtr(noise((1, 1, 1)).flatten().double())  # uniform
            sigma = _level(low + (high - low) * (stratum + place) / count)  # (B,)
            e = noise(ladder.shape(stage)).to(x)
            at = sigma.to(x)
            x_hat = denoise(ladder.marginal(x, stage, at, e), at, stage)
            if eight_bit and stage == finest:
                x_hat = on_grid(x_hat, at)
            on_p, on_q = errors(ladder, stage, x_hat - clean)
            w_p, w_q = ladder.likelihood_weights(stage, sigma)
            rates.append((w_p * on_p + w_q * on_q) * sigma * (sigma + SCALE) / SCALE)
        rate = torch.stack(rates)  # (count, B)
        sums.append((high - low) * rate.mean(0))
        # Neighbouring strata differ by their noise and by a step of the integrand: if anything, this is too large.
        variances += ((high - low) / count) ** 2 * (rate[0::2] - rate[1::2]).square().sum(0)
    prior = 0.5 * ladder.shrink(x, 0).double().square().flatten(1).sum(1) / ladder.jumps[0] ** 2
    return Bound(prior, torch.stack(sums, 1), reconstruction(x, floor, eight_bit), variances)


def errors(ladder: Ladder, stage: int, d: Tensor) -> tuple[Tensor, Tensor]:
    """``|P d|^2`` and ``|Q d|^2``, each (B,) float64; stage 0 has no detail to lose: there all is on P."""
    whole = d.double().square().flatten(1).sum(1)
    if stage == 0:
        return whole, torch.zeros_like(whole)
    on_p = coarse(d).double().square().flatten(1).sum(1)
    return on_p, (whole - on_p).clamp_min(0)  # P is an orthogonal projection


def _place(sigma: float) -> float:
    return math.log(sigma / (sigma + SCALE))


def _level(place: Tensor) -> Tensor:
    """The inverse of ``_place``."""
    return -SCALE * place.exp() / torch.expm1(place)


def _shares(spans: list[tuple[float, float]], draws: int) -> list[int]:
    """How many of the draws each stage gets: even numbers, so that strata come in pairs."""
    if draws < 2 * len(spans):
        raise InputError(f"{draws} draws are too few for {len(spans)} stages: give {2 * len(spans)} or more")
    whole = sum(high - low for low, high in spans)
    counts = [max(2, 2 * round(draws * (high - low) / whole / 2)) for low, high in spans]
    while sum(counts) > draws and max(counts) > 2:
        counts[counts.index(max(counts))] -= 2
    return counts
