"""From probabilities to certified radii and back; lengths in units of pixels in [0, 1]."""

from __future__ import annotations

import math

from scipy.special import ndtr, ndtri


def l2_radius(sigma: float, p_lower: float, p_upper: float | None = None) -> float:
    """``sigma / 2 * (Phi^-1(p_lower) - Phi^-1(p_upper))`` (Cohen et al. 2019, theorem 1).

    ``p_upper`` bounds the other classes' probabilities, by default as ``1 - p_lower``. 0 where the bounds certify nothing,
    infinite for ``p_lower`` 1.
    """
    other = 1 - p_lower if p_upper is None else p_upper
    return 0.0 if p_lower <= other else float(sigma / 2 * (ndtri(p_lower) - ndtri(other)))


def probability(radius: float, sigma: float) -> float:
    """``Phi(radius / sigma)``: a class that is more probable than this has a larger L2 radius."""
    return float(ndtr(radius / sigma))


def linf_radius(l2: float, dimensions: int) -> float:
    """The Linf certificate that an L2 one implies: that ball's corners are ``sqrt(d)`` times as far away."""
    return l2 / math.sqrt(dimensions)


def l1_radius(l2: float) -> float:
    """The L1 certificate that an L2 one implies: the same number, for the L1 ball lies in the L2 ball."""
    return l2


def default_radii(sigma: float) -> tuple[float, ...]:
    """Half of sigma, one, one and a half, two: what a few hundred draws can certify."""
    return tuple(share * sigma for share in (0.5, 1.0, 1.5, 2.0))
