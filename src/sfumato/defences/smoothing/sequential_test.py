"""A sequential test of the probability p of Bernoulli draws: its statements are valid at every stopping time.

Against the null hypothesis p <= q a gambler bets on each draw, at odds that are fair at p = q. Its wealth is an e-process:
under the null hypothesis it exceeds 1 / alpha *at any time* with a probability of at most alpha (Ville 1939), so
whoever sees it there may reject and stop. The wealth here is the mixture over all p > q,

    E_t(q) = integral_q^1 p^k (1 - p)^(t - k) w(p) dp  /  (q^k (1 - q)^(t - k)),      k hits in t draws,

with w the density of Beta(1/2, 1/2) truncated to p > q: the one-sided form of the bet of Krichevsky & Trofimov, which for a
level q near 1 needs about a quarter fewer draws than the whole of it. All q that are rejected form a confidence
sequence. See Waudby-Smith & Ramdas 2023 (arXiv 2010.09686) for betting, Darling & Robbins 1967 for mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln, xlog1py, xlogy
from scipy.stats import beta

_EVERY = 500  # draws up to which the wealth is looked at after each one
_SPACING = 1.002  # from one look to the next after that: stopping is late by a 500th at most
_HALVINGS = 60


def log_wealth(hits: ArrayLike, draws: ArrayLike, q: ArrayLike) -> np.ndarray:
    """``log E_t(q)`` after ``hits`` in ``draws``, against p <= q, with 0 < q < 1; broadcasts.

    Against p >= q it is ``log_wealth(draws - hits, draws, 1 - q)``.
    """
    hits, misses, q = np.asarray(hits), np.asarray(draws) - np.asarray(hits), np.asarray(q)
    a, b = hits + 0.5, misses + 0.5
    with np.errstate(divide="ignore"):  # no mass left beyond q: no wealth
        mixture = betaln(a, b) + np.log(betaincc(a, b, q))
    weight = betaln(0.5, 0.5) + np.log(betaincc(0.5, 0.5, q))
    return mixture - weight - xlogy(hits, q) - xlog1py(misses, -q)


def lower_confidence_bound(hits: ArrayLike, draws: ArrayLike, alpha: float) -> np.ndarray:
    """The lower confidence sequence of p: the largest q such that p <= q is rejected. At all times at once p exceeds it, but
    for a probability of alpha."""
    hits, draws = np.broadcast_arrays(np.asarray(hits, float), np.asarray(draws, float))
    low, high = np.zeros(hits.shape), hits / np.maximum(draws, 1)  # at the share of hits itself nothing is rejected
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = np.clip(middle, 1e-300, 1 - 1e-16)
        rejected = log_wealth(hits, draws, inside) >= -math.log(alpha)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def draws_needed(q: float, alpha: float) -> int:
    """How many draws, all of them hits, it takes to reject p <= q."""
    low, high = 0, 1
    while log_wealth(high, high, q) < -math.log(alpha):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log_wealth(middle, middle, q) >= -math.log(alpha) else (middle, high)
    return high


@dataclass(frozen=True)
class SequentialTest:
    """On which side of each level q_1 < ... < q_m is p? Stopping rule and statements.

    The levels are tested in turn: p > q_j is stated once the wealth against every level up to the j-th has reached
    1 / alpha. A false statement needs the wealth against the smallest level above p to get there, so the probability of
    one or more among *all* levels is at most alpha, without a correction for their number. p <= q_j is stated
    by the tests in the other direction, whose error is at most alpha in the same way.

    Attributes:
        levels: rising, each between 0 and 1.
        looks: (T,) the draws after which the wealth is looked at.
        enough: (m, T) hits from which on p > q_j is shown; more than there are draws where nothing can.
        few: (m, T) hits up to which p < q_j is shown; -1 where nothing can.
    """

    levels: tuple[float, ...]
    alpha: float
    looks: np.ndarray
    enough: np.ndarray
    few: np.ndarray

    @staticmethod
    @lru_cache(maxsize=8)
    def of(levels: tuple[float, ...], alpha: float, most: int) -> SequentialTest:
        """The test that ends after ``most`` draws at the latest."""
        looks = [*range(1, min(most, _EVERY) + 1)]
        while looks[-1] < most:
            looks.append(min(max(looks[-1] + 1, int(looks[-1] * _SPACING)), most))
        times = np.array(looks)
        enough = np.array([_least_hits(times, q, alpha) for q in levels])
        few = times - np.array([_least_hits(times, 1 - q, alpha) for q in levels])
        return SequentialTest(levels, alpha, times, enough, few)

    def crossings(self, hits: np.ndarray, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """When the wealth against p <= q_j and against p >= q_j first reached 1 / alpha.

        Args:
            hits: (..., g) hits so far at the looks ``first``, ``first + 1``, ...
            first: the number of the first of these looks.

        Returns:
            Two (..., m) arrays, for p > q_j and p < q_j: the number of draws, inf where it did not happen there.
        """
        span = slice(first, first + hits.shape[-1])
        return tuple(
            self._first(reached, span)
            for reached in (hits[..., None, :] >= self.enough[:, span], hits[..., None, :] <= self.few[:, span])
        )  # type: ignore[return-value]

    def _first(self, reached: np.ndarray, span: slice) -> np.ndarray:
        """(..., m, g) bool as the draws of the first True, (..., m)."""
        when = np.append(self.looks[span].astype(float), np.inf)
        return when[np.where(reached.any(-1), reached.argmax(-1), -1)]


def verdicts(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is stated, from the first crossings (..., m) of ``SequentialTest.crossings``.

    Returns:
        (..., m) int: 1 for p > q_j, -1 for p <= q_j, 0 for undecided; and (...) the draws after which the last of them
        was decided, inf where one was not.
    """
    above = np.maximum.accumulate(above, axis=-1)  # not before all lower levels
    below = np.minimum.accumulate(below, axis=-1)  # below one level is below all higher ones
    when = np.minimum(above, below)
    return np.where(np.isinf(when), 0, np.where(above < below, 1, -1)), when.max(-1)


