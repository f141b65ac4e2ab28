"""The loss: ``sum_t w_t ||Dec_t(z_{t-1}, c) - z_t||^2``, stage by stage."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.conditions import Condition
from sfumato.config import Config
from sfumato.denoisers import Denoiser
from sfumato.ladder import Ladder, coarse, flow_time, from_flow_time

LOGIT_NORMAL = (-0.2, 1.0)  # mean and standard deviation of the logit of the flow time, for levels=logit-normal
FLOOR = 0.01  # flow time below which no plain state is trained


def measure(x: Tensor, ladder: Ladder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Root mean square of ``P x_k`` and of ``Q x_k`` by stage, of clean images (B, C, H, W) in [-1, 1].

    Taken over the dimensions of each subspace (P holds a quarter of them, Q three), as the noise is counted there.
    Stage 0 keeps all of its image in z, so its first number is that of ``x_0`` and the second is 0.
    """
    smooth, sharp = [], []
    for stage in range(ladder.stages):
        image = ladder.shrink(x, stage)
        kept = coarse(image) if stage else image
        share = 0.25 if stage else 1.0
        smooth.append(max(float((kept.square().mean() / share).sqrt()), 1e-3))
        sharp.append(max(float(((image - kept).square().mean() / 0.75).sqrt()), 1e-3) if stage else 0.0)
    return tuple(smooth), tuple(sharp)


def draw_levels(config: Config, ladder: Ladder, stage: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) noise levels within a stage, stratified so that each batch covers the stage evenly."""
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # in [0, 1)
    ends = torch.tensor([ladder.ends[stage], ladder.jumps[stage]], dtype=torch.float64)
    low, high = (float(n) for n in flow_time(ends))
    if config.levels == "uniform":
        return from_flow_time(low + (high - low) * share).clamp_min(1e-3)
    normal = torch.distributions.Normal(*LOGIT_NORMAL)
    logits = torch.special.logit(torch.tensor([max(low, 1e-4), high]))
    below, above = normal.cdf(logits)
    return normal.icdf(below + (above - below) * share.clamp(1e-4, 1 - 1e-4)).exp()  # s = n / (1 - n) = exp(logit n)


def stage_loss(
    denoiser: Denoiser, config: Config, x: Tensor, c: Condition, stage: int, generator: torch.Generator
) -> Tensor:
    """The mean weighted squared error of one stage, a scalar.

    Args:
        x: (B, C, H, W), clean, finest resolution, [-1, 1].
        c: of each image, some of it dropped already.
        generator: on the CPU; everything random comes from it.
    """
    if config.rungs:
        return _rung_loss(denoiser, config, x, c, stage, generator)
    ladder, count = denoiser.ladder, len(x)
    clean = ladder.shrink(x, stage)
    sigma = draw_levels(config, ladder, stage, count, generator)
    detail = ladder.detail(stage, sigma)
    on_p, on_q = ladder.weights(config.weights, stage, sigma)
    finest = stage == ladder.stages - 1
    if plain := max(1, round(config.plain_share * count)) if stage and finest and config.plain_share else 0:
        # Plain states x + s e at any level: not on the sampling path, but what defences and likelihoods ask for.
        top = float(flow_time(torch.tensor(ladder.jumps[0])))
        share = (torch.arange(plain) + torch.rand(plain, generator=generator)) / plain
        chosen = torch.randperm(count, generator=generator)[:plain]
        sigma[chosen] = from_flow_time(FLOOR + (top - FLOOR) * share)
        detail[chosen] = 1.0
        on_p[chosen] = on_q[chosen] = ladder.weights(config.weights, 0, sigma[chosen])[0]
    noise = torch.randn(clean.shape, generator=generator)
    sigma, detail, on_p, on_q, noise = (t.to(x.device) for t in (sigma, detail, on_p, on_q, noise))
    z = ladder.blend(clean, stage, detail) + sigma[:, None, None, None] * noise
    error = denoiser(z, sigma, stage, c, detail) - clean
    return _weighted(error, stage, on_p, on_q)


def _weighted(error: Tensor, stage: int, on_p: Tensor, on_q: Tensor) -> Tensor:
    """``mean(w_P |P d|^2 + w_Q |Q d|^2)`` over pixels and images."""
    squares = error.square().mean((1, 2, 3))
    if stage == 0:
        return (on_p * squares).mean()
    smooth = coarse(error).square().mean((1, 2, 3))  # P and Q are orthogonal: |d|^2 = |P d|^2 + |Q d|^2
    return (on_q * squares + (on_p - on_q) * smooth).mean()


def _rung_loss(
    denoiser: Denoiser, config: Config, x: Tensor, c: Condition, stage: int, generator: torch.Generator
) -> Tensor:
    """The loss on a chain of fixed rungs, one of them drawn for the whole batch: a network a rung sees only its own.

    With target z_next it is the lecture's: ``z_t`` is drawn, ``z_{t-1} = Noisy(z_t)``, and Dec_t regresses z_t.
    """
    ladder = denoiser.ladder
    rungs = len(denoiser.rungs[stage]) - 1
    index = int(torch.randint(rungs, (1,), generator=generator))
    noisy, next_up = denoiser.rung(stage, index)
    sigma = torch.full((len(x),), noisy.sigma)
    on_p, on_q = ladder.weights(config.weights, stage, sigma)
    clean = ladder.shrink(x, stage)
    noise = torch.randn(clean.shape, generator=generator).to(x.device)
    z_next = ladder.marginal(x, stage, next_up.sigma, noise)
    z = ladder.down(z_next, next_up, noisy, generator)
    x_hat = denoiser(z, sigma.to(x.device), stage, c)
    on_p, on_q = on_p.to(x.device), on_q.to(x.device)
    if config.target == "x":
        return _weighted(x_hat - clean, stage, on_p, on_q)
    decoded = ladder.posterior(z, x_hat, stage, noisy.sigma, next_up.sigma)[0]
    # One w_t a rung, such that the smooth part of x^ counts as much as with target x.
    scale = (1 - (next_up.sigma / noisy.sigma) ** 2) ** -2
    return scale * _weighted(decoded - z_next, stage, on_p, on_p)
