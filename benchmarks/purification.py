"""Purification on Fashion-MNIST (32x32, padded): what it is worth under exact gradients, and what weaker attacks make of it.

A small classifier that never saw noise, behind sfumato's generator, under the protocol of
``sfumato.defences.purification.protocol``: four numbers (average over draws of the noise, right all of ten times,
majority, noise known to the attacker) for every attack, beside the bare classifier. ``--arms diffusion-classifier`` attacks
the generator as a classifier, by exact gradients through all its draws. A line in ``results/purification.jsonl`` is one
arm, and ``table`` prints them. About six seconds an image and norm at the defaults, on one core.

    .venv/bin/python -m benchmarks.purification --classifier-seconds 300 --generator-seconds 900 -n 32 --threads 1
    .venv/bin/python -m benchmarks.purification table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import machine, records
from benchmarks.certificates import generator_for, plain_classifier
from benchmarks.features import test_data
from benchmarks.trial import runs_folder
from sfumato.attacks import apgd, apgd_targeted, fooled
from sfumato.attacks.norms import NORMS
from sfumato.audit.purification import table as rows_of
from sfumato.classifiers.accuracy import Accuracy
from sfumato.defences import Effort, Purifier, diffusion_classifier, purification_protocol
from sfumato.defences.purification.purifier import SAMPLER, SIGMA, STEPS

NAME = "purification"
ARMS = ("purified", "diffusion-classifier")
THREATS = {"Linf": 0.1, "L2": 0.5}
EFFORT = ("attack_steps", "draws", "restarts", "fixed_steps", "targets")
KEYS = (
    "arm", "norm", "eps", "sigma", "steps", "sampler", "classifier_seconds", "generator_seconds", "seed", "images", *EFFORT
)  # fmt: skip
EVALUATIONS = 8  # of the network for each class, by the diffusion classifier


def measure(arm: str, norm: str, eps: float, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, attack: one line of the results."""
    folder = runs_folder(chosen.runs)
    folder.mkdir(parents=True, exist_ok=True)
    generator = generator_for(chosen.generator_seconds, chosen.seed, chosen.threads, folder)
    data = test_data()
    assert data.labels is not None
    rows = np.random.RandomState(0).permutation(len(data))[: chosen.images]  # the same for all arms and seeds
    x, y = data.pixels(rows), torch.from_numpy(data.labels[rows])
    began = time.perf_counter()
    if arm == "purified":
        classifier = plain_classifier(chosen.classifier_seconds, 0.0, chosen.seed, folder)
        purifier = Purifier.of(generator, sigma=chosen.sigma, steps=chosen.steps, sampler=chosen.sampler)
        began = time.perf_counter()
        effort = Effort(
            steps=chosen.attack_steps, draws=chosen.draws, restarts=chosen.restarts, fixed_steps=chosen.fixed_steps,
            targets=chosen.targets,
        )  # fmt: skip
        found = purification_protocol(
            classifier, purifier, x, y, norm=norm, eps=eps, effort=effort, seed=chosen.seed, ids=rows.tolist()
        ).report
    else:
        classifier = diffusion_classifier(generator, draws=EVALUATIONS, seed=chosen.seed)
        right = ~fooled(classifier, x, y)
        standing = right.clone()
        common: dict[str, Any] = {"norm": norm, "eps": eps, "seed": chosen.seed, "steps": chosen.attack_steps}
        for attack, more in ((apgd, {}), (apgd_targeted, {"targets": 1})):
            left = standing.nonzero().flatten()
            if len(left):
                attacked = attack(classifier, x[left], y[left], ids=rows[left.numpy()].tolist(), **common, **more)
                standing[left] = ~fooled(classifier, attacked, y[left])
        found = {
            name: Accuracy(int(each.sum()), len(x)).to_json() for name, each in (("clean", right), ("robust", standing))
        }
    named = {key: getattr(chosen, key) for key in KEYS[3:]}
    return {
        "arm": arm, "norm": norm, "eps": eps, **named, "found": found,
        "attack_seconds": round(time.perf_counter() - began, 1), "machine": machine.describe(),
    }  # fmt: skip


def table() -> str:
    """For each setting its attacks and numbers, as Markdown."""
    found = records.latest(records.read(NAME), KEYS)
    lines: list[str] = []
    for each in (record for record in found if record["arm"] == "purified"):
        made = each["found"]
        lines += [_setting(each), "", "| | average | right all of ten | majority |", "|---|---|---|---|"]
        lines += [
            f"| {row['title']}{' (weak)' if row['kind'] == 'weak' else ''} | {_cell(row['average'])} | {_cell(row['worst'])} | {_cell(row['majority'])} |"
            for row in rows_of(made)
        ]
        lines += ["", "| deterministic | no attack | under attack |", "|---|---|---|"]
        lines += [
            f"| noise known to the attacker | {_cell(made['fixed']['clean'])} | {_cell(made['fixed']['robust'])} |"
        ]
        lines += [f"| no purifier | {_cell(made['undefended']['clean'])} | {_cell(made['undefended']['robust'])} |"]
        lines += [
            f"| the generator as a classifier, {EVALUATIONS} draws a class | {_cell(other['found']['clean'])} | {_cell(other['found']['robust'])} |"
            for other in found
            if other["arm"] == "diffusion-classifier" and _same(each, other)
        ]
        lines.append("")
    return "\n".join(lines)


def _same(one: records.Record, other: records.Record) -> bool:
    return all(one[key] == other[key] for key in ("norm", "eps", "generator_seconds", "seed"))


def _setting(record: records.Record) -> str:
    return (
        f"{record['norm']} {record['eps']:g}, {record['images']} images; sigma {record['sigma']:g}, {record['steps']} steps of "
        f"{record['sampler']}; generator {record['generator_seconds']:g} s, classifier {record['classifier_seconds']:g} s, seed "
        f"{record['seed']}; {record['attack_seconds']:g} s of attacks:"
    )


def _cell(share: dict[str, Any]) -> str:
    return f"{share['accuracy']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    effort = Effort()
    parser.add_argument("part", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["purified"])
    parser.add_argument("--norms", nargs="+", choices=[norm for norm in NORMS if norm in THREATS], default=["Linf"])
    parser.add_argument("-n", "--images", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the purifier")
    parser.add_argument("--sampler", default=SAMPLER)
    parser.add_argument("--attack-steps", type=int, default=effort.steps)
    parser.add_argument("--draws", type=int, default=effort.draws, help="of noise, a gradient")
    parser.add_argument("--restarts", type=int, default=effort.restarts)
    parser.add_argument("--fixed-steps", type=int, default=effort.fixed_steps)
    parser.add_argument("--targets", type=int, default=effort.targets)
    parser.add_argument("--classifier-seconds", type=float, default=300.0, help="of training")
    parser.add_argument("--generator-seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="0: torch's choice")
    parser.add_argument("--runs", help="where models are kept")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    chosen = parser.parse_args(arguments)
    if chosen.part == "measure":
        machine.set_threads(chosen.threads)
        if chosen.threads == 1:
            machine.count_processor_seconds()
        for arm in chosen.arms:
            for norm in chosen.norms:
                wanted = {key: getattr(chosen, key) for key in KEYS[3:]}
                if chosen.again or not records.has(records.read(NAME), arm=arm, norm=norm, eps=THREATS[norm], **wanted):
                    record = measure(arm, norm, THREATS[norm], chosen)
                    records.append(NAME, record)
                    print(f"{arm} {norm} {THREATS[norm]:g}: {record['attack_seconds']:g} s", flush=True)
    print(table())


if __name__ == "__main__":
    main()
