"""Certified accuracy: four ways to a smoothed classifier, at equal seconds of training.

* plain: a classifier that never saw noise, smoothed as it is.
* noise: trained with the noise it is smoothed with (Cohen et al. 2019), for all of the seconds.
* denoised: the plain classifier behind sfumato's denoiser, one step at the noise level itself.
* tuned: the same, and the classifier fine-tuned on what the denoiser makes of noisy images (``harden --method denoised``).

The seconds of the last two hold those of the generator: what it leaves is the classifier's, of which fine-tuning takes most.
Each arm is certified at each sigma on the same test images, up to a radius of two sigma (farther out takes thousands of
draws where hundreds do, and the next sigma is better there); a line in ``results/certificates.jsonl`` is one of them, and
``table`` prints, for each radius, the best sigma of each arm (as the field reports it) with its 95 % interval. Training and
certifying that are there already are not done again. Fashion-MNIST, padded to 32x32, by default; CIFAR-10 by an ``.npz`` of it.

    .venv/bin/python -m benchmarks.certificates --seconds 1800 --generator-seconds 900 -n 500 --threads 1
    .venv/bin/python -m benchmarks.certificates --data cifar10.npz --seconds 900 --generator-seconds 600 --threads 1
    .venv/bin/python -m benchmarks.certificates table
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, records
from benchmarks.features import test_data, training_data
from benchmarks.trial import FASHION, runs_folder, train_apart, used_up
from sfumato.classifiers import Classifier, evaluate_classifier, load_classifier, training_steps
from sfumato.defences import certified_accuracy, certify, guaranteed_accuracy, hardening_steps
from sfumato.generator import Generator

NAME = "certificates"
ARMS = ("plain", "noise", "denoised", "tuned")
DENOISED = ("denoised", "tuned")  # arms with a generator
RADII = (0.25, 0.5, 0.75, 1.0)
SIGMAS = (0.25, 0.5)
PLAIN = 0.25  # of a tuned classifier's seconds, before it is tuned
KEYS = ("data", "arm", "sigma", "seconds", "generator_seconds", "seed", "images", "n", "alpha")


def generator_for(seconds: float, seed: int, threads: int, folder: Path, data: str = FASHION) -> Generator:
    """The ladder trained for so long; one that another benchmark trained is taken."""
    out = folder / f"ladder-{_prefix(data)}{round(seconds / 60, 2):g}min-seed{seed}-threads{threads}"
    train_apart("ladder", seconds, seed, threads, out, data=data)
    return Generator.from_pretrained(out, "cpu")


def plain_classifier(seconds: float, noise: float, seed: int, folder: Path, data: str = FASHION) -> Classifier:
    """A small classifier trained for so long, with noise or without."""
    train, test = training_data(data), test_data(data)
    out = folder / f"certificates-{_prefix(data)}{seconds:g}s-noise{noise:g}-seed{seed}"
    used_up(training_steps(train, out, minutes=seconds / 60, noise=noise, seed=seed, device="cpu", test=test))
    return load_classifier(out, "cpu")


def tuned_classifier(
    plain: Classifier, generator: Generator, sigma: float, seconds: float, seed: int, out: Path, data: str
) -> Classifier:
    """The plain classifier trained on for so long, on noisy images as the denoiser gives them."""
    used_up(hardening_steps(
        plain, training_data(data), out, method="denoised", eps=sigma, generator=generator, minutes=seconds / 60, seed=seed,
        test=test_data(data),
    ))  # fmt: skip
    return load_classifier(out, "cpu")


def measure(arm: str, sigma: float, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train the arm and certify it: one line of the results."""
    seed, seconds, prefix = chosen.seed, chosen.seconds, _prefix(chosen.data)
    generator, rest = None, seconds
    if arm in DENOISED:
        generator = generator_for(chosen.generator_seconds, seed, chosen.threads, folder, chosen.data)
        rest = seconds - chosen.generator_seconds
    if arm == "tuned" and generator is not None:
        plain = plain_classifier(PLAIN * rest, 0.0, seed, folder, chosen.data)
        out = folder / f"certificates-{prefix}{seconds:g}s-{chosen.generator_seconds:g}s-denoised{sigma:g}-seed{seed}"
        classifier = tuned_classifier(plain, generator, sigma, (1 - PLAIN) * rest, seed, out, chosen.data)
    else:
        classifier = plain_classifier(rest, sigma if arm == "noise" else 0.0, seed, folder, chosen.data)
    data = test_data(chosen.data)
    assert data.labels is not None
    rows = np.random.RandomState(0).permutation(len(data))[: chosen.images]  # the same for all arms and seeds
    labels = data.labels[rows].tolist()
    began = time.perf_counter()
    found = certify(
        classifier, data.pixels(rows), sigma=sigma, denoise=None if generator is None else generator.denoise,
        radii=[r for r in RADII if r <= 2 * sigma], n=chosen.n, alpha=chosen.alpha, seed=seed, ids=rows.tolist(),
    )  # fmt: skip
    spent = [each.n + each.selection for each in found]
    shares = {f"{radius:g}": certified_accuracy(found, labels, radius) for radius in (0.0, *RADII)}
    return {
        **dict(zip(KEYS, (data.name, arm, sigma, seconds, seconds - rest, seed, chosen.images, chosen.n, chosen.alpha),
                   strict=True)),
        "clean": evaluate_classifier(classifier, data).overall.value,
        "certified": {radius: share.to_json() for radius, share in shares.items()},
        "guaranteed": {radius: guaranteed_accuracy(share, chosen.alpha) for radius, share in shares.items()},
        "undecided": [sum(each.verdicts[j] is None for each in found) for j in range(len(found[0].radii))],
        "samples": {"median": float(np.median(spent)), "mean": float(np.mean(spent)), "p95": float(np.quantile(spent, 0.95))},
        "hits": [[each.hits, each.n] for each in found],
        "certifying_seconds": round(time.perf_counter() - began, 1),
        "machine": machine.describe(),
    }  # fmt: skip


