"""How strong each attack is at an equal budget: robust accuracy at a fixed size, or the smallest norm found."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, records
from benchmarks.attacks import peers
from benchmarks.attacks.targets import Target
from sfumato.attacks import ATTACKS, verified

NAME = "attacks"
OURS = "sfumato"
KEYS = ("part", "target", "attack", "norm", "package", "steps", "samples", "first", "seed")

# Of each attack: the norms, the steps, which are the same for all packages, and what they are called.
FIXED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "fgsm": (("Linf", "L2", "L1"), 1, ""),
    "pgd": (("Linf", "L2", "L1"), 40, "steps"),
    "apgd": (("Linf", "L2", "L1"), 100, "steps"),
    "apgd-t": (("Linf", "L2", "L1"), 40, "steps"),
    "fab": (("Linf", "L2", "L1"), 30, "steps"),
    "square": (("Linf", "L2", "L1"), 500, "queries"),
}
MINIMAL: dict[str, tuple[tuple[str, ...], int, str]] = {
    "deepfool": (("L2", "Linf"), 50, "steps"),
    "carlini-wagner": (("L2",), 50, "steps"),
    "ddn": (("L2",), 100, "steps"),
    "fmn": (("L0", "L1", "L2", "Linf"), 100, "steps"),
    "sigma-zero": (("L0",), 100, "steps"),
    "fab": (("L2", "Linf", "L1"), 20, "steps"),
    "hop-skip-jump": (("L2", "Linf"), 8, "steps"),
    "lbfgs": (("L2",), 30, "steps"),
}
PARTS = {"fixed": (FIXED, peers.FIXED), "minimal": (MINIMAL, peers.MINIMAL)}
# On a large network only these, on fewer steps, so that the whole stays within minutes on one core.
LARGE: dict[str, tuple[tuple[str, ...], int, str]] = {
    "pgd": (("Linf", "L2"), 20, "steps"),
    "apgd": (("Linf",), 20, "steps"),
    "ddn": (("L2",), 20, "steps"),
    "fmn": (("L0", "L2", "Linf"), 20, "steps"),
    "sigma-zero": (("L0",), 20, "steps"),
}


def measure(
    part: str, target: Target, seed: int, attacks: list[str] | None, packages: list[str] | None, again: bool
) -> None:
    """Every attack of ours and of the peers' that has not been measured yet; a line in the results each."""
    ours, theirs = PARTS[part]
    if target.name == "effnet-lite0":
        ours = {attack: LARGE[attack] for attack in ours if attack in LARGE}
    for attack, (norms, steps, _) in ours.items():
        if attacks and attack not in attacks:
            continue
        for norm in norms:
            runners = {OURS: None} | {
                package: peer
                for (name, package), (known, peer) in theirs.items()
                if name == attack and norm in known and peers.installed(package)
            }
            for package, peer in runners.items():
                if packages and package not in packages:
                    continue
                key = {
                    "part": part, "target": target.name, "attack": attack, "norm": norm, "package": package,
                    "steps": steps, "samples": len(target.x), "first": target.first, "seed": seed,
                }  # fmt: skip
                if not again and records.has(records.read(NAME), **key):
                    continue
                record = {**key, **_one(part, target, attack, norm, steps, seed, peer), "machine": machine.describe()}
                records.append(NAME, record)
                print(_line(record), flush=True)


def _one(
    part: str, target: Target, attack: str, norm: str, steps: int, seed: int, peer: peers.Peer | None
) -> dict[str, Any]:
    """Passes, seconds and what was reached, all checked afresh."""
    classifier, x, y = target.classifier, target.x, target.y
    eps = target.eps[norm] if part == "fixed" else 0.0
    began, busy = time.perf_counter(), time.process_time()
    try:
        if peer is None:
            classifier.reset_counts()
            x_adv = _ours(part, target, attack, norm, eps, steps, seed)
            counter: Any = classifier
        else:
            x_adv, counter = peers.run(peer, classifier, x, y, norm, eps, steps, seed)
    except Exception as error:  # a peer's failure is a result, and must not stop the others
        if peer is None:
            raise
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    cost = {
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
        "forwards": round(counter.forwards / len(x), 1),
        "backwards": round(counter.backwards / len(x), 1),
    }
    found = verified(classifier, x, x_adv, y, norm=norm, eps=eps or None)
    if part == "fixed":
        return {**cost, "eps": eps, "standing": (~found.success).int().tolist()}
    distance = torch.where(found.success, found.distance.double(), torch.inf)
    return {**cost, "distances": [round(float(d), 6) if d < torch.inf else None for d in distance]}


def _ours(part: str, target: Target, attack: str, norm: str, eps: float, steps: int, seed: int) -> Tensor:
    named = PARTS[part][0][attack][2]
    settings: dict[str, Any] = {"norm": norm, "seed": seed} | ({named: steps} if named else {})
    if part == "fixed":
        settings["eps"] = eps
    if attack == "apgd-t" and norm == "L1":
        settings["targets"] = 5  # as in the standard ensemble, for all packages
    return ATTACKS.find(attack)(target.classifier, target.x, target.y, **settings)


def distances_of(record: records.Record) -> Tensor:
    """(B,) float64, infinite where nothing was found."""
    return torch.tensor([torch.inf if d is None else d for d in record["distances"]], dtype=torch.float64)


def _line(record: records.Record) -> str:
    head = f"{record['target']:12s} {record['attack']:14s} {record['norm']:4s} {record['package']:16s}"
    if "error" in record:
        return f"{head} {record['error']}"
    cost = f"fwd {record['forwards']:7.1f} bwd {record['backwards']:7.1f} {record['cpu_seconds']:7.1f} s"
    if record["part"] == "fixed":
        return f"{head} robust {sum(record['standing']) / len(record['standing']):.3f} {cost}"
    found = distances_of(record)
    known = found[found.isfinite()]
    return f"{head} found {len(known) / len(found):.3f} median {float(found.median()):.4f} mean {float(known.mean()):.4f} {cost}"
