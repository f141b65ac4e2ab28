"""Certified accuracy: four ways to a smoothed classifier, at equal seconds of training.

* plain: a classifier that never saw noise, smoothed as it is.
* noise: trained with the noise it is smoothed with (Cohen et al. 2019), for all of the seconds.
* denoised: the plain classifier behind sfumato's denoiser, one step at the noise level itself.
* tuned: the same, and the classifier fine-tuned on what the denoiser makes of noisy images (`harden --method denoised`).

The seconds, of the processor on one thread, are those of **all** of an arm's training: the last two hold those of the
generator; what it leaves is the classifier's, of which fine-tuning takes three quarters. Each arm is certified at each sigma on
the same test images, up to a radius of two sigma (farther out takes thousands of draws where hundreds do, and the next sigma is
better there). Fashion-MNIST, padded to 32x32; CIFAR-10 by an `.npz` file of it, as `sfumato data check` reads it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms.classifiers import hardened, trained
from benchmarks.base import record, trial
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, between, grid, percent
from benchmarks.features import images
from sfumato.classifiers import Classifier, evaluate_classifier
from sfumato.defences import certified_accuracy, certify, guaranteed_accuracy
from sfumato.generator import Generator

NAME = "certificates"
COMMANDS = (
    "certificates -n 100 --samples 5000 --seconds 420 --generator-seconds 300",
    "certificates -n 100 --samples 5000 --seconds 420 --generator-seconds 60 --arms tuned",
    "certificates -n 100 --samples 5000 --data CIFAR10.npz --seconds 900 --generator-seconds 600 --arms noise tuned",
)
ARMS = ("noise", "denoised", "tuned", "plain")
SHOWN = (*ARMS[:3], "tuned, older loop", "plain")
DENOISED = ("denoised", "tuned")  # arms with a generator
RADII = (0.25, 0.5, 0.75, 1.0)
SIGMAS = (0.25, 0.5)
PLAIN = 0.25  # of a tuned classifier's seconds, before it is tuned
SETTING = ("data", "seed", "images", "n", "alpha")
KEYS = (*SETTING, "arm", "sigma", "seconds", "generator_seconds")
NOTES = """\
One seed, 100 test images (intervals are ± 8 to 10 points), alpha 0.001, at most 5,000 draws an image; what is undecided by
then (1 to 11 images at a radius) counts as not certified. `plain` is for comparison: the classifier alone, 120 and 240 s.

**"Ours above the noise-trained classifier at equal seconds" is not shown.** On Fashion-MNIST the tuned classifier is ahead by 3
points at 0.25 and by 4 at 0.75, level at 1 and behind by 5 at 0.5; on CIFAR-10 it is behind by 3, 7 and 4 points and ahead by 1.
All of it is within the intervals of 100 images. The better the denoiser, the better the tuned classifier (300 against 60 s of
generator), so longer budgets should favour ours: not measured. What a generator costs is paid once for any number of classifiers
and sigmas, which equal seconds do not count. With the generator paid for, 120 s of classifier reach what 420 s of training with
noise do. The benchmark now splits a tuned classifier's seconds 1 to 3; the row with 300 s of generator is from before (60 + 60
s). `tuned, older loop` is from a plain fine-tuning loop that `harden --method denoised` has replaced: averaged weights and a
higher learning rate make the difference. On CIFAR-10 `denoised` without tuning was not measured."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=trial.FASHION, help="padded to 32x32")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--sigmas", nargs="+", type=float, default=SIGMAS)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of training, for each arm")
    parser.add_argument("--generator-seconds", type=float, default=900.0, help="of those, the generator's")
    parser.add_argument("-n", "--images", type=int, default=500)
    parser.add_argument("--samples", dest="n", type=int, default=100_000, help="draws an image, at most")
    parser.add_argument("--alpha", type=float, default=0.001)


def run(chosen: argparse.Namespace) -> None:
    if chosen.generator_seconds >= chosen.seconds:
        raise SystemExit("--generator-seconds must leave some of --seconds to the classifier")
    chosen.runs.mkdir(parents=True, exist_ok=True)
    trials = [(seed, arm, sigma) for seed in chosen.seeds for arm in chosen.arms for sigma in chosen.sigmas]
    for seed, arm, sigma in trials:
        key = {key: getattr(chosen, key) for key in ("images", "n", "alpha", "seconds")} | {"arm": arm, "sigma": sigma}
        key |= {"data": images(chosen.data, "test").name, "seed": seed}
        key["generator_seconds"] = chosen.generator_seconds if arm in DENOISED else 0.0
        record.once(NAME, key, chosen.again, lambda key=key: measure(chosen.data, key, chosen.runs))


def prefix(name: str) -> str:
    """Of the names of folders; none for what most benchmarks use."""
    return "" if name == trial.FASHION else f"{images(name, 'test').name}-"


def generator_for(name: str, seconds: float, seed: int, runs: Path) -> Generator:
    """The ladder trained for so long; one that another benchmark trained is taken."""
    import torch

    out = runs / f"ladder-{prefix(name)}{round(seconds / 60, 2):g}min-seed{seed}-threads{torch.get_num_threads()}"
    trial.train_apart("ladder", seconds, seed, out, data=name)
    return Generator.from_pretrained(out, "cpu")


