"""From noise to an image: one function a sampler, all with the same signature.

A sampler walks the noise levels of every stage from ``J_k`` down to ``end_k`` with the clean image ``x^`` that a
denoiser predicts, and jumps up one resolution in between. It yields a Rung for each step; the last Rung is at
sigma 0 and its ``x_hat`` is the picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.core.registry import Registry
from sfumato.core.streams import mix_seed
from sfumato.ladder import Ladder, Level, coarse, flow_time, from_flow_time, repeat

Denoise = Callable[[Tensor, float, int], Tensor]  # (z (B, C, h, w), sigma, stage) -> x^ (B, C, h, w)


class Rung(NamedTuple):
    """One step up the ladder: the state ``z`` at a level and the clean image predicted from it, both in [-1, 1] space."""

    stage: int
    sigma: float
    z: Tensor  # (B, C, h, w)
    x_hat: Tensor  # (B, C, h, w)


@dataclass
class Noise:
    """Standard normal numbers with a stream for each image, so that a picture does not depend on its batch.

    Args:
        seed: of the whole request.
        indices: the number of each image within the request.
        device: where the numbers are wanted.
    """

    seed: int
    indices: Sequence[int]
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        # Streams are drawn on the CPU: the same seed gives the same noise on every device.
        self._streams = [torch.Generator().manual_seed(mix_seed(self.seed, i)) for i in self.indices]

    def __call__(self, shape: tuple[int, int, int]) -> Tensor:
        """The next (B, C, h, w) numbers."""
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams]).to(self.device)


class ResumedNoise(Noise):
    """Noise for a run that begins at the state ``z`` of a rung, and not at ``z_0``."""

    def __init__(self, noise: Noise, level: Level, z: Tensor) -> None:
        self.noise, self.level, self.z = noise, level, z

    def __call__(self, shape: tuple[int, int, int]) -> Tensor:
        return self.noise(shape)


Sampler = Callable[[Denoise, Ladder, Noise, Sequence[int]], Iterator[Rung]]
SAMPLERS: Registry[Sampler] = Registry("sampler")

COARSE_SHARE = 0.6  # steps of each coarse stage for one of the finest: see benchmarks/results/ablation.md


def share_steps(ladder: Ladder, total: int) -> tuple[int, ...]:
    """``total`` steps shared over the stages, coarse first: each coarse stage gets ``COARSE_SHARE`` of the finest's."""
    if total < ladder.stages:
        raise InputError(f"{total} steps are too few for {ladder.stages} stages: give {ladder.stages} or more")
    shares = [COARSE_SHARE] * (ladder.stages - 1) + [1.0]
    steps = [max(1, round(total * share / sum(shares))) for share in shares[:-1]]
    while total - sum(steps) < max(steps, default=0):
        steps[steps.index(max(steps))] -= 1
    return (*steps, total - sum(steps))


def start(ladder: Ladder, noise: Noise) -> Tensor:
    """The coarsest noise, ``N(0, J_0^2 I)``: (B, C, h, w)."""
    return ladder.jumps[0] * noise(ladder.shape(0))


def levels_from(ladder: Ladder, steps: Sequence[int], level: Level) -> list[float]:
    """The noise levels that are left of a stage: from this one to ``end_k``, no farther apart than ``steps`` has them."""
    whole = ladder.levels(steps)[level.stage]
    ends = flow_time(torch.tensor([level.sigma, whole[-1], whole[0]], dtype=torch.float64))
    share = float((ends[0] - ends[1]) / (ends[2] - ends[1]))
    if not 0 < share <= 1:
        raise ValueError(f"{level} is not within its stage: it runs from {whole[0]} down to {whole[-1]}")
    count = max(1, math.ceil(share * steps[level.stage] - 1e-6))
    inner = from_flow_time(torch.linspace(ends[0], ends[1], count + 1, dtype=torch.float64))[1:-1]
    return [level.sigma, *map(float, inner), whole[-1]]


def run_stages(
    ladder: Ladder,
    noise: Noise,
    steps: Sequence[int],
    stage_steps: Callable[[Tensor, int, list[float]], Iterator[Rung]],
) -> Iterator[Rung]:
    """What the samplers share: the stages in order and the jumps between them.

    ``stage_steps(z, stage, levels)`` yields the rungs of one stage and, last, one at the stage's end whose ``x_hat``
    is not a new prediction (at sigma 0, where there is nothing left to predict, it is the picture itself).
    """
    levels = ladder.levels(steps)
    if isinstance(noise, ResumedNoise):
        first, z = noise.level.stage, noise.z
        levels[first] = levels_from(ladder, steps, noise.level)
    else:
        first, z = 0, start(ladder, noise)
    for stage in range(first, ladder.stages):
        if stage > first:
            z = ladder.jump(z, stage, noise(ladder.shape(stage)))
        for rung in stage_steps(z, stage, levels[stage]):
            z = rung.z
            yield rung