class RunningTest:
    """A sequential test of one sequence of draws, as they come.

    Attributes:
        draws, hits: so far.
        verdicts: (m,) of the levels so far, as in ``verdicts``.
        decided: all levels are, or as many draws were made as may be.
    """

    def __init__(self, test: SequentialTest) -> None:
        self.test = test
        self.draws = self.hits = 0
        self.decided = False
        self.verdicts = np.zeros(len(test.levels), np.int64)
        self._look = 0  # the number of the next look
        self._above = self._below = np.full(len(test.levels), np.inf)

    def update(self, hits: np.ndarray) -> None:
        """More draws, (n,) bool; those after the decision are not used."""
        counts = self.hits + np.cumsum(hits)  # after each draw
        until = int(np.searchsorted(self.test.looks, self.draws + len(counts), side="right"))
        looks = self.test.looks[self._look : until]
        stop = math.inf
        if len(looks):
            above, below = self.test.crossings(counts[looks - self.draws - 1], self._look)
            self._above, self._below = np.minimum(self._above, above), np.minimum(self._below, below)
            self.verdicts, stop = verdicts(self._above, self._below)
        used = int(min(stop, self.test.looks[-1], self.draws + len(counts)))
        self.hits = int(counts[used - self.draws - 1])
        self.draws, self._look = used, until
        self.decided = used == stop or used == self.test.looks[-1]

    def lower_bound(self, alpha: float) -> float:
        """Of p, from the confidence sequence."""
        return float(lower_confidence_bound(self.hits, self.draws, alpha))


class FixedSample:
    """n draws, whatever they are, and the exact bound of p; ``verdicts`` states no level by itself."""

    def __init__(self, n: int, levels: Sequence[float] = ()) -> None:
        self.n = n
        self.draws = self.hits = 0
        self.decided = False
        self.verdicts = np.full(len(levels), -1)

    def update(self, hits: np.ndarray) -> None:
        """More draws, (n,) bool."""
        self.draws, self.hits = self.draws + len(hits), self.hits + int(hits.sum())
        self.decided = self.draws == self.n

    def lower_bound(self, alpha: float) -> float:
        """Of p, by Clopper & Pearson."""
        return clopper_pearson(self.hits, self.draws, alpha)


def clopper_pearson(hits: int, n: int, alpha: float) -> float:
    """The exact lower confidence bound of a probability, for n fixed beforehand (Clopper & Pearson 1934)."""
    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0


def _least_hits(draws: np.ndarray, q: float, alpha: float) -> np.ndarray:
    """For each number of draws (T,) the fewest hits that show p > q; one more than the draws where none do.

    Wealth rises with the hits, so that they are found by bisection.
    """
    low, high = np.floor(q * draws).astype(np.int64), draws + 1  # a share of q shows nothing
    while (high - low > 1).any():
        middle = (low + high) // 2
        shown = log_wealth(np.minimum(middle, draws), draws, q) >= -math.log(alpha)
        open_ = high - low > 1
        low, high = np.where(open_ & ~shown, middle, low), np.where(open_ & shown, middle, high)
    return high
