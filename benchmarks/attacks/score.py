"""AttackBench's optimality of a minimal-norm attack (Cina et al. 2025, arXiv 2404.19460)."""

from __future__ import annotations

from torch import Tensor


def best_known(distances: Tensor) -> Tensor:
    """(A, B) distances of A attacks, infinite where one found nothing, to the smallest of each sample, (B,)."""
    return distances.amin(0)


def optimality(distances: Tensor, best: Tensor, clean: float = 1.0) -> float:
    """1 where an attack is as near as the best known one on every sample, 0 where it finds nothing below the farthest of them.

    With the robust accuracy ``rho(eps)``, the share of samples whose distance is over eps, and ``A`` the area under it
    up to the largest of the best distances d: ``1 - (A - A_best) / (rho(0) d - A_best)``.

    Args:
        distances: (B,) of the attack, of the samples that are classified rightly; infinite where it found nothing.
        best: (B,) the best known ones.
        clean: accuracy without attack; where it is below 1, the samples that are wrong from the start are in no list.
    """
    known = best[best.isfinite()]
    if not len(known) or float(known.max()) == 0:
        return 1.0
    farthest = known.double().max()
    # The area under a falling staircase of equal steps is the mean of where the steps are.
    area = clean * distances.double().clamp(max=farthest).mean()
    area_best = clean * best.double().clamp(max=farthest).mean()
    room = clean * farthest - area_best
    return float(1 - (area - area_best) / room) if float(room) > 0 else 1.0
