"""What a certification is asked, and whether so many draws can show it at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sfumato.core.errors import InputError, nearest
from sfumato.defences.smoothing.radii import default_radii, l2_radius, probability
from sfumato.defences.smoothing.sequential_test import clopper_pearson, draws_needed, lower_confidence_bound

MODES = ("sequential", "cohen")


@dataclass(frozen=True)
class SmoothingSettings:
    """The settings of ``certify``; those that cannot certify what they ask for are refused before anything is drawn.

    (Otherwise every image abstains, after hours, when n is too small for alpha.)

    Args:
        sigma: standard deviation of the noise, of pixels in [0, 1].
        n0: draws that select the class.
        n: draws that estimate its probability; in sequential mode at most so many.
        alpha: probability, for each image and over all radii, that its certificate is wrong.
        mode: "sequential", which stops an image when each of its radii is certified or refuted, or "cohen", n draws.
        radii: L2 distances to decide about. None: half of sigma, sigma, one and a half, two, as far as n can reach.
        seed: of the noise.
        batch_size: draws in a pass; None: the classifier's, on a CPU no more than suit its cache. It changes no result.

    Raises:
        InputError: impossible settings; a radius that n draws which all agree do not certify. It says how many would.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    mode: str = "sequential"
    radii: Sequence[float] | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"unknown mode {self.mode!r}: {nearest(self.mode, MODES)}")
        if not 0 < self.sigma < float("inf"):
            problem = f"sigma {self.sigma:g} cannot smooth"
            raise InputError(f"{problem}: give a standard deviation over 0, of pixels in [0, 1]")
        if not 0 < self.alpha < 0.5:
            problem = f"alpha {self.alpha:g} is no error to allow"
            raise InputError(f"{problem}: give a number over 0 and below 0.5, such as 0.001")
        if self.n0 < 1 or self.n < 1:
            problem = f"{self.n0} noisy copies to select from (--n0) and {self.n} to estimate from (--samples)"
            raise InputError(f"{problem}: both must be 1 or more")
        if not all(0 < radius < float("inf") for radius in self.radii or ()):
            listed = ", ".join(f"{radius:g}" for radius in self.radii or ())
            raise InputError(f"radii {listed}: give L2 distances over 0, such as {self.sigma:g}")
        for radius in (*self.wanted[-1:], 0.0):
            self._check_reach(radius)

    @cached_property
    def reach(self) -> float:
        """The radius that n draws certify when all of them agree."""
        bound = clopper_pearson if self.mode == "cohen" else lower_confidence_bound
        return l2_radius(self.sigma, float(bound(self.n, self.n, self.alpha)))

    @cached_property
    def wanted(self) -> tuple[float, ...]:
        """The radii to decide about, rising."""
        if self.radii is not None:
            return tuple(sorted(set(self.radii)))
        usual = default_radii(self.sigma)
        return tuple(radius for radius in usual if radius < self.reach) or usual[:1]

    def _check_reach(self, radius: float) -> None:
        if self.reach > radius:
            return
        q = probability(radius, self.sigma)
        advice = []
        if 1 - q >= 1e-12:  # else beyond the numbers of draws that anyone could make
            cohen = self.mode == "cohen"
            n = math.floor(math.log(self.alpha) / math.log(q)) + 1 if cohen else draws_needed(q, self.alpha)
            advice.append(f"{n:,} noisy copies (--samples {n})")
        if self.reach:
            advice.append(f"a sigma of at least {_rounded_up(self.sigma * radius / self.reach)}")
        raise InputError(
            f"radius {radius:g} cannot be certified with sigma {self.sigma:g} and {self.n:,} noisy copies: where all of "
            f"them agree, that reaches {self.reach:.3g} at alpha {self.alpha:g}; give {' or '.join(advice)}"
        )


def _rounded_up(value: float) -> str:
    """To three digits, never below."""
    digits = 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:g}"