def plain_classifier(name: str, seconds: float, seed: int, runs: Path, noise: float = 0.0) -> Classifier:
    """A small classifier trained for so long, with noise or without."""
    out = runs / f"certificates-{prefix(name)}{seconds:g}s-noise{noise:g}-seed{seed}"
    return trained((images(name), images(name, "test")), out, seconds, seed, noise)


def arm_of(name: str, key: Record, runs: Path) -> tuple[Classifier, Generator | None]:
    """The arm's classifier and, where it has one, its generator."""
    arm, seed, sigma = key["arm"], key["seed"], key["sigma"]
    rest = key["seconds"] - key["generator_seconds"]
    if arm not in DENOISED:
        return plain_classifier(name, rest, seed, runs, sigma if arm == "noise" else 0.0), None
    generator = generator_for(name, key["generator_seconds"], seed, runs)
    if arm == "denoised":
        return plain_classifier(name, rest, seed, runs), generator
    plain = plain_classifier(name, PLAIN * rest, seed, runs)
    place = f"certificates-{prefix(name)}{key['seconds']:g}s-{key['generator_seconds']:g}s-denoised{sigma:g}-seed{seed}"
    how = {"method": "denoised", "eps": sigma, "generator": generator}
    sets = images(name), images(name, "test")
    return hardened(plain, sets, runs / place, (1 - PLAIN) * rest, seed, **how), generator


def measure(name: str, key: Record, runs: Path) -> Record:
    """Train the arm and certify it."""
    classifier, generator = arm_of(name, key, runs)
    data, sigma = images(name, "test"), key["sigma"]
    assert data.labels is not None
    rows = np.random.RandomState(0).permutation(len(data))[: key["images"]]  # the same for all arms and seeds
    labels = data.labels[rows].tolist()
    began = time.perf_counter()
    how: dict[str, Any] = {"denoise": None if generator is None else generator.denoise, "ids": rows.tolist()}
    how |= {"radii": [r for r in RADII if r <= 2 * sigma], "n": key["n"], "alpha": key["alpha"], "seed": key["seed"]}
    found = certify(classifier, data.pixels(rows), sigma=sigma, **how)
    spent = [each.n + each.selection for each in found]
    shares = {f"{radius:g}": certified_accuracy(found, labels, radius) for radius in (0.0, *RADII)}
    samples = {"median": np.median(spent), "mean": np.mean(spent), "p95": np.quantile(spent, 0.95)}
    return {
        "clean": evaluate_classifier(classifier, data).overall.value,
        "certified": {radius: share.to_json() for radius, share in shares.items()},
        "guaranteed": {radius: guaranteed_accuracy(share, key["alpha"]) for radius, share in shares.items()},
        "undecided": [sum(each.verdicts[j] is None for each in found) for j in range(len(found[0].radii))],
        "samples": {name: float(value) for name, value in samples.items()},
        "hits": [[each.hits, each.n] for each in found],
        "certifying_seconds": round(time.perf_counter() - began, 1),
    }


def best(found: list[Record], radius: float) -> Record:
    """The record of the sigma with the largest certified accuracy at a radius, as the field reports it."""
    return max(found, key=lambda each: each["certified"][f"{radius:g}"]["accuracy"])


def page() -> list[str]:
    """For each data set the certified accuracy of each arm at each radius, at its best sigma."""
    parts = ["Certified accuracy (95% interval) of the best sigma at each L2 radius; the sigma stands behind it."]
    for (data, *_), here in record.groups(record.latest(record.read(NAME), KEYS), *SETTING).items():
        rows = []
        arms = record.groups(here, "arm", "seconds", "generator_seconds")
        for arm, seconds, spent in sorted(arms, key=lambda key: (SHOWN.index(key[0]), -key[2])):
            mine = [(best(arms[arm, seconds, spent], radius), f"{radius:g}") for radius in (0.0, *RADII)]
            cells = [f"{percent(each['certified'][r], 0)}, {each['sigma']:g}" for each, r in mine]
            rows.append([f"{arm}: {seconds:g} s" + (f", generator {spent:g} s of them" if spent else ""), *cells])
        parts += [f"## {data}", grid(("arm", "radius 0", *(f"{r:g}" for r in RADII)), rows)]
    return parts


def claims() -> list[Claim]:
    made, radius = [], 0.5
    for data, command in (("fashion-mnist", COMMANDS[0]), ("cifar10", COMMANDS[2])):
        found = [each for each in record.latest(record.read(NAME), KEYS) if each["data"] == data]
        mine, theirs = (
            best([each for each in found if each["arm"] == arm], radius)["certified"][f"{radius:g}"]
            for arm in ("tuned", "noise")
        )
        number = f"{mine['accuracy']:.0%} against {theirs['accuracy']:.0%}"
        interval = f"95%: {between(mine, 0)} against {between(theirs, 0)} (1 seed)"
        text = f"certified accuracy at L2 radius {radius:g}, {data}, equal seconds: **not above the peer**"
        made.append(Claim(text, number, interval, "training with noise (Cohen et al. 2019)", command))
    return made
