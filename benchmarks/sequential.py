"""The betting test against Cohen's 100,000 draws, on the images that ``benchmarks.certificates`` certified.

A certificate depends on an image through one number alone, the probability p that a noisy copy is given the class; so both
procedures are run on draws with such a p, many times. What is known of an image's p are the draws on which its certificate
stopped: each time another p is taken from its posterior (of Jeffreys' prior), so that an image whose few hundred draws all
agreed does not count as one whose draws always do. Verdicts on the class itself and at radii of half sigma to two sigma are
compared, and draws counted, without those that select (100 for both at most); one line a record of
``results/sequential.jsonl``. Takes seconds.

    .venv/bin/python -m benchmarks.sequential
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks import certificates, records
from sfumato.defences.smoothing.radii import default_radii, probability
from sfumato.defences.smoothing.sequential_test import SequentialTest, clopper_pearson, verdicts

NAME = "sequential"
COHEN = 100_000  # draws of Cohen et al. 2019
KEYS = ("data", "arm", "sigma", "seconds", "seed", "images", "alpha")


def compare(record: records.Record, repeats: int, numbers: np.random.Generator) -> dict[str, Any]:
    """Both procedures on the images of one record."""
    sigma, alpha = record["sigma"], record["alpha"]
    levels = (0.5, *(probability(radius, sigma) for radius in default_radii(sigma)))
    test = SequentialTest.of(levels, alpha, COHEN)
    seen, of = np.array(record["hits"]).T
    p = numbers.beta(seen + 0.5, of - seen + 0.5, (repeats, len(seen)))
    drawn = numbers.binomial(np.diff(test.looks, prepend=0), p[..., None], (*p.shape, len(test.looks)))
    hits = drawn.cumsum(-1)  # (repeats, images, looks)
    said, stop = verdicts(*test.crossings(hits))  # (repeats, images, radii), (repeats, images)
    bounds = {total: clopper_pearson(total, COHEN, alpha) for total in np.unique(hits[..., -1]).tolist()}
    bound = np.vectorize(bounds.__getitem__)(hits[..., -1])
    cohen = np.where(bound[..., None] > np.array(levels), 1, -1)
    truth = np.where(p[..., None] > np.array(levels), 1, -1)
    draws = np.minimum(stop, COHEN)
    return {
        **{key: record[key] for key in KEYS},
        "repeats": repeats,
        "agree": float((said == cohen).mean()),
        "sequential_certifies_more": float(((said == 1) & (cohen == -1)).mean()),
        "cohen_certifies_more": float(((said != 1) & (cohen == 1)).mean()),
        "undecided": float((said == 0).mean()),
        "false_certificates": {"sequential": _false(said, truth), "cohen": _false(cohen, truth)},
        "draws": {"median": float(np.median(draws)), "mean": float(draws.mean()), "p95": float(np.quantile(draws, 0.95))},
        "fewer": COHEN / float(np.median(draws)),
    }  # fmt: skip


def _false(said: np.ndarray, truth: np.ndarray) -> float:
    """The share of images with one false certificate or more: at most alpha."""
    return float(((said == 1) & (truth == -1)).any(-1).mean())


def table() -> str:
    """One row a record, as Markdown."""
    head = ("data", "arm", "sigma", "median draws", "fewer than 100,000", "mean", "same verdict", "undecided",
            "false (sequential / Cohen)")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for each in records.latest(records.read(NAME), KEYS):
        false = each["false_certificates"]
        cells = (each["data"], each["arm"], f"{each['sigma']:g}", f"{each['draws']['median']:,.0f}", f"{each['fewer']:,.0f} times",
                 f"{each['draws']['mean']:,.0f}", f"{each['agree']:.2%}", f"{each['undecided']:.2%}",
                 f"{false['sequential']:.3%} / {false['cohen']:.3%}")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="of both procedures on each image")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    numbers = np.random.default_rng(chosen.seed)
    for record in records.latest(records.read(certificates.NAME), certificates.KEYS):
        if "hits" in record:
            records.append(NAME, compare(record, chosen.repeats, numbers))
    print(table())


if __name__ == "__main__":
    main()
