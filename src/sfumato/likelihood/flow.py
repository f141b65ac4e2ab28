"""The exact change of variables: the decoder is a deterministic map of one Gaussian vector, and this is its density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.ladder import Ladder, coarse, pool
from sfumato.likelihood.bound import DenoiseAt
from sfumato.likelihood.pixels import FLOOR, dequantise, on_grid
from sfumato.samplers import Noise

Velocity = Callable[[Tensor, float], tuple[Tensor, Tensor]]  # z, log s -> dz / d log s, its divergence (B,)

STEPS = 40
ORDER = 4  # evaluations of the denoiser a step


def flow(
    denoise: DenoiseAt,
    ladder: Ladder,
    x: Tensor,
    noise: Noise | None,
    steps: int = STEPS,
    floor: float = FLOOR,
    eight_bit: bool = True,
) -> Tensor:
    """``-log p(x)`` in nats, (B,) float64, by the probability-flow ODE from the image down to z_0.

    Within a stage ``log p(z(low)) = log p(z(high)) + integral div(dz/ds) ds`` (Chen et al. 2018, arXiv 1806.07366; Song
    et al. 2021, arXiv 2011.13456, equation 39), the divergence by Hutchinson's estimator with one random sign a number,
    the same along the way (Grathwohl et al. 2019, arXiv 1810.01367). At a jump ``Q z`` is the fresh noise, whose density
    is known, and ``P z`` is the coarser state: ``p(z) = N(Q z; J_k^2) p(A z) / 2^d``, d numbers in A z. Nothing is lost.

    Args:
        denoise, ladder, x, eight_bit: as in ``bound``; ``denoise`` is differentiable in z, and 8-bit values are dequantised.
        noise: the streams of these images; None, where not ``eight_bit``: the divergence is not estimated, but summed over
            all numbers of z, one backward pass each.
        steps: of the classical Runge-Kutta method (fourth order), spaced equally in log s over all stages.
        floor: the level where it begins; where not ``eight_bit``, the density is that of z(floor), at x.
    """
    finest = ladder.stages - 1
    z, nats = x, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if eight_bit:
        assert noise is not None
        z, dequantising = dequantise(x, noise(ladder.shape(finest)), floor)
        nats += dequantising
    whole = sum(math.log(high / low) for stage in range(ladder.stages) for low, high in _segments(ladder, stage, floor))
    for stage in reversed(range(ladder.stages)):
        probe = None if noise is None else torch.where(noise(ladder.shape(stage)) < 0, -1.0, 1.0).to(z)  # fair signs
        for low, high in _segments(ladder, stage, floor):
            count = max(1, round(steps * math.log(high / low) / whole))
            grid = eight_bit and stage == finest
            fading = stage > 0 and high > ladder.plain[stage]
            z, grown = _runge_kutta(_velocity(denoise, ladder, stage, fading, probe, grid), z, low, high, count)
            nats -= grown
        jump = ladder.jumps[stage]
        if stage == 0:
            return nats + _normal(z, jump, z[0].numel())
        fresh = z - coarse(z)
        z = pool(z)
        nats += _normal(fresh, jump, 3 * z[0].numel()) + z[0].numel() * math.log(2)
    raise AssertionError("stage 0 ends it")


def _segments(ladder: Ladder, stage: int, floor: float) -> list[tuple[float, float]]:
    """From the end of a stage up to J_k, cut where the detail begins to fade: r has a kink there."""
    low, high = max(ladder.ends[stage], floor), ladder.jumps[stage]
    plain = ladder.plain[stage]
    return [(low, plain), (plain, high)] if stage and low < plain < high else [(low, high)]


def _velocity(
    denoise: DenoiseAt, ladder: Ladder, stage: int, fading: bool, probe: Tensor | None, grid: bool
) -> Velocity:
    """``dz / d log s`` and its divergence within a stage, where its detail is fading or before."""
    fade = -1.0 / (ladder.jumps[stage] - ladder.plain[stage]) if fading else 0.0

    def velocity(z: Tensor, log_sigma: float) -> tuple[Tensor, Tensor]:
        sigma = min(math.exp(log_sigma), ladder.jumps[stage])
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            at = torch.full((len(z),), sigma, dtype=z.dtype, device=z.device)
            x_hat = denoise(z, at, stage)
            if grid:
                x_hat = on_grid(x_hat, at)
            speed = sigma * ladder.slope(z, x_hat, stage, sigma, fade)
            return speed.detach(), _divergence(speed, z, probe)

    return velocity


def _runge_kutta(velocity: Velocity, z: Tensor, low: float, high: float, steps: int) -> tuple[Tensor, Tensor]:
    """z at ``high`` from z at ``low``, and the integral of the divergence, (B,) float64; in steps of equal log s."""
    step = math.log(high / low) / steps
    grown = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for i in range(steps):
        at = math.log(low) + i * step
        k1, d1 = velocity(z, at)
        k2, d2 = velocity(z + step / 2 * k1, at + step / 2)
        k3, d3 = velocity(z + step / 2 * k2, at + step / 2)
        k4, d4 = velocity(z + step * k3, at + step)
        z = z + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        grown += step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return z, grown


def _divergence(speed: Tensor, z: Tensor, probe: Tensor | None) -> Tensor:
    """Of each image, (B,) float64: images of a batch do not act on each other, so one pass serves all of them."""
    if probe is not None:
        (found,) = torch.autograd.grad(speed, z, probe)
        return (found * probe).double().flatten(1).sum(1)
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    flat = speed.flatten(1)
    for i in range(flat.shape[1]):
        (found,) = torch.autograd.grad(flat[:, i].sum(), z, retain_graph=True)
        total += found.flatten(1)[:, i].double()
    return total


def _normal(z: Tensor, std: float, count: int) -> Tensor:
    """``-log N(z; 0, std^2)`` in nats, (B,) float64, over the ``count`` dimensions that z has."""
    size = z.double().square().flatten(1).sum(1)
    return 0.5 * size / std**2 + 0.5 * count * math.log(2 * math.pi * std**2)
