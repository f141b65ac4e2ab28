"""Robust accuracy of hardened classifiers under the standard ensemble, at equal seconds of training.

* plain: a classifier trained as usual for all of the seconds.
* pgd, fast, trades: one that was trained as usual for a part of them, hardened in the rest.
* generated: trades with generated images in the mix; drawing them is in the seconds, training the generator is not.

Fashion-MNIST, padded to 32x32, at Linf 0.1 by default; CIFAR-10 at 8/255 by an ``.npz`` file of it. The test images are
the same for all arms and seeds. A line in ``results/hardening.jsonl`` is one arm with one seed; ``table`` prints mean and
standard deviation over seeds. Training and measuring that are there already are not done again.

    .venv/bin/python -m benchmarks.hardening --seconds 180 --seeds 3 -n 500 --threads 1 --generator runs/fashion
    .venv/bin/python -m benchmarks.hardening --data cifar10.npz --eps 8/255 --seconds 900 --methods plain fast trades
    .venv/bin/python -m benchmarks.hardening table
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, records
from benchmarks.report import grid
from benchmarks.trial import runs_folder, used_up
from sfumato.attacks import standard
from sfumato.classifiers import (
    Classifier,
    evaluate_classifier,
    load_classifier,
    match_labels,
    read_description,
    training_steps,
)
from sfumato.classifiers.accuracy import Accuracy
from sfumato.cli.attack import read_eps
from sfumato.data import ImageSet, load
from sfumato.defences import hardening_steps, smoothness
from sfumato.generator import Generator

NAME = "hardening"
ARMS = ("plain", "pgd", "fast", "trades", "generated")
METHODS = {"generated": "trades"}  # what an arm that is no method's name hardens with
KEYS = ("data", "method", "norm", "eps", "seconds", "plain_seconds", "seed", "images")
SETTING = ("data", "norm", "eps", "seconds", "plain_seconds", "images")
MEASURED = 200  # images on which smoothness is measured


def trained(method: str, seed: int, chosen: argparse.Namespace, train: ImageSet, test: ImageSet, folder: Path) -> Path:
    """The folder of the arm's classifier, trained where it is missing."""
    place = f"hardening-{train.fingerprint()}"
    seconds = chosen.seconds if method == "plain" else chosen.plain_seconds
    plain = folder / f"{place}-plain-{seconds:g}s-seed{seed}"
    used_up(training_steps(train, plain, minutes=seconds / 60, seed=seed, test=test, device=chosen.device))
    if method == "plain":
        return plain
    rest = chosen.seconds - chosen.plain_seconds
    out = folder / f"{place}-{method}-{chosen.norm}-{chosen.eps:.4g}-{chosen.plain_seconds:g}+{rest:g}s-seed{seed}"
    generator = Generator.from_pretrained(chosen.generator, chosen.device) if method == "generated" else None
    used_up(hardening_steps(
        load_classifier(plain, chosen.device), train, out, method=METHODS.get(method, method), norm=chosen.norm,
        eps=chosen.eps, generator=generator, minutes=rest / 60, seed=seed, test=test,
    ))  # fmt: skip
    return out


def measure(out: Path, method: str, seed: int, chosen: argparse.Namespace, test: ImageSet) -> dict[str, Any]:
    """One line of the results."""
    classifier: Classifier = load_classifier(out, chosen.device)
    rows = np.sort(np.random.RandomState(0).permutation(len(test))[: chosen.images])
    x, y = test.pixels(rows), match_labels(classifier, test)[rows]
    began = time.perf_counter()
    verdict = standard(classifier, x, y, norm=chosen.norm, eps=chosen.eps, seed=0, ids=rows.tolist())
    spent = round(time.perf_counter() - began, 1)
    smooth = smoothness(classifier, x[:MEASURED], y[:MEASURED], norm=chosen.norm, eps=chosen.eps)
    return {
        "data": test.name, "method": method, "norm": chosen.norm, "eps": chosen.eps, "seconds": chosen.seconds,
        "plain_seconds": chosen.plain_seconds, "seed": seed, "images": len(rows),
        "clean": evaluate_classifier(classifier, test).overall.to_json(),
        "robust": Accuracy(int(verdict.robust.sum()), len(rows)).to_json(),
        "felled_by": dict(Counter(name or "standing" for name in verdict.felled_by)),
        "smoothness": smooth.to_json(),
        "training": read_description(out)["training"],
        "attacking_seconds": spent,
        "machine": machine.describe(),
    }  # fmt: skip


