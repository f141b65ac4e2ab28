"""Images are 8-bit: what that means for a density over real numbers, and for the last noise levels.

A density has no bits per dimension by itself: it can be made as high as one likes on 256 values. So the probability of
the 8-bit image is what is reported, as everywhere since Theis et al. (2016, arXiv 1511.01844). Here pixels are in
[-1, 1], and the 256 values a pixel can take are ``CELL`` apart.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

CELL = 2 / 255  # between neighbouring 8-bit values
FLOOR = CELL / 6  # three standard deviations of it are half a cell: noise that stays within an 8-bit value
_REACH = 6  # neighbouring values on each side that are looked at
_EDGE = 1 - CELL / 4  # beyond it a pixel is black or white


def round_to_bytes(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] space, each pixel at the nearest of its 256 values."""
    return ((x + 1) / CELL).round().clamp(0, 255) * CELL - 1


def on_grid(x_hat: Tensor, sigma: Tensor) -> Tensor:
    """A predicted clean image made better by what is known of every image: its pixels are 8-bit, in [-1, 1].

    The mean over the 256 values, seen through noise of sigma around ``x_hat``, clipped. It changes nothing above
    ``sigma = CELL`` and rounds at FLOOR. A bound on the likelihood holds for any denoiser, so also for this one.

    Args:
        x_hat: (B, C, h, w) in [-1, 1] space, at the finest resolution (pooled pixels are not 8-bit).
        sigma: (B,) or one number, over 0.
    """
    sigma = sigma.reshape(-1, 1, 1, 1).to(x_hat)
    place = (x_hat + 1) / CELL  # in cells
    nearest = place.round()
    spread = (sigma / CELL).clamp_max(1.0)  # beyond one cell the values lie too densely to be told apart
    away = place - nearest
    top, total = torch.zeros_like(place), torch.zeros_like(place)
    for step in range(-_REACH, _REACH + 1):
        weight = (-0.5 * ((away - step) / spread) ** 2).exp()
        top, total = top + weight * step, total + weight
    rounded = (nearest + top / total) * CELL - 1
    return torch.where(sigma < CELL, rounded, x_hat).clamp(-1, 1)


def reconstruction(x: Tensor, floor: float, eight_bit: bool) -> Tensor:
    """``E[-log p(x | z)]`` in nats, (B,), for ``z = x + floor e``: the bound's last term.

    8-bit: ``p(x | z)`` is proportional to ``N(z; x, floor^2)`` over the 256 values of each pixel (Kingma et al. 2021,
    arXiv 2107.00630, equation 8); exact for floors up to about a cell. Else ``N(x; z, floor^2)``, a density.
    """
    if not eight_bit:
        nats = 0.5 * x[0].numel() * (math.log(2 * math.pi * floor**2) + 1)
        return torch.full((len(x),), nats, dtype=torch.float64, device=x.device)
    inner, edge = _telling_apart(floor)
    at_edge = (x.abs() > _EDGE).flatten(1).double().sum(1)
    return at_edge * edge + (x[0].numel() - at_edge) * inner


@lru_cache
def _telling_apart(floor: float) -> tuple[float, float]:
    """Nats a pixel that noise of ``floor`` leaves open: with values on both sides, and at the edge (black, white)."""
    noise = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-0.5 * noise**2).exp()
    reach = max(_REACH, math.ceil(8 * floor / CELL) + 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    fits = -0.5 * (noise[:, None] - steps * CELL / floor) ** 2  # (noise, values)
    own = -0.5 * noise**2
    nats = [torch.logsumexp(fits[:, first:], 1) - own for first in (0, reach)]
    inner, edge = (float((density * one).sum() / density.sum()) for one in nats)
    return inner, edge


def dequantise(x: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """8-bit images as real numbers: x plus truncated normal noise of ``floor``, which stays within a pixel's cell.

    For u from it, ``-log P(x) <= E[log q(u | x) - log p(u)]`` (Zheng et al. 2023, arXiv 2305.03935, equation 13).
    Uniform noise costs a quarter of a bit a dimension more: the noise that a ladder ends in is normal.

    Args:
        x: (B, C, H, W), 8-bit values in [-1, 1] space.
        noise: standard normal, of the same shape.

    Returns:
        u of the shape of x, and ``log q(u | x)``, (B,) float64.
    """
    half = CELL / 2 / floor
    inside = math.erf(half / math.sqrt(2))
    # The quantile function maps what is normal to what is normal and truncated.
    uniform = torch.special.ndtr(noise.double()) * inside + (1 - inside) / 2
    truncated = torch.special.ndtri(uniform)
    log_q = -0.5 * truncated**2 - math.log(floor * inside * math.sqrt(2 * math.pi))
    return x + (floor * truncated).to(x), log_q.flatten(1).sum(1)
