"""``p(x) = integral p(x | z) p(z) dz`` as it stands: draw z, decode it, see whether x comes out. Why nobody does that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InputError

Draw = Callable[[int, int], Tensor]  # (number of the first, how many) -> (n, C, H, W)

SAMPLES = 1000
NOISE = 0.1  # standard deviation of p(x | z), in [0, 1] units
ENOUGH = 10  # samples that must count for their spread to tell of an error
_CHUNK = 128
_A_DOUBLING = 4  # running estimates for each doubling of the samples


class Integral(NamedTuple):
    """The running estimates."""

    counts: Tensor  # (T,) samples so far, the last is all
    nats: Tensor  # (T, B) float64, the estimate of -log p(x) after so many
    effective: Tensor  # (B,) how many of the samples carry the last estimate: (sum w)^2 / sum w^2

    @property
    def error(self) -> Tensor:
        """(B,) nats: the standard error that the samples themselves tell of; nan where fewer than 10 of them count.

        Such an estimate has not converged: it is too low a likelihood, and its spread no measure of how far off it is.
        """
        spread = (1 / self.effective - 1 / self.counts[-1]).clamp_min(0).sqrt()
        return spread.where(self.effective >= ENOUGH, torch.nan)


def integral(draw: Draw, x: Tensor, samples: int = SAMPLES, std: float = NOISE) -> Integral:
    """``-log mean_i N(x; Dec(z_i), std^2)`` over ``z_i ~ N(0, I)``, in log space.

    Its expectation is above ``-log p(x)`` for any number of samples (Jensen), and falls to it as they grow; the number
    that it takes grows exponentially with the dimension, since some ``Dec(z_i)`` must come within about ``std`` of x
    in every pixel (Theis et al. 2016, arXiv 1511.01844, section 3.2). p is the model's density blurred by ``std``.

    Args:
        draw: pictures of the model.
        x: (B, C, H, W) in the same units as what is drawn.
        samples: how many are drawn; they serve every x.
        std: the decoder's noise, in the same units.

    Raises:
        InputError: fewer than one sample, or noise that is not over 0.
    """
    if samples < 1 or not std > 0:
        raise InputError(f"{samples} samples and noise of {std}: both must be over 0")
    flat = x.double().flatten(1)
    constant = 0.5 * flat.shape[1] * math.log(2 * math.pi * std**2)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    squares = total.clone()
    counts, nats = [], []
    for first, after in zip([0, *(cuts := _cuts(samples))], cuts, strict=False):
        pictures = draw(first, after - first).to(flat).flatten(1)  # (n, D)
        fits = -0.5 * torch.cdist(flat, pictures).square() / std**2
        total = torch.logaddexp(total, fits.logsumexp(1))
        squares = torch.logaddexp(squares, (2 * fits).logsumexp(1))
        if after in _shown(samples):
            counts.append(after)
            nats.append(constant + math.log(after) - total)
    return Integral(torch.tensor(counts), torch.stack(nats), (2 * total - squares).exp())


def _shown(samples: int) -> list[int]:
    """The counts at which the running estimate is kept: about equally far apart in their logarithm."""
    most = math.ceil(_A_DOUBLING * math.log2(samples))
    return sorted({min(samples, round(2 ** (i / _A_DOUBLING))) for i in range(most + 1)} | {samples})


def _cuts(samples: int) -> list[int]:
    """Where the drawing is cut: at each count that is shown, and no chunk too large for the memory."""
    return sorted({*_shown(samples), *range(_CHUNK, samples, _CHUNK)})
