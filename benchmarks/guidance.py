"""Guidance: fidelity against diversity of a trained model of texts.

For each strength of guidance the same captions of training images are drawn from the same noise and measured: R-precision
and precision (fidelity), recall (diversity) and Frechet distance, in the judge's features. Every result is one line of
``results/guidance.jsonl``; what is there already for the same model is skipped. The picture shows the trade.

    .venv/bin/python -m benchmarks.guidance runs/mine --data ./captioned
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, records
from sfumato import recipes
from sfumato.core.pictures import to_bytes
from sfumato.data import ImageSet, load
from sfumato.metrics import Retrieval, compare, find_judge, reference_features
from sfumato.training.contrastive import captions_of

NAME = "guidance"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
NUMBERS = ("r_precision", "held_out", "precision", "recall", "frechet")


def fingerprint(run: Path) -> str:
    """16 hex digits of a model's files."""
    digest = hashlib.sha256()
    for file in sorted([run] if run.is_file() else run.glob("**/model.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Measures:
    """What all strengths are measured with."""

    def __init__(self, train: ImageSet, test: ImageSet, n: int) -> None:
        known = [texts[0] for texts in captions_of(train)]
        new = [text for text in dict.fromkeys(texts[0] for texts in captions_of(test)) if text not in set(known)]
        numbers = np.random.default_rng(0)
        self.known = [known[i] for i in np.resize(numbers.permutation(len(known)), n)]
        self.new = [new[i] for i in np.resize(numbers.permutation(len(new)), max(len(new), n // 5))] if new else []
        self.retrieval = Retrieval(find_judge(train, torch.device("cpu")), train, test)
        self.space = self.retrieval.judge.space
        self.reference = reference_features(self.space, train)

    def __call__(self, model: Any, scale: float) -> dict[str, Any]:
        """All numbers of one strength."""
        began = time.process_time()
        features = self._features(model, self.known, scale, seed=0)
        seconds = time.process_time() - began
        found = compare(features, self.reference)
        asked = self.retrieval(features, self.known)
        held_out = self.retrieval(self._features(model, self.new, scale, seed=1), self.new) if self.new else None
        return {
            "guidance": scale,
            "n": len(self.known),
            "r_precision": asked["r_precision"],
            "r_precision_interval": [asked["low"], asked["high"]],
            "held_out": held_out and held_out["r_precision"],
            "held_out_interval": held_out and [held_out["low"], held_out["high"]],
            **{name: found[name] for name in ("precision", "recall", "density", "coverage", "frechet", "kernel")},
            "judge": f"{self.space.name} {self.space.digest}",
            "cpu_seconds": round(seconds, 1),
        }

    def _features(self, model: Any, captions: list[str], scale: float, seed: int) -> torch.Tensor:
        pixels = model.sample(len(captions), prompt=captions, guidance=scale, seed=seed)
        return self.space.of(ImageSet(to_bytes(pixels), None, (), "samples", "test"))


def table(results: list[records.Record]) -> list[str]:
    """One line a strength."""
    lines = ["guidance  " + "  ".join(f"{name:>11}" for name in NUMBERS)]
    for result in results:
        cells = ["-" if result[name] is None else f"{result[name]:.3f}" for name in NUMBERS]
        lines.append(f"{result['guidance']:<8g}  " + "  ".join(f"{cell:>11}" for cell in cells))
    return lines


def plot(results: list[records.Record], out: Path) -> None:
    """Fidelity against diversity, and the distance against guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    recall = [result["recall"] for result in results]
    for name, colour in (("r_precision", "#c2410c"), ("held_out", "#f59e0b"), ("precision", "#0f766e")):
        values = [result[name] for result in results]
        if None not in values:
            left.plot(recall, values, color=colour, marker="o", markersize=4, label=name.replace("_", " "))
    for result in results:
        left.annotate(
            f"{result['guidance']:g}", (result["recall"], result["r_precision"]), xytext=(3, 4), fontsize=8,
            textcoords="offset points",
        )  # fmt: skip
    left.set(xlabel="recall (diversity)", ylabel="fidelity")
    left.legend(frameon=False, fontsize=8)
    right.plot(
        [r["guidance"] for r in results], [r["frechet"] for r in results], color="#475569", marker="o", markersize=4
    )
    right.set(xlabel="guidance", ylabel="Frechet distance")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of a model of texts")
    parser.add_argument("--data", required=True, help="the captioned set that it was trained on")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("-n", type=int, default=1000, help="images of each strength")
    chosen = parser.parse_args()
    machine.set_threads(1)
    model = recipes.load(chosen.run, "cpu")
    size = model.ladder.size
    train, test = (load(chosen.data, size=size, split=split) for split in ("train", "test"))
    measures = Measures(train, test, chosen.n)
    real = {
        name: measures.retrieval.of_real(images)["r_precision"] for name, images in (("train", train), ("test", test))
    }
    identity = {"model": fingerprint(chosen.run), "data": train.fingerprint(), "n": chosen.n}
    for scale in chosen.scales:
        if records.has(records.read(NAME), **identity, guidance=scale):
            continue
        result = {
            **identity,
            "name": chosen.run.name,
            **measures(model, scale),
            "real": real,
            "machine": machine.describe(),
        }
        records.append(NAME, result)
        print(table([result])[-1], flush=True)
    mine = [
        r
        for r in records.latest(records.read(NAME), ("model", "data", "n", "guidance"))
        if records.has([r], **identity)
    ]
    mine.sort(key=lambda result: result["guidance"])
    print("\n".join(table(mine)))
    print(f"R-precision of real images: {real['train']:.3f}, held out {real['test']:.3f}")
    plot(mine, records.RESULTS / f"guidance-{chosen.run.name}.png")


if __name__ == "__main__":
    main()
