"""Seconds of PGD with 40 gradients and of the standard ensemble, and the verdict on every sample.

Packages take turns, several times over, and of each the fastest turn counts: wall clock, and the processor time of the
process beside it, which what else runs on the machine disturbs less. The samples are the first ones of the test set as they
come, wrongly classified ones too.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.attacks import peers
from benchmarks.attacks.strength import NAME, OURS
from benchmarks.attacks.targets import Target
from benchmarks.base import record
from sfumato.attacks import pgd, standard, verified

PGD_STEPS, PGD_TURNS = 40, 3
ENSEMBLE_TURNS = 2  # each with a seed of its own
NORM, EPS = "Linf", 0.1  # for every target, the standard one too

Action = Callable[[int], tuple[Tensor, dict[str, Any]]]  # seed -> x_adv, more for the record


def measure(part: str, target: Target, seed: int, chosen: argparse.Namespace) -> None:
    """A line in the results for PGD and the ensemble each, of every package; attacks: "pgd", "ensemble"."""
    shared = {"part": part, "target": target.name, "samples": len(target.x), "first": target.first, "seed": seed}
    for name, turns, actions in (("pgd", PGD_TURNS, _pgd), ("ensemble", ENSEMBLE_TURNS, _ensembles)):
        key = {**shared, "attack": name, "threads": torch.get_num_threads()}
        if name not in (chosen.attacks or [name]) or (not chosen.again and record.has(record.read(NAME), **key)):
            continue
        rows = _in_turn(target, actions(target), [seed + turn for turn in range(turns)])
        record.append(NAME, {**key, "eps": EPS, "packages": rows})
        for package, row in rows.items():
            robust = [round(sum(turn) / len(turn), 4) for turn in row["robust"]]
            print(f"{target.name} {name} {package}: {row['seconds']} s, {row['cpu_seconds']} CPU s, robust {robust}")


def _in_turn(target: Target, actions: dict[str, Action], seeds: list[int]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for seed, package in [(seed, package) for seed in seeds for package in actions]:
        began, busy = time.monotonic(), time.process_time()
        x_adv, more = actions[package](seed)
        spent = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - busy}
        row = rows.setdefault(package, {"seconds": torch.inf, "cpu_seconds": torch.inf, "robust": []})
        if spent["cpu_seconds"] < row["cpu_seconds"]:
            row |= more
        row |= {key: round(min(row[key], value), 3) for key, value in spent.items()}
        found = verified(target.classifier, target.x, x_adv, target.y, norm=NORM, eps=EPS)
        row["robust"].append((~found.success).int().tolist())
    return rows


def _pgd(target: Target) -> dict[str, Action]:
    how: dict[str, Any] = {"norm": NORM, "eps": EPS, "steps": PGD_STEPS}
    actions: dict[str, Action] = {OURS: lambda seed: (pgd(target.classifier, target.x, target.y, seed=seed, **how), {})}
    for package, peer in peers.find(peers.FIXED, "pgd", NORM).items():
        actions[package] = lambda seed, peer=peer: (_theirs(peer, target, PGD_STEPS, seed)[0], {})
    return actions


def _theirs(peer: peers.Peer, target: Target, steps: int, seed: int) -> tuple[Tensor, peers.Plain]:
    return peers.run(peer, target.classifier, target.x, target.y, peers.Call(NORM, EPS, steps, seed))


def _auto_attack(module: torch.nn.Module, x: Tensor, y: Tensor, call: peers.Call) -> Tensor:
    # Its parameters keep asking for gradients, as they do for whoever hands it a model as it is.
    own: dict[str, Any] = {"norm": call.norm, "eps": call.eps, "device": "cpu", "seed": call.seed}
    whole = importlib.import_module("pyautoattack").AutoAttack(module, **own)
    return whole.run_standard_evaluation(x, y, batch_size=250)[0]


def _ensembles(target: Target) -> dict[str, Action]:
    def ours(seed: int) -> tuple[Tensor, dict[str, Any]]:
        marks, members = [time.process_time()], {}

        def progress(name: str, attacked: int, left: int) -> None:
            marks.append(time.process_time())
            members[name] = {"cpu_seconds": round(marks[-1] - marks[-2], 2), "attacked": attacked, "left": left}

        classifier = target.classifier
        classifier.reset_counts()
        how: dict[str, Any] = {"norm": NORM, "eps": EPS, "seed": seed, "progress": progress}
        x_adv = standard(classifier, target.x, target.y, **how).x_adv
        return x_adv, {"forwards": classifier.forwards, "backwards": classifier.backwards, "members": members}

    def peer(seed: int) -> tuple[Tensor, dict[str, Any]]:
        x_adv, counter = _theirs(_auto_attack, target, 0, seed)
        return x_adv, {"forwards": counter.forwards, "backwards": counter.backwards}

    return {OURS: ours} | ({"pyautoattack": peer} if peers.installed("pyautoattack") else {})
