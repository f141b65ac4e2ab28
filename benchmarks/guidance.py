"""Guidance: fidelity against diversity of a trained text-to-image model.

For each guidance scale the same captions of training images are drawn from the same noise: R-precision and precision
(fidelity), recall (diversity) and Fréchet distance, in the judge's features. `MODEL` is a run folder or a saved model, `DATA`
the captioned set that it was trained on (see `text_to_image.md`).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.base import record
from benchmarks.base.record import Record
from benchmarks.base.table import Claim, table
from sfumato import recipes
from sfumato.core.pictures import to_bytes
from sfumato.data import ImageSet, load
from sfumato.metrics import Retrieval, compare, find_judge, reference_features
from sfumato.training.contrastive import captions_of

NAME = "guidance"
COMMANDS = ("guidance src/sfumato/packaged/emoji --data DATA --scales 1 1.5 2 3 5 8 -n 200",)
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
NUMBERS = ("r_precision", "held_out", "precision", "recall", "frechet")
NOTES = """\
The packaged model (its default scale is 3); 200 images of training captions and 95 of held-out ones. The Fréchet distance of
so few images is biased upward, and compares within this table alone. 1.5 to 3 cannot be told apart by 200 images; above,
fidelity and diversity both fall."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder of a text-to-image model")
    parser.add_argument("--data", required=True, help="the captioned set that it was trained on")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("-n", type=int, default=1000, help="images of each scale")


def run(chosen: argparse.Namespace) -> None:
    model = recipes.load(chosen.model, "cpu")
    train, test = (load(chosen.data, size=model.ladder.size, split=split) for split in ("train", "test"))
    measures = Measures(train, test, chosen.n)
    identity = {"model": fingerprint(chosen.model), "data": train.fingerprint(), "n": chosen.n}
    for scale in chosen.scales:
        if chosen.again or not record.has(record.read(NAME), **identity, guidance=scale):
            found = {**identity, "name": chosen.model.name, **measures(model, scale), "real": measures.real}
            record.append(NAME, found)
            print({name: found[name] for name in ("guidance", *NUMBERS)}, flush=True)
    draw(results(), record.RESULTS / f"guidance-{chosen.model.name}.png")


def fingerprint(model: Path) -> str:
    """16 hex digits of a model's files."""
    digest = hashlib.sha256()
    for file in sorted([model] if model.is_file() else model.glob("**/model.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Measures:
    """What all scales are measured with."""

    def __init__(self, train: ImageSet, test: ImageSet, n: int) -> None:
        known = [texts[0] for texts in captions_of(train)]
        new = [text for text in dict.fromkeys(texts[0] for texts in captions_of(test)) if text not in set(known)]
        numbers = np.random.default_rng(0)
        self.known = [known[i] for i in np.resize(numbers.permutation(len(known)), n)]
        self.new = [new[i] for i in np.resize(numbers.permutation(len(new)), max(len(new), n // 5))] if new else []
        self.retrieval = Retrieval(find_judge(train, torch.device("cpu")), train, test)
        self.space = self.retrieval.judge.space
        self.reference = reference_features(self.space, train)
        self.real = {each.split: self.retrieval.of_real(each)["r_precision"] for each in (train, test)}

    def __call__(self, model: Any, scale: float) -> dict[str, Any]:
        """All numbers of one scale."""
        began = time.process_time()
        features = self._features(model, self.known, scale, seed=0)
        seconds = time.process_time() - began
        found = compare(features, self.reference)
        asked = self.retrieval(features, self.known)
        held_out = self.retrieval(self._features(model, self.new, scale, seed=1), self.new) if self.new else None
        return {
            "guidance": scale,
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


def results() -> list[Record]:
    """The newest model's records by scale."""
    lines = record.read(NAME)
    same = [each for each in lines if all(each[key] == lines[-1][key] for key in ("model", "data", "n"))]
    return sorted(record.latest(same, ("guidance",)), key=lambda each: each["guidance"])


def page() -> list[str]:
    def shown(name: str, digits: int) -> Any:
        return lambda each: "" if each[name] is None else f"{each[name]:.{digits}f}"

    columns = {"guidance": lambda each: f"{each['guidance']:g}"}
    columns |= {
        "R-precision" if name == "r_precision" else name.replace("_", " "): shown(name, 3) for name in NUMBERS[:-1]
    }
    found = results()
    return [table(found, columns | {"distance": shown("frechet", 1)}), f"![guidance](guidance-{found[-1]['name']}.png)"]


def draw(found: list[Record], out: Path) -> None:
    """Fidelity against diversity, and the distance against guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    line: Any = {"marker": "o", "markersize": 4}
    recall = [each["recall"] for each in found]
    for name, colour in (("r_precision", "#c2410c"), ("held_out", "#f59e0b"), ("precision", "#0f766e")):
        values = [each[name] for each in found]
        if None not in values:
            left.plot(recall, values, color=colour, label=name.replace("_", " "), **line)
    for each in found:
        point, place = (each["recall"], each["r_precision"]), {"xytext": (3, 4), "textcoords": "offset points"}
        left.annotate(f"{each['guidance']:g}", point, fontsize=8, **place)
    left.set(xlabel="recall (diversity)", ylabel="fidelity")
    left.legend(frameon=False, fontsize=8)
    right.plot([each["guidance"] for each in found], [each["frechet"] for each in found], color="#475569", **line)
    right.set(xlabel="guidance", ylabel="Fréchet distance")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
    figure.savefig(out, dpi=130)


def claims() -> list[Claim]:
    return []