def table() -> str:
    """For each setting clean and robust accuracy of each arm, mean and standard deviation over seeds, as Markdown."""
    found = records.latest(records.read(NAME), KEYS)
    parts = []
    for setting in dict.fromkeys(tuple(each[key] for key in SETTING) for each in found):
        mine = [each for each in found if tuple(each[key] for key in SETTING) == setting]
        data, norm, eps, seconds, plain_seconds, images = setting
        rows = [_row(arm, group) for arm in ARMS if (group := [each for each in mine if each["method"] == arm])]
        head = ("arm", "clean", "robust", "gradient norm", "departure from linear", "distance", "epochs", "seeds")
        parts += [f"{data}, {norm} {eps:.4g}: {seconds:g} s (of which {plain_seconds:g} s as usual before hardening), robust on "
                  f"{images} images under the standard ensemble", grid(head, rows)]  # fmt: skip
    return "\n\n".join(parts)


def section() -> str:
    """The section of RESULTS.md."""
    return f"## Hardening\n\nMean ± standard deviation over seeds; the generator's own training is not in the seconds.\n\n{table()}"


def _row(arm: str, group: list[records.Record]) -> list[str]:
    smooth = [each["smoothness"] for each in group]
    numbers = [f"{statistics.fmean(each[key] for each in smooth):.3g}" for key in ("gradient", "gap", "distance")]
    epochs = statistics.fmean(each["training"]["epochs"] for each in group)
    return [arm, _share(group, "clean"), _share(group, "robust"), *numbers, f"{epochs:.1f}", str(len(group))]


def _share(group: list[records.Record], key: str) -> str:
    values = [100 * each[key]["accuracy"] for each in group]
    return f"{statistics.fmean(values):.1f}%" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", type=read_eps, default=0.1)
    parser.add_argument("--methods", nargs="+", choices=ARMS, help="default: all, generated only with --generator")
    parser.add_argument("--generator", help="a run folder, for the arm generated")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training, for each arm")
    parser.add_argument("--plain-seconds", type=float, help="of those, before hardening; default: a sixth")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("-n", "--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1, help="0: torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", help="where models are kept")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    chosen = parser.parse_args()
    if chosen.part == "measure":
        chosen.plain_seconds = chosen.seconds / 6 if chosen.plain_seconds is None else chosen.plain_seconds
        chosen.methods = chosen.methods or [arm for arm in ARMS if arm != "generated" or chosen.generator]
        if "generated" in chosen.methods and not chosen.generator:
            parser.error("the arm generated needs --generator")
        if not 0 < chosen.plain_seconds < chosen.seconds:
            parser.error("--plain-seconds must be over 0, and leave some of --seconds to hardening")
        machine.set_threads(chosen.threads)
        if chosen.threads == 1:
            machine.count_processor_seconds()
        folder = runs_folder(chosen.runs)
        train, test = (load(chosen.data, split=split, size=chosen.size, fit="pad") for split in ("train", "test"))
        for seed in range(chosen.seeds):
            for method in chosen.methods:
                wanted = {key: getattr(chosen, key) for key in ("norm", "eps", "seconds", "plain_seconds")}
                wanted |= {"data": test.name, "method": method, "seed": seed, "images": min(chosen.images, len(test))}
                if not chosen.again and records.has(records.read(NAME), **wanted):
                    continue
                record = measure(trained(method, seed, chosen, train, test, folder), method, seed, chosen, test)
                records.append(NAME, record)
                print(f"{method} seed {seed}: clean {record['clean']['accuracy']:.1%}, robust {record['robust']['accuracy']:.1%}",
                      flush=True)  # fmt: skip
    print(table())


if __name__ == "__main__":
    main()
