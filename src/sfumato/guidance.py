"""Guidance: functions on the predicted clean image x^, wrapped around a denoiser so that samplers know nothing of it.

One convention: ``u + g (c - u)``, where g = 1 is off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InputError
from sfumato.samplers import Denoise


@dataclass(frozen=True)
class Guidance:
    """How strongly, and where on the ladder, guidance acts.

    Args:
        scale: g of ``u + g (c - u)``; 1 is off.
        interval: (low, high), the noise levels within which guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724);
            a level of a coarse stage counts at its own resolution.
        rescale: 0 to 1, how far the standard deviation of each image is brought back to the conditional one's (Lin et
            al. 2023, arXiv 2305.08891, section 3.4).
        threshold: percentile such as 0.995 of Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3); 0 is off.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, float("inf"))
    rescale: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise InputError(f"guidance {self.scale} is impossible: give 0 or more, where 1 is off")
        low, high = self.interval
        if not 0 <= low < high:
            raise InputError(f"guidance interval {low} to {high} is empty: give two noise levels, the lower first")
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance rescale {self.rescale} is impossible: give a share from 0 to 1")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold {self.threshold} is impossible: give a percentile from 0 to 1, such as 0.995")


def cfg(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """``u + g (c - u)``: classifier-free guidance (Ho and Salimans 2022), or autoguidance when u is a weaker network's."""
    return torch.lerp(unconditional, conditional, scale)


def rescale(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """The guided image with its standard deviation moved by ``share`` to that of the conditional one."""
    axes = (1, 2, 3)
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(1e-8)
    return guided * (1 - share + share * ratio)


def dynamic_threshold(x_hat: Tensor, percentile: float) -> Tensor:
    """Imagen: clip each image to its own percentile of ``|x^|`` where that is over 1, and divide by it."""
    limit = torch.quantile(x_hat.abs().flatten(1), percentile, dim=1).clamp_min(1)[:, None, None, None]
    return x_hat.clamp(-limit, limit) / limit


def guided(conditional: Denoise, unconditional: Denoise | None, guidance: Guidance) -> Denoise:
    """A denoiser that is guided.

    Args:
        conditional: x^ given c.
        unconditional: x^ without c (classifier-free guidance) or a weaker network's x^ given c (autoguidance, Karras et
            al. 2024, arXiv 2406.02507); None when there is nothing to guide with.
    """
    low, high = guidance.interval

    def denoise(z: Tensor, sigma: float, stage: int) -> Tensor:
        x_hat = conditional(z, sigma, stage)
        if unconditional is not None and guidance.scale != 1 and low <= sigma <= high:
            plain = x_hat
            x_hat = cfg(plain, unconditional(z, sigma, stage), guidance.scale)
            if guidance.rescale:
                x_hat = rescale(x_hat, plain, guidance.rescale)
        return dynamic_threshold(x_hat, guidance.threshold) if guidance.threshold else x_hat

    return denoise