@SAMPLERS.add("euler")
def euler(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
    """Euler's method in flow time on the probability-flow ODE, which is DDIM (Song et al. 2020, arXiv 2010.02502)."""

    def stage_steps(z: Tensor, stage: int, levels: list[float]) -> Iterator[Rung]:
        x_hat = z
        for high, low in itertools.pairwise(levels):
            x_hat = denoise(z, high, stage)
            yield Rung(stage, high, z, x_hat)
            z = ladder.ddim_step(z, x_hat, stage, high, low)
        yield Rung(stage, levels[-1], z, x_hat)

    return run_stages(ladder, noise, steps, stage_steps)


@SAMPLERS.add("heun")
def heun(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
    """Heun's second-order method in flow time; the last step to sigma 0 is Euler's (Karras et al. 2022, algorithm 1)."""

    def velocity(z: Tensor, x_hat: Tensor, stage: int, sigma: float, r_slope: float) -> Tensor:
        return (1 + sigma) * ladder.slope(z, x_hat, stage, sigma, r_slope) - z  # d(z / (1 + s)) / dn

    def stage_steps(z: Tensor, stage: int, levels: list[float]) -> Iterator[Rung]:
        x_hat = z
        for high, low in itertools.pairwise(levels):
            x_hat = denoise(z, high, stage)
            yield Rung(stage, high, z, x_hat)
            guess = ladder.ddim_step(z, x_hat, stage, high, low)
            if low == 0:
                z = guess
                continue
            step = low / (1 + low) - high / (1 + high)  # in flow time
            # r has a kink at plain_k: its mean slope keeps a step across it at second order.
            r_slope = float(ladder.detail(stage, high) - ladder.detail(stage, low)) / (high - low)
            again = denoise(guess, low, stage)
            mean = (velocity(z, x_hat, stage, high, r_slope) + velocity(guess, again, stage, low, r_slope)) / 2
            z = (z / (1 + high) + step * mean) * (1 + low)
        yield Rung(stage, levels[-1], z, x_hat)

    return run_stages(ladder, noise, steps, stage_steps)


@SAMPLERS.add("dpmpp-2m")
def dpmpp_2m(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): second order at one evaluation a step.

    The predictions of the last two levels are extrapolated linearly in ``-log s``; a stage begins, and sigma 0 is
    reached, at first order.
    """

    def stage_steps(z: Tensor, stage: int, levels: list[float]) -> Iterator[Rung]:
        x_hat = before = z
        ratios = (high / low if low else 1.0 for high, low in itertools.pairwise(levels))
        spans = [0.0, *(float(torch.log(torch.tensor(ratio))) for ratio in ratios)]
        for i, (high, low) in enumerate(itertools.pairwise(levels)):
            x_hat = denoise(z, high, stage)
            yield Rung(stage, high, z, x_hat)
            ahead = x_hat if i == 0 or low == 0 else x_hat + spans[i + 1] / (2 * spans[i]) * (x_hat - before)
            z, before = ladder.ddim_step(z, ahead, stage, high, low), x_hat
        yield Rung(stage, levels[-1], z, x_hat)

    return run_stages(ladder, noise, steps, stage_steps)


@SAMPLERS.add("ancestral")
def ancestral(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
    """The Markov kernel backwards, mean and noise: ``q(z_t | z_{t-1}, x^)`` (Ho et al. 2020, equation 6)."""

    def stage_steps(z: Tensor, stage: int, levels: list[float]) -> Iterator[Rung]:
        x_hat = z
        for high, low in itertools.pairwise(levels):
            x_hat = denoise(z, high, stage)
            yield Rung(stage, high, z, x_hat)
            z, std_p, std_q = ladder.posterior(z, x_hat, stage, high, low)
            if low > 0:
                fresh = noise(ladder.shape(stage))
                z = z + std_p * fresh
                if stage:
                    z = z + (std_q - std_p) * (fresh - coarse(fresh))
        yield Rung(stage, levels[-1], z, x_hat)

    return run_stages(ladder, noise, steps, stage_steps)


@SAMPLERS.add("mean")
def mean(denoise: Denoise, ladder: Ladder, noise: Noise, steps: Sequence[int]) -> Iterator[Rung]:
    """The lecture to the letter: ``Dec_T(... Dec_1(z_0))`` with ``Dec_t(z) = E[z_t | z_{t-1}]`` and no noise after z_0.

    For teaching: each mean loses some of the variance that the true ``z_t`` has, so the pictures come out too smooth.
    """
    levels = ladder.levels(steps)
    z = start(ladder, noise)
    x_hat = z
    for stage in range(ladder.stages):
        if stage:
            z = repeat(z)  # the mean of the jump
        for high, low in zip(levels[stage], levels[stage][1:], strict=False):
            x_hat = denoise(z, high, stage)
            yield Rung(stage, high, z, x_hat)
            z = ladder.posterior(z, x_hat, stage, high, low)[0]
        yield Rung(stage, levels[stage][-1], z, z if stage == ladder.stages - 1 else x_hat)


def evaluations(sampler: str, steps: Sequence[int]) -> tuple[int, ...]:
    """How often a sampler calls the denoiser in each stage."""
    if sampler != "heun":
        return tuple(steps)
    return (*(2 * s for s in steps[:-1]), 2 * steps[-1] - 1)
