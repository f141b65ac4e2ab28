"""Betting on the probability p of yes-or-no draws: claims about p that stay valid whenever one chooses to stop.

Against the claim "p <= q" a player starts with 1 and bets on every draw, at odds that would be fair or worse if the claim
were true. The capital then exceeds 1 / alpha *at any time* with a probability of at most alpha (Ville 1939), so
whoever reaches it may say "p > q" and go. Here the capital is a mixture over all p on the other side of q,

    E_t(q) = integral_q^1 p^k (1 - p)^(t - k) w(p) dp  /  (q^k (1 - q)^(t - k)),      k hits in t draws,

with w the density of Beta(1/2, 1/2) cut off at q: the one-sided form of the bet of Krichevsky & Trofimov, which behind
a level q near 1 needs about a quarter fewer draws than the whole of it. See Waudby-Smith & Ramdas 2023 (arXiv 2010.09686)
for betting, and Darling & Robbins 1967 for mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln, xlog1py, xlogy

_EVERY = 500  # draws up to which the capital is looked at after each one
_SPACING = 1.002  # from one look to the next after that: stopping is late by a 500th at most
_HALVINGS = 60


def log_evidence(hits: ArrayLike, draws: ArrayLike, q: ArrayLike) -> np.ndarray:
    """``log E_t(q)``: what ``hits`` of ``draws`` say for p > q and against p <= q, with 0 < q < 1; broadcasts.

    Evidence for p < q is ``log_evidence(draws - hits, draws, 1 - q)``.
    """
    hits, misses, q = np.asarray(hits), np.asarray(draws) - np.asarray(hits), np.asarray(q)
    a, b = hits + 0.5, misses + 0.5
    with np.errstate(divide="ignore"):  # no mass left beyond q: no evidence
        mixture = betaln(a, b) + np.log(betaincc(a, b, q))
    weight = betaln(0.5, 0.5) + np.log(betaincc(0.5, 0.5, q))
    return mixture - weight - xlogy(hits, q) - xlog1py(misses, -q)


def lower_bound(hits: ArrayLike, draws: ArrayLike, alpha: float) -> np.ndarray:
    """The largest q below which all claims "p <= q" are refuted: p is at least that, at all times at once, but for alpha."""
    hits, draws = np.broadcast_arrays(np.asarray(hits, float), np.asarray(draws, float))
    low, high = np.zeros(hits.shape), hits / np.maximum(draws, 1)  # at the share of hits itself there is no evidence
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = np.clip(middle, 1e-300, 1 - 1e-16)
        refuted = log_evidence(hits, draws, inside) >= -math.log(alpha)
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low


def draws_needed(q: float, alpha: float) -> int:
    """How many draws, all of them hits, it takes to say p > q."""
    low, high = 0, 1
    while log_evidence(high, high, q) < -math.log(alpha):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log_evidence(middle, middle, q) >= -math.log(alpha) else (middle, high)
    return high


@dataclass(frozen=True)
class SequentialTest:
    """Which side of each level q_1 < ... < q_m is p on? When to stop, and what may then be said.

    The levels are gone through in turn: "p > q_j" may be said once every capital up to the j-th has been at 1 / alpha. A
    false statement then needs the capital against the smallest level above p to get there, so one of them or more
    among *all* levels has a probability of at most alpha, with no correction for their number. "p <= q_j" is said by
    the bets on the other side, whose error is at most alpha in the same way.

    Attributes:
        levels: rising, each between 0 and 1.
        looks: (T,) the draws after which the capital is looked at.
        enough: (m, T) hits from which on "p > q_j" is shown; more than there are draws where nothing can.
        few: (m, T) hits up to which "p < q_j" is shown; -1 where nothing can.
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
        """When the capitals for and against each level first got to 1 / alpha.

        Args:
            hits: (..., g) hits so far at the looks ``first``, ``first + 1``, ...
            first: the number of the first of these looks.

        Returns:
            Two (..., m) arrays, for "p > q" and "p < q": the number of draws, inf where it did not happen there.
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
    """What may be said, from the first crossings (..., m) of ``SequentialTest.crossings``.

    Returns:
        (..., m) int: 1 for p > q_j, -1 for p <= q_j, 0 for undecided; and (...) the draws after which the last of them
        was decided, inf where one was not.
    """
    above = np.maximum.accumulate(above, axis=-1)  # not before all lower levels
    below = np.minimum.accumulate(below, axis=-1)  # below one level is below all higher ones
    when = np.minimum(above, below)
    return np.where(np.isinf(when), 0, np.where(above < below, 1, -1)), when.max(-1)


class Bets:
    """One sequence of draws under a test, as it comes in."""

    def __init__(self, test: SequentialTest) -> None:
        self.test = test
        self.draws = self.hits = 0
        self.look = 0  # the number of the next look
        self.above = self.below = np.full(len(test.levels), np.inf)
        self.verdict = np.zeros(len(test.levels), np.int64)

    def add(self, draws: Sequence[bool] | np.ndarray) -> bool:
        """More draws; True once all is decided, or as many draws were made as may be. What came after that is not used."""
        counts = self.hits + np.cumsum(draws)  # after each draw
        until = int(np.searchsorted(self.test.looks, self.draws + len(counts), side="right"))
        looks = self.test.looks[self.look : until]
        stop = math.inf
        if len(looks):
            above, below = self.test.crossings(counts[looks - self.draws - 1], self.look)
            self.above, self.below = np.minimum(self.above, above), np.minimum(self.below, below)
            self.verdict, stop = verdicts(self.above, self.below)
        used = int(min(stop, self.test.looks[-1], self.draws + len(counts)))
        self.hits = int(counts[used - self.draws - 1])
        self.draws, self.look = used, until
        return used == stop or used == self.test.looks[-1]


def _least_hits(draws: np.ndarray, q: float, alpha: float) -> np.ndarray:
    """For each number of draws (T,) the fewest hits that show p > q; one more than the draws where none do.

    Evidence rises with the hits, so that they are found by halving.
    """
    low, high = np.floor(q * draws).astype(np.int64), draws + 1  # a share of q is no evidence
    while (high - low > 1).any():
        middle = (low + high) // 2
        shown = log_evidence(np.minimum(middle, draws), draws, q) >= -math.log(alpha)
        open_ = high - low > 1
        low, high = np.where(open_ & ~shown, middle, low), np.where(open_ & shown, middle, high)
    return high
