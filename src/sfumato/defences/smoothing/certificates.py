"""Certificates of a smoothed classifier: radii, how sure they are, and how many of them reach a radius.

Smoothed by Gaussian noise of standard deviation sigma, a classifier that says c with probability ``p_A`` or more, and any
other class with ``p_B`` or less, says c everywhere within the L2 distance (Cohen et al. 2019, theorem 1)

    R = sigma / 2 * (Phi^-1(p_A) - Phi^-1(p_B)),

which with ``p_B = 1 - p_A`` is ``sigma * Phi^-1(p_A)``. Sizes are in units of pixels in [0, 1], and the perturbed image
need not lie in [0, 1] itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from sfumato.classifiers import Accuracy
from sfumato.core.errors import InputError, nearest
from sfumato.defences.smoothing.sequential_test import draws_needed, lower_bound

ABSTAIN = -1
MODES = ("sequential", "cohen")
DOUBT = 0.001  # of the number of true certificates among those that were given


@dataclass(frozen=True)
class Certificate:
    """What is known of the smoothed classifier around one image; wrong in any of it with a probability of at most alpha.

    Attributes:
        label: the class that it says, ``ABSTAIN`` (-1) where that is not certain.
        radius: within this L2 distance it says the same; 0 where it abstains, or is sure of no more than the image itself.
        n: draws from which the probability was estimated.
        p_lower: the probability of ``selected`` is at least this; in sequential mode at whatever time one stops.
        selected: the most frequent class of the first draws.
        hits: how many of the n draws said ``selected``.
        selection: draws it took to select.
        radii: that were asked for.
        verdicts: for each, whether it is certified; None where the draws did not suffice to tell.
    """

    label: int
    radius: float
    n: int
    p_lower: float
    selected: int
    hits: int
    selection: int
    radii: tuple[float, ...]
    verdicts: tuple[bool | None, ...]


def l2_radius(sigma: float, p_lower: float, p_upper: float | None = None) -> float:
    """Cohen's R; ``p_upper`` bounds the other classes' probability, and is ``1 - p_lower`` where nothing better is known.

    0 where the bounds certify nothing, infinite for ``p_lower`` 1.
    """
    other = 1 - p_lower if p_upper is None else p_upper
    if p_lower <= other:
        return 0.0
    return float(sigma / 2 * (ndtri(p_lower) - ndtri(other)))


def linf_radius(l2: float, dimensions: int) -> float:
    """The Linf certificate that follows from an L2 one: that ball's corners are ``sqrt(d)`` times as far off."""
    return l2 / math.sqrt(dimensions)


def l1_radius(l2: float) -> float:
    """The L1 certificate that follows from an L2 one: the same number, for the L1 ball lies in the L2 ball."""
    return l2


def level(radius: float, sigma: float) -> float:
    """The probability over which a class must be for its radius to be more than this."""
    return float(ndtr(radius / sigma))


def clopper_pearson(hits: int, n: int, alpha: float) -> float:
    """The exact lower bound of a probability: wrong with one of at most alpha (Clopper & Pearson 1934)."""
    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0


# -- before anything is drawn -----------------------------------------------------------------------------------------


def default_radii(sigma: float) -> tuple[float, ...]:
    """Half of sigma, one, one and a half, two: what a few hundred draws can certify."""
    return tuple(share * sigma for share in (0.5, 1.0, 1.5, 2.0))


def check_settings(sigma: float, radii: Sequence[float], alpha: float, n0: int, n: int, mode: str) -> tuple[float, ...]:
    """The radii in order; InputError for settings that cannot be, or a radius that they cannot reach."""
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}: {nearest(mode, MODES)}")
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma {sigma:g} cannot smooth: give a standard deviation over 0, of pixels in [0, 1]")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha:g} is no error to allow: give a number over 0 and below 0.5, such as 0.001")
    if n0 < 1 or n < 1:
        raise InputError(
            f"{n0} noisy copies to select from (--n0) and {n} to estimate from (--samples): both must be 1 or more"
        )
    if not all(0 < radius < float("inf") for radius in radii):
        raise InputError(f"radii {_listed(radii)}: give L2 distances over 0, such as {sigma:g}")
    wanted = tuple(sorted(set(radii)))
    if wanted:
        check_reach(wanted[-1], sigma, alpha, n, mode)
    return wanted


def check_reach(radius: float, sigma: float, alpha: float, n: int, mode: str) -> None:
    """InputError where even n draws that all agree do not certify this radius; it says how many, or which sigma, would.

    (Without this check all images abstain, after hours, when n is too small for alpha.)
    """
    most = reach(sigma, alpha, n, mode)
    if most > radius:
        return
    q = level(radius, sigma)
    sigmas = f"a sigma of at least {_rounded_up(sigma * radius / most)}" if most else ""
    if 1 - q < 1e-12:  # beyond the numbers of draws that anyone could make
        needed = ""
    elif mode == "cohen":
        needed = _copies(math.floor(math.log(alpha) / math.log(q)) + 1)
    else:
        needed = _copies(draws_needed(q, alpha))
    advice = " or ".join(part for part in (needed, sigmas) if part)
    raise InputError(f"radius {radius:g} cannot be certified with sigma {sigma:g} and {n:,} noisy copies: where all of "
                     f"them agree, that reaches {most:.3g} at alpha {alpha:g}; give {advice}")  # fmt: skip


def _copies(n: int) -> str:
    return f"{n:,} noisy copies (--samples {n})"


def reach(sigma: float, alpha: float, n: int, mode: str) -> float:
    """The radius that n draws certify when all of them agree."""
    bound = clopper_pearson(n, n, alpha) if mode == "cohen" else float(lower_bound(n, n, alpha))
    return l2_radius(sigma, bound)


# -- afterwards -------------------------------------------------------------------------------------------------------


def certified(certificates: Sequence[Certificate], y: Sequence[int], radius: float) -> Accuracy:
    """The share of images whose class is certified, rightly named, at this L2 distance (0: named without abstaining).

    Its interval is that of the images as a draw from all; see ``guaranteed`` for these images.
    """
    found = [each.label == label and each.radius >= radius for each, label in zip(certificates, y, strict=True)]
    return Accuracy(sum(found), len(found))


def guaranteed(accuracy: Accuracy, alpha: float, doubt: float = DOUBT) -> float:
    """The share of *these* images that is truly robust, at least, but for a probability of ``doubt``.

    Each certificate is wrong with a probability of at most alpha, so that no more of N are wrong than a binomial
    quantile says (the exact form of the correction in Cohen et al. 2019, appendix).
    """
    wrong = int(binom.ppf(1 - doubt, accuracy.count, alpha))
    return max(0, accuracy.correct - wrong) / accuracy.count


def certified_curve(certificates: Sequence[Certificate], y: Sequence[int], radii: np.ndarray) -> list[Accuracy]:
    """``certified`` at each of the radii."""
    return [certified(certificates, y, float(radius)) for radius in radii]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _rounded_up(value: float) -> str:
    """To three digits, never below."""
    digits = 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:g}"
