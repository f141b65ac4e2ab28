"""Learning-rate schedules: from the share of the budget that is used up to a learning rate."""

from __future__ import annotations

import math


def warmup(fraction: float, length: float) -> float:
    """A linear rise to 1 over the first ``length`` of the budget."""
    return min(1.0, (fraction + 1e-3) / length) if length else 1.0


def trapezoid(rate: float, fraction: float, *, rise: float, decay: float) -> float:
    """Warm-up over ``rise`` of the budget, a plateau, and a linear decay to 0 over the last ``decay`` of it."""
    fall = min(1.0, (1 - min(fraction, 1)) / decay) if decay else 1.0
    return rate * min(warmup(fraction, rise), fall)


def cosine(rate: float, fraction: float, *, rise: float) -> float:
    """Warm-up over ``rise`` of the budget, and half a cosine down to 0 at its end (Loshchilov & Hutter 2017)."""
    return rate * warmup(fraction, rise) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


def anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from one number to another; ``share`` of the way is done."""
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
