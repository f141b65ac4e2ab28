"""Purification: what it is worth under exact gradients, and what weaker attacks make of it.

A small classifier that never saw noise, behind sfumato's generator, under the protocol of
`sfumato.defences.purification.protocol`: accuracy on average over draws of the noise, right all of ten times, by the majority of
ten, and with noise that the attacker knows, for every attack, beside the bare classifier. `--arms diffusion-classifier` attacks
the generator as a classifier, by exact gradients through all its draws. Fashion-MNIST padded to 32x32. About six seconds an image
and norm at the defaults, on one core.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.base import record, trial
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, between, percent, rows
from benchmarks.certificates import generator_for, plain_classifier
from benchmarks.features import images
from sfumato.attacks import apgd, apgd_targeted, fooled
from sfumato.audit.purification import table as rows_of
from sfumato.classifiers import Classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.defences import Effort, Purifier, diffusion_classifier, purification_protocol
from sfumato.defences.purification.purifier import SAMPLER, SIGMA, STEPS

NAME = "purification"
COMMANDS = (
    "purification --classifier-seconds 120 --generator-seconds 900 -n 32",
    "purification --classifier-seconds 120 --generator-seconds 900 --arms diffusion-classifier -n 100",
)
ARMS = ("purified", "diffusion-classifier")
THREATS = {"Linf": 0.1, "L2": 0.5}
EFFORT = ("attack_steps", "draws", "restarts", "fixed_steps", "targets")
SETTING = ("sigma", "steps", "sampler", "classifier_seconds", "generator_seconds", "images", *EFFORT)
KEYS = ("arm", "norm", "eps", "seed", *SETTING)
NUMBERS = ("average", "worst", "majority")
EVALUATIONS = 8  # of the network for each class, by the diffusion classifier
NOTES = """\
One seed, 32 images (intervals are ± 17 points). The surrogate is no weaker than exact PGD, and APGD is behind both: as
`audit --purify` says in such a case, exact gradients that find no more than cheap ones want more steps and draws before the
numbers are believed, so the true ones may be lower still. So **purification is no defence to rely on**: a transfer attack leaves
twice what exact gradients leave, and whoever may try again gets through on four of five images. The generator as a classifier is
by itself no more robust than a network that was trained as usual (0 to 3.6% on 100 images)."""


def options(parser: argparse.ArgumentParser) -> None:
    effort = Effort()
    parser.add_argument("--data", default=trial.FASHION, help="padded to 32x32")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["purified"])
    parser.add_argument("--norms", nargs="+", choices=THREATS, default=["Linf"])
    parser.add_argument("-n", "--images", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the purifier")
    parser.add_argument("--sampler", default=SAMPLER)
    for name, value in zip(
        EFFORT, (effort.steps, effort.draws, effort.restarts, effort.fixed_steps, effort.targets), strict=True
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="as of sfumato audit --purify")
    parser.add_argument("--classifier-seconds", type=float, default=300.0, help="of training")
    parser.add_argument("--generator-seconds", type=float, default=900.0)


def run(chosen: argparse.Namespace) -> None:
    chosen.runs.mkdir(parents=True, exist_ok=True)
    setting = {key: getattr(chosen, key) for key in SETTING}
    for arm, norm, seed in [(arm, norm, seed) for arm in chosen.arms for norm in chosen.norms for seed in chosen.seeds]:
        key = {"arm": arm, "norm": norm, "eps": THREATS[norm], "seed": seed, **setting}
        record.once(NAME, key, chosen.again, lambda key=key: measure(key, chosen))


def measure(key: Record, chosen: argparse.Namespace) -> Record:
    """Train what is missing, attack."""
    seed, threat = key["seed"], {"norm": key["norm"], "eps": key["eps"], "seed": key["seed"]}
    generator = generator_for(chosen.data, chosen.generator_seconds, seed, chosen.runs)
    data = images(chosen.data, "test")
    assert data.labels is not None
    ids = np.random.RandomState(0).permutation(len(data))[: chosen.images]  # the same for all arms and seeds
    x, y = data.pixels(ids), torch.from_numpy(data.labels[ids])
    if key["arm"] == "purified":
        classifier = plain_classifier(chosen.data, chosen.classifier_seconds, seed, chosen.runs)
        purifier = Purifier.of(generator, sigma=chosen.sigma, steps=chosen.steps, sampler=chosen.sampler)
        own = {"restarts": chosen.restarts, "fixed_steps": chosen.fixed_steps, "targets": chosen.targets}
        effort = Effort(steps=chosen.attack_steps, draws=chosen.draws, **own)
        began = time.perf_counter()
        found = purification_protocol(classifier, purifier, x, y, effort=effort, ids=ids.tolist(), **threat).report
    else:
        classifier = diffusion_classifier(generator, draws=EVALUATIONS, seed=seed)
        began = time.perf_counter()
        found = attacked(classifier, x, y, ids, {**threat, "steps": chosen.attack_steps})
    return {"found": found, "attack_seconds": round(time.perf_counter() - began, 1)}


def attacked(classifier: Classifier, x: Tensor, y: Tensor, ids: np.ndarray, how: dict[str, Any]) -> Record:
    """Accuracy without an attack, and under APGD and then targeted APGD."""
    right = ~fooled(classifier, x, y)
    robust = right.clone()
    for attack, more in ((apgd, {}), (apgd_targeted, {"targets": 1})):
        left = robust.nonzero().flatten()
        if len(left):
            x_adv = attack(classifier, x[left], y[left], ids=ids[left.numpy()].tolist(), **how, **more)
            robust[left] = ~fooled(classifier, x_adv, y[left])
    shares = {"clean": right, "robust": robust}
    return {name: Accuracy(int(each.sum()), len(x)).to_json() for name, each in shares.items()}


def page() -> list[str]:
    """For each setting its attacks and numbers."""
    found = record.latest(record.read(NAME), KEYS)
    parts: list[str] = []
    for each in (each for each in found if each["arm"] == "purified"):
        made = each["found"]
        items = [
            {
                "title": row["title"] + (" (weak)" if row["kind"] == "weak" else ""),
                **{k: percent(row[k], 0) for k in NUMBERS},
            }
            for row in rows_of(made)
        ]
        fixed = {"noise known to the attacker": made["fixed"], "no purifier": made["undefended"]}
        for other in (other for other in found if other["arm"] == ARMS[1] and other["seed"] == each["seed"]):
            name = f"the generator as a classifier, {EVALUATIONS} draws a class, {other['images']} images"
            fixed[name] = other["found"]
        shares = [{"name": name, **{k: percent(v[k], 0) for k in ("clean", "robust")}} for name, v in fixed.items()]
        setting = """Sigma {sigma:g}, {steps} steps of {sampler}; generator {generator_seconds:g} s, classifier {classifier_seconds:g} s of \
training, seed {seed}; {attack_seconds:g} s of attacks. 95% intervals."""
        head = "| average over draws | right all of ten times | majority of ten"
        parts += [
            f"## {each['norm']} {each['eps']:g}, {each['images']} images",
            setting.format(**each),
            rows(head, "{title} | {average} | {worst} | {majority}", items),
            rows("deterministic | no attack | under attack", "{name} | {clean} | {robust}", shares),
        ]
    return parts


def claims() -> list[Claim]:
    found = next(each for each in record.read(NAME) if each["arm"] == "purified")["found"]
    robust = found["robust"]
    number = f"{robust['average']['accuracy']:.0%} on average, {robust['worst']['accuracy']:.0%} all of ten times"
    interval = f"95%: {between(robust['average'], 0)}; {between(robust['worst'], 0)}"
    text = "accuracy behind the purifier under exact gradients, Linf 0.1: **no defence to rely on**"
    return [Claim(text, number, interval, "no purifier: 0%", COMMANDS[0])]