def table() -> str:
    """For each budget the certified accuracy of each arm at each radius, at its best sigma, as Markdown."""
    found = records.latest(records.read(NAME), KEYS)
    budgets = list(dict.fromkeys(_budget(each) for each in found))
    lines = []
    for budget in budgets:
        lines += [budget, "", f"| | radius 0 | {' | '.join(f'{r:g}' for r in RADII)} |"]
        lines.append("|---" * (len(RADII) + 2) + "|")
        here = [each for each in found if _budget(each) == budget]
        for arm, seconds in sorted({(each["arm"], each["generator_seconds"]) for each in here}, key=_place):
            mine = [each for each in here if (each["arm"], each["generator_seconds"]) == (arm, seconds)]
            cells = [_cell(mine, f"{radius:g}") for radius in (0.0, *RADII)]
            lines.append(f"| {arm}{f', generator {seconds:g} s' if seconds else ''} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _budget(record: records.Record) -> str:
    return (
        f"{record['data']}: {record['seconds']:g} s of training, {record['images']} images, at most {record['n']:,} draws, "
        f"alpha {record['alpha']:g}, seed {record['seed']}:"
    )


def _place(row: tuple[str, float]) -> tuple[int, float]:
    return ARMS.index(row[0]), row[1]


def _prefix(data: str) -> str:
    """Of the names of folders; none for what most benchmarks use."""
    return "" if data == FASHION else f"{test_data(data).name}-"


def _cell(mine: list[records.Record], radius: str) -> str:
    """The best sigma's share."""
    best = max(mine, key=lambda each: each["certified"][radius]["accuracy"])
    share = best["certified"][radius]
    return f"{share['accuracy']:.1%} ({share['low']:.1%} to {share['high']:.1%}; sigma {best['sigma']:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--data", default=FASHION, help="32x32, or padded to it")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--sigmas", nargs="+", type=float, default=SIGMAS)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of training, for each arm")
    parser.add_argument("--generator-seconds", type=float, default=900.0, help="of those, the generator's")
    parser.add_argument("-n", "--images", type=int, default=500)
    parser.add_argument("--samples", dest="n", type=int, default=100_000, help="draws an image, at most")
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="0: torch's choice")
    parser.add_argument("--runs", help="where models are kept")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    chosen = parser.parse_args()
    if chosen.generator_seconds >= chosen.seconds:
        parser.error("--generator-seconds must leave some of --seconds to the classifier")
    if chosen.part == "measure":
        machine.set_threads(chosen.threads)
        if chosen.threads == 1:
            machine.count_processor_seconds()
        folder = runs_folder(chosen.runs)
        folder.mkdir(parents=True, exist_ok=True)
        for arm in chosen.arms:
            for sigma in chosen.sigmas:
                wanted = {key: getattr(chosen, key) for key in KEYS[3:]} | {"data": test_data(chosen.data).name}
                wanted["generator_seconds"] = chosen.generator_seconds if arm in DENOISED else 0.0
                if chosen.again or not records.has(records.read(NAME), arm=arm, sigma=sigma, **wanted):
                    record = measure(arm, sigma, chosen, folder)
                    records.append(NAME, record)
                    shares = ", ".join(f"{r} {s['accuracy']:.1%}" for r, s in record["certified"].items())
                    print(f"{arm} sigma {sigma:g}: {shares}; {record['samples']['median']:.0f} draws", flush=True)
    print(table())


if __name__ == "__main__":
    main()
