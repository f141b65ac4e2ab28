"""The sequential test: its wealth by exact sums, coverage and cost over thousands of simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom, norm

from sfumato.defences.smoothing.sequential_test import (
    RunningTest,
    SequentialTest,
    draws_needed,
    log_wealth,
    lower_confidence_bound,
    verdicts,
)

LEVELS = tuple(float(q) for q in norm.cdf([0, 0.5, 1, 1.5, 2]))


@pytest.mark.parametrize(
    ("hits", "draws", "q"), [(3, 4, 0.5), (18, 20, 0.8413), (40, 40, 0.9772), (5, 9, 0.7), (0, 3, 0.2)]
)
def test_wealth_is_the_mixture(hits: int, draws: int, q: float):
    """By quadrature, with p = sin^2 so that the density's ends are no trouble."""
    weight = float(beta.sf(q, 0.5, 0.5))

    def wealth(angle: float) -> float:
        p = math.sin(angle) ** 2
        return (p / q) ** hits * ((1 - p) / (1 - q)) ** (draws - hits) * 2 / math.pi / weight

    expected, _ = quad(wealth, math.asin(math.sqrt(q)), math.pi / 2)
    assert math.exp(float(log_wealth(hits, draws, q))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.5, 0.8413, 0.9772, 0.03])
def test_wealth_is_an_e_process(q: float):
    """Expected wealth, summed over all numbers of hits, is 1 at p = q at every time, and less below it."""
    for draws in (1, 2, 7, 40, 200):
        hits = np.arange(draws + 1)
        wealth = np.exp(log_wealth(hits, draws, q))
        assert np.dot(binom.pmf(hits, draws, q), wealth) == pytest.approx(1, rel=1e-9)
        assert np.dot(binom.pmf(hits, draws, 0.9 * q), wealth) < 1
        assert np.dot(binom.pmf(hits, draws, q + 0.3 * (1 - q)), wealth) > 1
        assert (np.diff(wealth[wealth > 0.1]) > 0).all()  # (what is less comes from tails beyond double precision)


def test_the_confidence_sequence_is_all_that_is_not_rejected():
    """Wealth falls with q where there is any: the rejected q are all those below a bound, where it is 1 / alpha."""
    hits, draws = np.array([20, 200, 990, 1000, 5000]), np.array([21, 260, 1000, 1000, 5100])
    q = np.linspace(1e-4, 1 - 1e-6, 4001)
    for k, t, bound in zip(hits, draws, lower_confidence_bound(hits, draws, 0.001), strict=True):
        found = log_wealth(k, t, q)
        assert ((found >= math.log(1000)) == (q <= bound)).all()
        assert log_wealth(k, t, bound) == pytest.approx(math.log(1000), abs=1e-6)
        assert bound < k / t
    assert lower_confidence_bound(0, 50, 0.001) == 0


@pytest.mark.parametrize("q", [0.5, 0.8413, 0.9772])
def test_draws_needed(q: float):
    found = draws_needed(q, 0.001)
    assert log_wealth(found, found, q) >= math.log(1000) > log_wealth(found - 1, found - 1, q)
    assert (
        math.log(1000) / -math.log(q) < found < 1.3 * math.log(1000) / -math.log(q)
    )  # no test needs fewer than the first


def test_tables_are_the_first_counts_that_show_something():
    test = SequentialTest.of(LEVELS, 0.01, 3000)
    assert test.looks[0] == 1 and test.looks[-1] == 3000 and (np.diff(test.looks) > 0).all()
    for j, q in enumerate(LEVELS):
        for t, enough, few in zip(test.looks[::37], test.enough[j, ::37], test.few[j, ::37], strict=True):
            if enough <= t:
                assert log_wealth(enough, t, q) >= math.log(100) > log_wealth(enough - 1, t, q)
            else:
                assert enough == t + 1 and log_wealth(t, t, q) < math.log(100)
            assert few == -1 or log_wealth(t - few, t, 1 - q) >= math.log(100)
            assert log_wealth(t - few - 1, t, 1 - q) < math.log(100)


def simulate(test: SequentialTest, p: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts (R, m) and draws (R,) of a run for each p, to its end."""
    steps = np.diff(test.looks, prepend=0)
    hits = np.random.default_rng(seed).binomial(steps, p[:, None]).cumsum(1)
    said, when = verdicts(*test.crossings(hits))
    return said, np.minimum(when, test.looks[-1])


@pytest.mark.parametrize(("alpha", "runs"), [(0.05, 1500), (0.001, 3000)])
def test_false_statements_are_rarer_than_alpha(alpha: float, runs: int):
    """At every level itself, where it is hardest, and between levels; over all levels at once, at any time up to 3000 draws."""
    test = SequentialTest.of(LEVELS, alpha, 3000)
    most = binom.ppf(0.9999, runs, alpha)  # of what a test that errs with exactly alpha would do
    shares = []
    for i, p in enumerate((*LEVELS, 0.6, 0.9)):
        said, _ = simulate(test, np.full(runs, p), i)
        true = p > np.array(LEVELS)
        above, below = ((said == 1) & ~true).any(1), ((said == -1) & true).any(1)
        assert above.sum() <= most and below.sum() <= most, p
        shares.append(float(above.mean()))
    assert max(shares) > alpha / 10  # nor is it so timid that it would never err
    sure, when = simulate(test, np.full(runs, 0.999), 9)
    assert (sure == 1).mean() > 1 - alpha and np.median(when) < 400
    never, when = simulate(test, np.full(runs, 0.3), 10)
    assert (never == -1).mean() > 1 - alpha and np.median(when) < 120


def test_as_cohens_100000_draws_at_a_fiftieth_of_them():
    """Over probabilities as a smoothed classifier has them: most near 1, some anywhere."""
    draw = np.random.default_rng(0)
    p = np.where(draw.random(1500) < 0.6, draw.beta(60, 0.3, 1500), draw.beta(2, 1, 1500))
    said, draws = simulate(SequentialTest.of(LEVELS, 0.001, 100_000), p, 1)
    hits = draw.binomial(100_000, p)
    bound = np.where(hits > 0, beta.ppf(0.001, hits, 100_000 - hits + 1), 0.0)
    cohen = bound[:, None] > np.array(LEVELS)
    different = (said == 1) != cohen
    near = np.abs(p[:, None] - np.array(LEVELS)) < 0.012  # not to be told apart with much less than 100,000 draws
    assert not (different & ~near).any()
    assert different.mean() < 0.005 and (said == 0).mean() < 0.01
    assert np.median(draws) <= 100_000 / 50
    assert np.median(draws) < 800


def test_draws_as_they_come_are_the_same_in_any_portions():
    test = SequentialTest.of(LEVELS, 0.01, 900)
    draw = np.random.default_rng(3)
    for p in (0.3, 0.62, 0.8413, 0.95, 1.0):
        hits = draw.random(900) < p
        said, when = verdicts(*test.crossings(hits.cumsum()[test.looks - 1]))
        expected = int(min(float(when), 900))
        for portion in (1, 13, 400, 900):
            running, at = RunningTest(test), 0
            while not running.decided:
                assert running.draws == at
                running.update(hits[at : at + portion])
                at += portion
            assert running.draws == expected and running.hits == hits[:expected].sum()
            assert running.verdicts.tolist() == said.tolist()
