"""Seconds of PGD with 40 gradients and of the standard ensemble, and the verdict on every sample.

Packages take turns, several times over, and of each the fastest turn counts: wall clock, and the processor time of the
process beside it, which what else runs on the machine disturbs less. The samples are the first ones of the test set as they
come, wrongly classified ones too.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, records
from benchmarks.attacks import peers
from benchmarks.attacks.strength import NAME, OURS
from benchmarks.attacks.targets import Target
from sfumato.attacks import pgd, standard, verified

PGD_STEPS, PGD_TURNS = 40, 3
ENSEMBLE_TURNS = 2  # each with a seed of its own
NORM, EPS = "Linf", 0.1  # for every target, the standard one too

Action = Callable[[int], tuple[Tensor, dict[str, Any]]]  # turn -> x_adv, more for the record


def measure(target: Target, seed: int, what: list[str] | None, again: bool) -> None:
    """A line in the results for PGD and the ensemble each, of every package; ``what``: "pgd", "ensemble"."""
    for name, turns, actions in (("pgd", PGD_TURNS, _pgd), ("ensemble", ENSEMBLE_TURNS, _ensembles)):
        key = {"part": "speed", "target": target.name, "attack": name, "samples": len(target.x), "first": target.first, "seed": seed,
               "threads": torch.get_num_threads()}  # fmt: skip
        if (what and name not in what) or (not again and records.has(records.read(NAME), **key)):
            continue
        rows = _in_turn(target, actions(target, seed), turns)
        records.append(NAME, {**key, "eps": EPS, "packages": rows, "machine": machine.describe()})
        for package, row in rows.items():
            standing = [round(sum(turn) / len(turn), 4) for turn in row["standing"]]
            print(f"{target.name} {name} {package}: {row['seconds']} s, {row['cpu_seconds']} CPU s, robust {standing}")


def _in_turn(target: Target, actions: dict[str, Action], turns: int) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(turns):
        for package, action in actions.items():
            began, busy = time.perf_counter(), time.process_time()
            x_adv, more = action(turn)
            spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
            row = rows.setdefault(package, {"seconds": torch.inf, "cpu_seconds": torch.inf, "standing": []})
            if spent["cpu_seconds"] < row["cpu_seconds"]:
                row |= more
            row |= {key: round(min(row[key], value), 3) for key, value in spent.items()}
            found = verified(target.classifier, target.x, x_adv, target.y, norm=NORM, eps=EPS)
            row["standing"].append((~found.success).int().tolist())
    return rows


def _pgd(target: Target, seed: int) -> dict[str, Action]:
    x, y, eps = target.x, target.y, EPS
    actions: dict[str, Action] = {
        OURS: lambda turn: (pgd(target.classifier, x, y, norm=NORM, eps=eps, steps=PGD_STEPS, seed=seed + turn), {})
    }
    for (attack, package), (norms, peer) in peers.FIXED.items():
        if attack == "pgd" and NORM in norms and peers.installed(package):

            def theirs(turn: int, peer: peers.Peer = peer) -> tuple[Tensor, dict[str, Any]]:
                return peers.run(peer, target.classifier, x, y, NORM, eps, PGD_STEPS, seed + turn)[0], {}

            actions[package] = theirs
    return actions


def _ensembles(target: Target, seed: int) -> dict[str, Action]:
    x, y, eps = target.x, target.y, EPS

    def ours(turn: int) -> tuple[Tensor, dict[str, Any]]:
        marks, members = [time.process_time()], {}

        def progress(name: str, attacked: int, left: int) -> None:
            marks.append(time.process_time())
            members[name] = {"cpu_seconds": round(marks[-1] - marks[-2], 2), "attacked": attacked, "left": left}

        target.classifier.reset_counts()
        x_adv = standard(target.classifier, x, y, norm=NORM, eps=eps, seed=seed + turn, progress=progress).x_adv
        passes = {"forwards": target.classifier.forwards, "backwards": target.classifier.backwards}
        return x_adv, {**passes, "members": members}

    def theirs(module: torch.nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, seed: int) -> Tensor:
        # Its parameters keep asking for gradients, as they do for whoever hands it a model as it is.
        whole = importlib.import_module("pyautoattack").AutoAttack(module, norm=norm, eps=eps, device="cpu", seed=seed)
        return whole.run_standard_evaluation(x, y, batch_size=250)[0]

    def peer(turn: int) -> tuple[Tensor, dict[str, Any]]:
        x_adv, counter = peers.run(theirs, target.classifier, x, y, NORM, eps, 0, seed + turn)
        return x_adv, {"forwards": counter.forwards, "backwards": counter.backwards}

    actions: dict[str, Action] = {OURS: ours}
    if peers.installed("pyautoattack"):
        actions["pyautoattack"] = peer
    return actions
