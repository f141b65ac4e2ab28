"""Attacks against the peers', on the same classifier and the same samples, in the same run.

* PGD with 40 gradients: seconds and robust accuracy, against torchattacks where it is installed.
* The standard ensemble against ``pyautoattack``: seconds, and the verdict on every sample.

Prints a table and adds a line to ``results/attacks.jsonl``. The classifier is one that ``sfumato classifier train`` or
``sfumato harden`` saved, or any other that ``find_classifier`` knows:

    .venv/bin/python -m benchmarks.attacks --classifier clf --data fashion-mnist --eps 0.1 --samples 200 --threads 2
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, records
from sfumato.attacks import pgd, standard, verified
from sfumato.classifiers import Classifier, find_classifier, match_labels
from sfumato.data import load

NAME = "attacks"
REPEATS = 3  # of PGD, the fastest counts
PGD_STEPS = 40

Samples = tuple[Tensor, Tensor]  # (B, C, H, W) pixels in [0, 1], (B,) labels


def first_samples(classifier: Classifier, source: str, count: int) -> Samples:
    """The first test images and their labels, as the classifier numbers its classes."""
    data = load(source, split="test", size=classifier.size)
    pixels = torch.tensor(data.images[:count]).permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(), match_labels(classifier, data)[:count]


def seconds(action: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The fastest of some repeats, and the result."""
    fastest, result = float("inf"), None
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest, result


def standing(classifier: Classifier, samples: Samples, x_adv: Tensor, norm: str, eps: float) -> list[bool]:
    """For each sample whether it is classified rightly, and still is after the attack; what left the ball does not count."""
    x, y = samples
    found = verified(classifier, x, x_adv, y, norm=norm, eps=eps)
    return ((classifier.predict(x) == y) & ~found.success).tolist()


def share(values: list[bool]) -> float:
    return round(sum(values) / len(values), 4)


def pgd_runs(classifier: Classifier, samples: Samples, norm: str, eps: float) -> dict[str, dict[str, float]]:
    """Seconds and robust accuracy after 40 gradients, by package."""
    x, y = samples
    attacks: dict[str, Callable[[], Tensor]] = {
        "sfumato": lambda: pgd(classifier, x, y, norm=norm, eps=eps, steps=PGD_STEPS)
    }
    if importlib.util.find_spec("torchattacks") and norm in ("Linf", "L2"):
        torchattacks = importlib.import_module("torchattacks")
        step = 2.5 * eps / PGD_STEPS
        module = _Module(classifier).eval()
        peer = (
            torchattacks.PGD(module, eps=eps, alpha=step, steps=PGD_STEPS)
            if norm == "Linf"
            else torchattacks.PGDL2(module, eps=eps, alpha=step, steps=PGD_STEPS)
        )
        attacks["torchattacks"] = lambda: peer(x, y)
    found = {}
    for name, attack in attacks.items():
        spent, x_adv = seconds(attack, REPEATS)
        found[name] = {"seconds": round(spent, 3), "robust": share(standing(classifier, samples, x_adv, norm, eps))}
    return found


class _Module(torch.nn.Module):
    """The classifier's own model and preprocessing as a module, with nothing counted and nothing checked in between."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.preprocess = classifier.preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.preprocess(x))


def ensemble_runs(classifier: Classifier, samples: Samples, norm: str, eps: float, peer: bool) -> dict[str, Any]:
    """Seconds, robust accuracy and the samples whose verdicts differ."""
    x, y = samples
    marks = [time.perf_counter()]
    members: dict[str, float] = {}

    def progress(name: str, attacked: int, left: int) -> None:
        marks.append(time.perf_counter())
        members[name] = round(marks[-1] - marks[-2], 2)

    classifier.reset_counts()
    spent, verdict = seconds(lambda: standard(classifier, x, y, norm=norm, eps=eps, progress=progress))
    ours = standing(classifier, samples, verdict.x_adv, norm, eps)
    found: dict[str, Any] = {
        "sfumato": {"seconds": round(spent, 2), "robust": share(ours), "members": members,
                    "forwards": classifier.forwards, "backwards": classifier.backwards},
    }  # fmt: skip
    if peer and importlib.util.find_spec("pyautoattack"):
        # Its parameters keep asking for gradients, as they do for whoever hands it a model as it is.
        reference = importlib.import_module("pyautoattack").AutoAttack(
            _Module(classifier).eval(), norm=norm, eps=eps, device=str(x.device), version="standard"
        )
        spent, (x_adv, _) = seconds(lambda: reference.run_standard_evaluation(x, y, batch_size=250))
        theirs = standing(classifier, samples, x_adv, norm, eps)
        found["pyautoattack"] = {"seconds": round(spent, 2), "robust": share(theirs)}
        found["differ"] = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    return found


def table(record: records.Record) -> str:
    """The record as markdown."""
    clean, samples = record["clean"], record["samples"]
    lines = [
        f"{record['classifier']} on {record['data']}, {samples} samples, {record['norm']}, eps {record['eps']:g}; "
        f"clean accuracy {clean:.3f}; {record['machine']['cpu']}, {record['machine']['threads']} threads.",
        "",
        "| | seconds | robust accuracy |",
        "|---|---|---|",
    ]
    lines += [
        f"| PGD-{PGD_STEPS}, {name} | {row['seconds']:.2f} | {row['robust']:.3f} |"
        for name, row in record["pgd"].items()
    ]
    for name, row in record["ensemble"].items():
        if name != "differ":
            lines.append(f"| standard ensemble, {name} | {row['seconds']:.1f} | {row['robust']:.3f} |")
    if "differ" in record["ensemble"]:
        lines += ["", f"Verdicts that differ: {len(record['ensemble']['differ'])} of {samples}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, help="a folder, or what find_classifier takes")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default="0.1", help="a number or a fraction such as 8/255")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2, help="0: torch's choice")
    parser.add_argument("--no-peer-ensemble", action="store_true", help="leave out pyautoattack, which takes longest")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    eps = float(Fraction(chosen.eps))
    classifier = find_classifier(chosen.classifier, "cpu")
    samples = first_samples(classifier, chosen.data, chosen.samples)
    record = {
        "machine": machine.describe(),
        "classifier": chosen.classifier,
        "data": chosen.data,
        "norm": chosen.norm,
        "eps": eps,
        "samples": len(samples[0]),
        "clean": share((classifier.predict(samples[0]) == samples[1]).tolist()),
        "pgd": pgd_runs(classifier, samples, chosen.norm, eps),
        "ensemble": ensemble_runs(classifier, samples, chosen.norm, eps, not chosen.no_peer_ensemble),
    }
    records.append(NAME, record)
    print(table(record))


if __name__ == "__main__":
    main()
