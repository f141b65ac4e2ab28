"""The sequential test against Cohen's 100,000 draws, on the images that `python -m benchmarks certificates` certified.

A certificate depends on an image through one number alone, the probability p that a noisy copy is given the class; so both
procedures are run on draws with such a p, many times. What is known of an image's p are the draws on which its certificate
stopped: each time another p is taken from its posterior (of Jeffreys' prior), so that an image whose few hundred draws all
agreed does not count as one whose draws always do. Verdicts on the class itself and at radii of half sigma to two sigma are
compared, and draws counted, without those that select the class (100 for both at most). Takes seconds.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import certificates
from benchmarks.base import record
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, rows
from sfumato.defences.smoothing.radii import default_radii, probability
from sfumato.defences.smoothing.sequential_test import SequentialTest, clopper_pearson, verdicts

NAME = "sequential"
COMMANDS = ("sequential",)
COHEN = 100_000  # draws of Cohen et al. 2019
KEYS = ("data", "arm", "sigma", "seconds", "seed", "images", "alpha")
NOTES = """\
50 times on each image. A fiftieth of the draws was asked for, by the median: met in all rows. The mean, which sets the time, is
6 to 24 times fewer. What differs is undecided after 100,000 draws, at probabilities next to a level; alpha allows 0.1% false."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=50, help="of both procedures on each image")


def run(chosen: argparse.Namespace) -> None:
    numbers = np.random.default_rng(chosen.seeds[0])
    for each in record.latest(record.read(certificates.NAME), certificates.KEYS):
        if "hits" in each:
            record.append(NAME, compare(each, chosen.repeats, numbers))
    print("\n\n".join(page()))


def compare(found: Record, repeats: int, numbers: np.random.Generator) -> Record:
    """Both procedures on the images of one record."""
    sigma, alpha = found["sigma"], found["alpha"]
    levels = (0.5, *(probability(radius, sigma) for radius in default_radii(sigma)))
    test = SequentialTest.of(levels, alpha, COHEN)
    seen, of = np.array(found["hits"]).T
    p = numbers.beta(seen + 0.5, of - seen + 0.5, (repeats, len(seen)))
    drawn = numbers.binomial(np.diff(test.looks, prepend=0), p[..., None], (*p.shape, len(test.looks)))
    hits = drawn.cumsum(-1)  # (repeats, images, looks)
    decided, stop = verdicts(*test.crossings(hits))  # (repeats, images, radii), (repeats, images)
    bounds = {total: clopper_pearson(total, COHEN, alpha) for total in np.unique(hits[..., -1]).tolist()}
    bound = np.vectorize(bounds.__getitem__)(hits[..., -1])
    cohen = np.where(bound[..., None] > np.array(levels), 1, -1)
    truth = np.where(p[..., None] > np.array(levels), 1, -1)
    draws = np.minimum(stop, COHEN)
    spent = {"median": np.median(draws), "mean": draws.mean(), "p95": np.quantile(draws, 0.95)}
    return {
        **{key: found[key] for key in KEYS},
        "repeats": repeats,
        "agree": float((decided == cohen).mean()),
        "sequential_certifies_more": float(((decided == 1) & (cohen == -1)).mean()),
        "cohen_certifies_more": float(((decided != 1) & (cohen == 1)).mean()),
        "undecided": float((decided == 0).mean()),
        "false_certificates": {"sequential": _false(decided, truth), "cohen": _false(cohen, truth)},
        "draws": {name: float(value) for name, value in spent.items()},
        "fewer": COHEN / float(np.median(draws)),
    }


def _false(decided: np.ndarray, truth: np.ndarray) -> float:
    """The share of images with one false certificate or more: at most alpha."""
    return float(((decided == 1) & (truth == -1)).any(-1).mean())


def page() -> list[str]:
    head = """data | arm | sigma | median draws | fewer than 100,000 | mean | same verdict | undecided | false (sequential)
        | false (Cohen)"""
    row = """{data} | {arm} | {sigma:g} | {draws[median]:,.0f} | {fewer:,.0f} times | {draws[mean]:,.0f} | {agree:.2%}
        | {undecided:.2%} | {false_certificates[sequential]:.3%} | {false_certificates[cohen]:.3%}"""
    return [rows(head, row, record.latest(record.read(NAME), KEYS))]


def claims() -> list[Claim]:
    found = record.latest(record.read(NAME), KEYS)
    fewer, agree = ([each[key] for each in found] for key in ("fewer", "agree"))
    fewer_mean = [COHEN / each["draws"]["mean"] for each in found]
    number = f"{min(fewer):.0f} to {max(fewer):.0f} times fewer (median), {min(fewer_mean):.0f} to {max(fewer_mean):.0f} (mean)"
    same = f"same verdict in {min(agree):.2%} to {max(agree):.2%} over {len(found)} settings"
    return [Claim("noisy copies for a certificate", number, same, "100,000 draws (Cohen et al. 2019)", NAME)]
