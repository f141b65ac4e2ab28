"""How strong each attack is at an equal budget: robust accuracy at a fixed size, or the smallest norm found."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.attacks import peers
from benchmarks.attacks.targets import Target
from benchmarks.base import record
from benchmarks.base.record import Record
from sfumato.attacks import ATTACKS, verified

NAME = "attacks"
OURS = "sfumato"
KEYS = ("part", "target", "attack", "norm", "package", "steps", "samples", "first", "seed")

Table = dict[str, tuple[tuple[str, ...], int]]  # attack -> norms, steps or queries, the same for all packages

FIXED: Table = {
    "fgsm": (peers.ALL, 1),
    "pgd": (peers.ALL, 40),
    "apgd": (peers.ALL, 100),
    "apgd-t": (peers.ALL, 40),
    "fab": (peers.ALL, 30),
    "square": (peers.ALL, 500),
}
MINIMAL: Table = {
    "deepfool": (("L2", "Linf"), 50),
    "carlini-wagner": (("L2",), 50),
    "ddn": (("L2",), 100),
    "fmn": (peers.FOUR, 100),
    "sigma-zero": (("L0",), 100),
    "fab": (("L2", "Linf", "L1"), 20),
    "hop-skip-jump": (("L2", "Linf"), 8),
    "lbfgs": (("L2",), 30),
}
PARTS = {"fixed": (FIXED, peers.FIXED), "minimal": (MINIMAL, peers.MINIMAL)}
# On a large network only these, on fewer steps, so that the whole stays within minutes on one core.
LARGE: Table = {
    "pgd": (("Linf", "L2"), 20),
    "apgd": (("Linf",), 20),
    "ddn": (("L2",), 20),
    "fmn": (("L0", "L2", "Linf"), 20),
    "sigma-zero": (("L0",), 20),
}
NAMED = {"fgsm": None, "square": "queries"}  # what our attacks call their steps, where it is not "steps"


def measure(part: str, target: Target, seed: int, chosen: argparse.Namespace) -> None:
    """Every attack of ours and of the peers' that has not been measured yet; a line in the results each."""
    ours, theirs = PARTS[part]
    if target.name == "effnet-lite0":
        ours = {attack: LARGE[attack] for attack in ours if attack in LARGE}
    shared = {"part": part, "target": target.name, "samples": len(target.x), "first": target.first, "seed": seed}
    rows = [(attack, norm, steps) for attack, (norms, steps) in ours.items() for norm in norms]
    for attack, norm, steps in [row for row in rows if row[0] in (chosen.attacks or ours)]:
        runners: dict[str, peers.Peer | None] = {OURS: None, **peers.find(theirs, attack, norm)}
        for package in [each for each in runners if each in (chosen.packages or runners)]:
            key = {**shared, "attack": attack, "norm": norm, "package": package, "steps": steps}
            if chosen.again or not record.has(record.read(NAME), **key):
                call = peers.Call(norm, target.eps[norm] if part == "fixed" else 0.0, steps, seed)
                print(_line(record.append(NAME, {**key, **_one(target, attack, call, runners[package])})), flush=True)


def _one(target: Target, attack: str, call: peers.Call, peer: peers.Peer | None) -> Record:
    """Passes, seconds and what was reached, all checked afresh."""
    classifier, x, y = target.classifier, target.x, target.y
    began, busy = time.monotonic(), time.process_time()
    counter: Any = classifier
    try:
        if peer is None:
            classifier.reset_counts()
            x_adv = _ours(target, attack, call)
        else:
            x_adv, counter = peers.run(peer, classifier, x, y, call)
    except Exception as error:  # a peer's failure is a result, and must not stop the others
        if peer is None:
            raise
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    cost = {
        "seconds": round(time.monotonic() - began, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
        "forwards": round(counter.forwards / len(x), 1),
        "backwards": round(counter.backwards / len(x), 1),
    }
    found = verified(classifier, x, x_adv, y, norm=call.norm, eps=call.eps or None)
    if call.eps:
        return {**cost, "eps": call.eps, "robust": (~found.success).int().tolist()}
    distance = torch.where(found.success, found.distance.double(), torch.inf)
    return {**cost, "distances": [round(float(d), 6) if d < torch.inf else None for d in distance]}


def _ours(target: Target, attack: str, call: peers.Call) -> Tensor:
    settings: dict[str, Any] = {"norm": call.norm, "seed": call.seed}
    if named := NAMED.get(attack, "steps"):
        settings[named] = call.steps
    if call.eps:
        settings["eps"] = call.eps
    if attack == "apgd-t" and call.norm == "L1":
        settings["targets"] = 5  # as in the standard ensemble, for all packages
    return ATTACKS.find(attack)(target.classifier, target.x, target.y, **settings)


def distances_of(line: Record) -> Tensor:
    """(B,) float64, infinite where nothing was found."""
    return torch.tensor([torch.inf if d is None else d for d in line["distances"]], dtype=torch.float64)


def _line(line: Record) -> str:
    head = f"{line['target']:12s} {line['attack']:14s} {line['norm']:4s} {line['package']:16s}"
    if "error" in line:
        return f"{head} {line['error']}"
    cost = f"fwd {line['forwards']:7.1f} bwd {line['backwards']:7.1f} {line['cpu_seconds']:7.1f} s"
    if line["part"] == "fixed":
        return f"{head} robust {sum(line['robust']) / len(line['robust']):.3f} {cost}"
    found = distances_of(line)
    known = found[found.isfinite()]
    return f"{head} found {len(known) / len(found):.3f} median {float(found.median()):.4f} mean {float(known.mean()):.4f} {cost}"
